"""The API's own field: where an answer stands in the training text."""

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from common.tracing import Span
from sample.server.protocol import CompletionResponse
from sample.text.prompt import RAW
from sample.text.sources import NOT_ALL, TrainingText
from tests.sample.conftest import ALPHABET, round_and_round
from tests.sample.fake_tracer import FakeTracer
from tests.sample.serving import InProcess, events, in_process

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
READ = ("docs.tar.xz/a.txt", 12, "hh bcdefgha hh"), ("b.txt", None, "cdefghabc")
ASKED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a", "temperature": 0, "max_tokens": 12},
    CHAT: {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 12},
}
# of bcdefghabcde, which follows a
SPANS = [
    {"start": 1, "end": 10, "n_tokens": 9, "n_found": 1, "passages": [
        {"name": "b.txt", "line": None, "before": "", "text": "cdefghabc", "after": ""}]},
    {"start": 0, "end": 8, "n_tokens": 8, "n_found": 1, "passages": [
        {"name": "docs.tar.xz/a.txt", "line": 12, "before": "hh ", "text": "bcdefgha",
         "after": " hh"}]},
]  # fmt: skip
FOUND = {"n_tokens": 12, "n_traced": 10, "spans": SPANS}


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    text = TrainingText(ALPHABET, FakeTracer.make(ALPHABET, *READ))
    network = round_and_round(forwards=True)
    with in_process(template=RAW, network=network, training_text=text) as served:
        yield served


def ask(api: InProcess, path: str, **more: Any) -> Any:
    answered = api.client.post(path, json=ASKED[path] | more)
    assert answered.status_code == 200, answered.text
    return events(answered.text) if more.get("stream") else answered.json()


@pytest.mark.parametrize("path", ASKED)
def test_each_choice_says_where_it_stands(api: InProcess, path: str) -> None:
    answer = ask(api, path, sources=True, n=2)
    assert [choice["sources"] for choice in answer["choices"]] == [FOUND, FOUND]
    CompletionResponse.model_validate_json(json.dumps(answer))
    assert "notices" not in answer


@pytest.mark.parametrize("path", ASKED)
def test_in_a_stream_the_last_piece_says_it(api: InProcess, path: str) -> None:
    parts = [part["choices"][0] for part in ask(api, path, sources=True, n=2, stream=True)]
    found = sorted((part["index"], part["sources"]) for part in parts if "sources" in part)
    assert found == [(0, FOUND), (1, FOUND)]
    assert all((part["finish_reason"] is not None) == ("sources" in part) for part in parts)


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("off", [{}, {"sources": None}, {"sources": False}])
def test_unasked_nothing_is_said(api: InProcess, path: str, off: dict[str, Any]) -> None:
    assert "sources" not in ask(api, path, **off)["choices"][0]
    streamed = ask(api, path, **off, stream=True)
    assert not any("sources" in part["choices"][0] for part in streamed)


def test_with_echo_the_text_is_that_of_prompt_and_answer(api: InProcess) -> None:
    choice = ask(api, COMPLETIONS, sources=True, echo=True, prompt="hh bc", max_tokens=5)
    assert choice["choices"][0]["text"] == "hh bcdefgh"
    spans = choice["choices"][0]["sources"]["spans"]
    assert [(span["start"], span["end"]) for span in spans] == [(0, 10)]
    unwritten = ask(api, COMPLETIONS, sources=True, echo=True, prompt="bcdefgha", max_tokens=0)
    assert unwritten["choices"][0]["sources"]["n_traced"] == 8


def test_without_an_index_a_notice_says_how_to_make_one() -> None:
    with in_process() as served:
        for path in ASKED:
            answer = ask(served, path, sources=True)
            assert [choice["sources"] for choice in answer["choices"]] == [None]
            (notice,) = answer["notices"]
            assert "Make one: python -m prepare index DATA" in notice
            CompletionResponse.model_validate_json(json.dumps(answer))
            assert "notices" not in ask(served, path)


def test_of_a_part_without_an_index_a_notice_says_that_it_was_not_looked_through() -> None:
    text = TrainingText(ALPHABET, FakeTracer.make(ALPHABET, *READ), ["/secret/data: no index."])
    with in_process(
        template=RAW, network=round_and_round(forwards=True), training_text=text
    ) as served:
        answer = ask(served, CHAT, sources=True)
        assert answer["choices"][0]["sources"] == FOUND
        assert answer["notices"] == [NOT_ALL]


def test_what_is_no_bool_is_refused(api: InProcess) -> None:
    answered = api.client.post(COMPLETIONS, json=ASKED[COMPLETIONS] | {"sources": 1})
    assert answered.json()["error"]["param"] == "sources"


def test_the_description_says_what_is_answered(api: InProcess) -> None:
    shapes = api.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest"):
        assert "training text" in shapes[name]["properties"]["sources"]["description"]
    answered = shapes["Choice"]["properties"]["sources"]["description"]
    named = set(re.findall(r'"(\w+)"', answered))
    assert named == FOUND.keys() | SPANS[0].keys() | SPANS[0]["passages"][0].keys()  # type: ignore[index]


def test_others_are_served_while_a_long_search_goes_on() -> None:
    class Slow:
        entered, go = threading.Event(), threading.Event()

        def trace(self, ids: object) -> list[Span]:
            self.entered.set()
            assert self.go.wait(20)
            return []

    slow: Any = Slow()
    text = TrainingText(ALPHABET, slow)
    with in_process(
        template=RAW, network=round_and_round(forwards=True), training_text=text
    ) as served:
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(ask(served, COMPLETIONS, sources=True))
        )
        asking.start()
        assert Slow.entered.wait(20)
        assert ask(served, COMPLETIONS)["choices"][0]["text"] == "bcdefghabcde"
        assert not answers
        Slow.go.set()
        asking.join()
        assert answers[0]["choices"][0]["sources"]["spans"] == []


def test_the_client_of_openai_asks_for_it_and_reads_it(api: InProcess) -> None:
    client = openai.OpenAI(
        base_url="http://localhost/v1", api_key="none", http_client=api.client, max_retries=0
    )
    more: dict[str, Any] = {"model": "fake", "max_tokens": 12, "temperature": 0}
    more["extra_body"] = {"sources": True}
    messages: Any = ASKED[CHAT]["messages"]
    chat = client.chat.completions.create(messages=messages, **more)
    assert chat.choices[0].to_dict()["sources"] == FOUND
    assert client.completions.create(prompt="a", **more).choices[0].sources == FOUND
    streamed = client.chat.completions.create(messages=messages, stream=True, **more)
    last = list(streamed)[-1].choices[0]
    assert (last.finish_reason, last.to_dict()["sources"]) == ("length", FOUND)
