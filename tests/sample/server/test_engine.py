"""Many requests on one decoder: each answer as if alone, places bounded, and all of them freed."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from common.errors import CheckpointError
from common.inference.decoder import Decoder, Token
from common.models.config import GenerateConfig
from sample.server.engine import FAULT, Engine, Job
from sample.server.protocol import APIError
from sample.text.detokenizer import Detokenizer, TextDelta
from tests.sample.conftest import ALPHABET
from tests.sample.fake_decoder import FakeDecoder

SOON_S = 20


class Listener:
    """One request's deltas, and the wait for the last of them."""

    def __init__(self) -> None:
        self.deltas: queue.Queue[TextDelta] = queue.Queue()

    def __call__(self, delta: TextDelta) -> None:
        self.deltas.put(delta)

    def all(self) -> list[TextDelta]:
        got = [self.deltas.get(timeout=SOON_S)]
        while not got[-1].is_last:
            got.append(self.deltas.get(timeout=SOON_S))
        return got

    def text(self) -> str:
        return "".join(delta.text for delta in self.all())


def job(prompt: list[int], n_new: int = 5, seed: int = 0) -> Job:
    """Return a job whose deltas a Listener gets."""
    config = GenerateConfig(max_new_tokens=n_new, seed=seed)
    detokenizer = Detokenizer(ALPHABET, n_new)
    return Job(prompt=prompt, config=config, detokenizer=detokenizer, receive=Listener())


def text_of(ids: list[int]) -> str:
    return ALPHABET.decode_bytes(ids).decode()


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def idle(engine: Engine) -> Callable[[], bool]:
    return lambda: not (engine.waiting or engine.rows)


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(n_rows=3)


@pytest.fixture
def engine(decoder: FakeDecoder) -> Iterator[Engine]:
    engine = Engine(cast(Decoder, decoder), n_rows=3, max_waiting=4)
    engine.start(lambda call: call())
    yield engine
    decoder.go.set()
    engine.close("over")


def heard_by(job: Job) -> Listener:
    return cast(Listener, job.receive)


def ask(engine: Engine, asked: Job) -> Listener:
    engine.submit([asked])
    return heard_by(asked)


def test_each_answer_is_the_one_it_would_get_alone(decoder: FakeDecoder, engine: Engine) -> None:
    asked = [job([i % 4], n_new=1 + i % 7, seed=i // 3) for i in range(40)]
    heard = []
    for each in asked:
        await_(lambda: len(engine.waiting) + len(engine.rows) < 7)
        heard.append(ask(engine, each))
    for each, listener in zip(asked, heard, strict=True):
        assert listener.text() == text_of(decoder.alone(each.prompt, each.config))
    await_(idle(engine))
    assert decoder.rows == {}
    assert decoder.most_rows == 3


def test_beyond_rows_and_queue_a_request_is_refused_and_a_place_that_frees_is_taken(
    decoder: FakeDecoder, engine: Engine
) -> None:
    decoder.go.clear()
    heard = [ask(engine, job([i])) for i in range(7)]
    with pytest.raises(APIError, match="queue is full"):
        ask(engine, job([8]))
    decoder.go.set()
    assert all(listener.text() for listener in heard)
    await_(idle(engine))
    assert ask(engine, job([8])).text()


def test_of_several_choices_all_are_taken_or_none(decoder: FakeDecoder, engine: Engine) -> None:
    decoder.go.clear()
    for i in range(6):
        ask(engine, job([i]))
    with pytest.raises(APIError, match="queue is full"):
        engine.submit([job([7]), job([8])])
    assert len(engine.waiting) + len(engine.rows) == 6


def test_who_goes_away_frees_a_place_in_the_queue_at_once_and_a_row_at_the_next_step(
    decoder: FakeDecoder, engine: Engine
) -> None:
    decoder.go.clear()
    running = [job([i], n_new=10**6) for i in range(3)]
    engine.submit(running)
    await_(lambda: len(engine.rows) == 3)
    waiting = [job([i]) for i in range(4)]
    engine.submit(waiting)
    engine.cancel(waiting)
    assert not engine.waiting
    engine.cancel(running)
    stays = ask(engine, job([1]))
    decoder.go.set()
    assert stays.text() == text_of(decoder.alone([1], job([1]).config))
    await_(idle(engine))
    assert decoder.rows == {}
    n_heard = sum(heard_by(each).deltas.qsize() for each in running + waiting)
    assert n_heard <= 3, "at most the step that was under way"


def test_a_row_that_ends_is_taken_by_the_next_while_the_others_go_on(
    decoder: FakeDecoder, engine: Engine
) -> None:
    long = [ask(engine, job([i], n_new=10**6)) for i in range(2)]
    for i in range(20):
        asked = job([i], n_new=2)
        assert ask(engine, asked).text() == text_of(decoder.alone(asked.prompt, asked.config))
    assert len(engine.rows) >= 2
    engine.close("Over.")
    assert all(listener.all()[-1].error == "Over." for listener in long)


def test_a_fault_is_heard_by_all_who_wait_and_no_more_are_taken(
    decoder: FakeDecoder, engine: Engine
) -> None:
    decoder.go.clear()
    heard = [ask(engine, job([i])) for i in range(7)]
    decoder.fails_at_step = 2
    decoder.go.set()
    for listener in heard:
        assert listener.all()[-1].error == FAULT
    assert engine.fault == engine.closed == FAULT
    with pytest.raises(APIError, match="its log says why"):
        ask(engine, job([1]))
    assert idle(engine)()


def test_what_a_person_can_mend_is_said_as_it_is(engine: Engine, decoder: FakeDecoder) -> None:
    def diverged() -> dict[int, Token]:
        raise CheckpointError("The network's scores are not finite numbers.")

    decoder.step = diverged  # type: ignore[method-assign]
    last = ask(engine, job([1])).all()[-1]
    assert last.error == "The network's scores are not finite numbers."


def test_refused_requests_leave_the_running_ones_alone_and_closing_ends_them(
    decoder: FakeDecoder, engine: Engine
) -> None:
    ends, cut = ask(engine, job([1])), ask(engine, job([2], n_new=10**6))
    engine.refuse("Going down.")
    with pytest.raises(APIError, match="Going down"):
        ask(engine, job([3]))
    assert ends.all()[-1].finish_reason == "length"
    engine.close("Gone.")
    assert cut.all()[-1].error == "Going down."
    await_(lambda: not any(thread.name == "engine" for thread in threading.enumerate()))


def test_two_hundred_clients_that_come_and_go_leave_nothing_behind() -> None:
    decoder = FakeDecoder(n_rows=4)
    engine = Engine(cast(Decoder, decoder), n_rows=4, max_waiting=32)
    engine.start(lambda call: call())
    n_right, n_busy, n_gone, wrong = [0], [0], [0], list[str]()

    def client(number: int) -> None:
        drawn = random.Random(number)
        for _ in range(4):
            asked = job([number], n_new=drawn.randint(1, 30), seed=drawn.randrange(1000))
            try:
                engine.submit([asked])
            except APIError:
                n_busy[0] += 1
                time.sleep(0.005 * drawn.random())
                continue
            if drawn.random() < 0.4:
                time.sleep(0.005 * drawn.random())
                engine.cancel([asked])
                n_gone[0] += 1
            elif heard_by(asked).text() == text_of(decoder.alone(asked.prompt, asked.config)):
                n_right[0] += 1
            else:
                wrong.append(f"client {number}")

    decoder.go.clear()  # until all are there: or the first would be gone before the last comes
    threads = [threading.Thread(target=client, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    await_(lambda: n_busy[0] > 10)
    decoder.go.set()
    for thread in threads:
        thread.join()
    await_(idle(engine))
    engine.close("over")
    assert wrong == []
    assert min(n_right[0], n_busy[0], n_gone[0]) > 10, (n_right, n_busy, n_gone)
    assert decoder.rows == {}
    assert decoder.most_rows == 4
