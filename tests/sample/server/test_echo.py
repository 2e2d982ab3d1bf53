"""Prompts whose own logprobs are asked for: the network of gpt.py is the oracle."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig, ModelConfig
from sample.server.engine import Engine, Job
from sample.text.detokenizer import Detokenizer, TextDelta
from tests.sample.conftest import ALPHABET
from tests.sample.serving import MIXED, InProcess, assert_joined, events, in_process
from tests.tiny import random_model

COMPLETIONS, SOON_S = "/v1/completions", 20
MODEL = random_model(MIXED, seed=7)
EOT = ALPHABET.eot_id
PROMPTS = [[EOT, *ALPHABET.encode("abc")], ALPHABET.encode("hg fa\nb" * 4), [5], [3, EOT, 4] * 10]


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    with in_process(network=MODEL) as served:
        yield served


def expected_logprobs(prompt: list[int]) -> torch.Tensor:
    """Return the logprobs (T - 1, V) of the tokens behind the first."""
    with torch.inference_mode():
        return MODEL(torch.tensor([prompt]))[0, :-1].log_softmax(-1)  # type: ignore[no-any-return]


def name_of(idx: int) -> str:
    names = {special: name for name, special in ALPHABET.special_tokens.items()}
    return names.get(idx) or ALPHABET.characters[idx]


def complete(api: InProcess, **body: Any) -> Any:
    asked = {"echo": True, "temperature": 0, "seed": 1} | body
    answered = api.client.post(COMPLETIONS, json=asked)
    assert answered.status_code == 200, answered.text
    return events(answered.text) if body.get("stream") else answered.json()


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_each_token_of_a_prompt_is_said_to_be_as_likely_as_it_is(
    api: InProcess, max_tokens: int
) -> None:
    answer = complete(api, prompt=PROMPTS, logprobs=2, max_tokens=max_tokens)
    assert answer["usage"]["completion_tokens"] == max_tokens * len(PROMPTS)
    for choice, prompt in zip(answer["choices"], PROMPTS, strict=True):
        text = ALPHABET.decode_bytes(prompt).decode()
        found, n = choice["logprobs"], len(prompt)
        assert choice["text"][: len(text)] == text
        assert len(choice["text"]) == len(text) + max_tokens
        assert choice["finish_reason"] == "length"
        assert found["tokens"][:n] == [name_of(idx) for idx in prompt]
        assert {len(each) for each in found.values()} == {n + max_tokens}
        # end-of-text has no characters
        offsets = [len(ALPHABET.decode_bytes(prompt[:i])) for i in range(n + max_tokens)]
        assert found["text_offset"] == offsets
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        expected = expected_logprobs(prompt)
        own = expected[range(n - 1), prompt[1:]].tolist()
        assert found["token_logprobs"][1:n] == pytest.approx(own, abs=1e-4)
        for top, logprobs, idx in zip(
            found["top_logprobs"][1:n], expected, prompt[1:], strict=True
        ):
            best = logprobs.topk(2)
            names = {name_of(each) for each in (*best.indices.tolist(), idx)}
            assert set(top) == names
            assert max(top.values()) == pytest.approx(best.values[0].item(), abs=1e-4)
            assert (top[name_of(idx)] == max(top.values())) == (idx in best.indices[:1])


def test_a_full_context_is_scored_and_continued(api: InProcess) -> None:
    prompt = ALPHABET.encode("abcdefgh" * 4)  # 32 tokens
    answer = complete(api, prompt=prompt, logprobs=1, max_tokens=1)["choices"][0]
    assert len(answer["logprobs"]["tokens"]) == 33
    plain = complete(api, prompt=prompt, max_tokens=1, echo=False)["choices"][0]["text"]
    assert answer["text"][-1] == plain


@pytest.mark.parametrize("max_tokens", [3, 0])
def test_a_stream_says_what_the_whole_answer_does(api: InProcess, max_tokens: int) -> None:
    asked = {"prompt": ["abc", "hgf"], "logprobs": 1, "max_tokens": max_tokens, "n": 2}
    whole = complete(api, **asked)
    parts = complete(api, **asked, stream=True)
    assert_joined(parts, whole)


def test_max_tokens_0_gives_the_prompt_alone(api: InProcess) -> None:
    choice = complete(api, prompt="abc", max_tokens=0)["choices"][0]
    assert choice == {"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}
    empty = complete(api, prompt="", max_tokens=0, logprobs=1)["choices"][0]
    assert (empty["text"], empty["logprobs"]["tokens"]) == ("", [])


def test_more_logprobs_than_memory_should_hold_are_refused(
    api: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sample.server.requests.MAX_SCORED", 17)
    body = {"prompt": "abc", "echo": True, "n": 2, "logprobs": 2}
    error = api.client.post(COMPLETIONS, json=body).json()["error"]
    assert error["message"] == "echo and logprobs name 18 tokens of prompts: at most 17 at once."
    assert api.client.post(COMPLETIONS, json=body | {"logprobs": 1}).status_code == 200


def test_other_answers_go_on_while_a_long_prompt_is_scored() -> None:
    shape = ModelConfig(
        vocab_size=ALPHABET.vocab_size, block_size=1024, n_layer=1, n_head=1, n_embd=8
    )
    engine = Engine(
        Decoder(make_backend(random_model(shape)), ALPHABET, 3), n_rows=3, max_waiting=4
    )
    heard: list[tuple[str, TextDelta]] = []
    ended = threading.Event()

    def job(name: str, n_prompt: int, n_new: int, **options: Any) -> Job:
        def receive(delta: TextDelta) -> None:
            heard.append((name, delta))
            if name == "running" and sum(each == "running" for each, _ in heard) == 3:
                engine.cancel([gone])
            if name == "scored" and delta.is_last:
                ended.set()

        config = GenerateConfig(max_new_tokens=n_new)
        detokenizer = Detokenizer(ALPHABET, n_new)
        return Job(prompt=[2, 3] * (n_prompt // 2), config=config, detokenizer=detokenizer,
                   receive=receive, **options)  # fmt: skip

    running, gone = job("running", 4, 10**6), job("gone", 1000, 1, scores_prompt=True)
    scored = job("scored", 1000, 1, scores_prompt=True)
    engine.submit([gone, running, scored])
    engine.start(lambda call: call())
    assert ended.wait(SOON_S)
    engine.close("over")
    names = [name for name, _ in heard]
    assert "gone" not in names
    first, last = (delta for name, delta in heard if name == "scored")
    assert (len(first.tokens), len(last.tokens), last.finish_reason) == (1000, 1, "length")
    # a step for the other after each part of 128
    assert names.index("scored") >= 3 + 8
