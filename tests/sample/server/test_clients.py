"""Clients as they are: what each of them sends is answered, and with the right text.

The requests are those that langchain-openai 1.4, litellm 1.90, llm 0.32 and lm_eval 0.4.13 were
seen to send, and those that Open WebUI and LibreChat are known to; with the temperature 0 that a
person can set in each, so that the answer is known.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from common.checkpoint import save_checkpoint
from common.files import write_json
from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.models.config import GenerateConfig, ModelConfig
from common.run_dir import new_run
from sample.server.config import ServeConfig
from sample.text.prompt import RAW
from tests.processes import run_python
from tests.sample.conftest import ALPHABET
from tests.sample.serving import InProcess, ServerProcess, events, in_process, mixed_model, serving
from tests.tiny import prepare_text, random_model, words

MODEL = mixed_model()
USER = {"role": "user", "content": "abc"}
TALK = [{"role": "system", "content": "be"}, USER, {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"}]  # fmt: skip
PENALTIES = {"frequency_penalty": 0, "presence_penalty": 0}
# where to, the body, and the prompts that it means to the template raw
REQUESTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "langchain-openai, OpenAI": (
        "completions",
        {"model": "m", "prompt": ["abc", *"abcdefgh" * 2, "a", "b", "c"], "logprobs": None,
         "max_tokens": 256, "n": 1, "seed": None, "temperature": 0, "top_p": 1} | PENALTIES,
        ["abc", *"abcdefgh" * 2, "a", "b", "c"],
    ),
    "langchain-openai, ChatOpenAI": (
        "chat/completions",
        {"messages": TALK, "model": "m", "stream": False, "temperature": 0.0},
        ["be\nabcd\ne"],
    ),
    "litellm": (
        "chat/completions",
        {"model": "m", "messages": [USER], "temperature": 0, "max_tokens": 8, "stream": True},
        ["abc"],
    ),
    "llm": (
        "chat/completions",
        {"model": "m", "stream": True, "messages": [USER], "temperature": 0,
         "stream_options": {"include_usage": True}},
        ["abc"],
    ),
    "llm, completion": (
        "completions",
        {"model": "m", "stream": True, "prompt": "abc", "temperature": 0,
         "stream_options": {"include_usage": True}},
        ["abc"],
    ),
    "Open WebUI": (
        "chat/completions",
        {"stream": True, "model": "m", "messages": [USER | {"id": "5f1c", "timestamp": 1}],
         "temperature": 0, "top_k": 40, "reasoning_effort": "low", "chat_id": "8a", "id": "b1",
         "session_id": "Xy", "features": {"web_search": False}, "tool_ids": [],
         "stream_options": {"include_usage": True}},
        ["abc"],
    ),
    "Open WebUI, continue": (
        "chat/completions",
        {"stream": True, "model": "m", "messages": TALK[:3], "temperature": 0},
        ["be\nabcd"],
    ),
    "LibreChat": (
        "chat/completions",
        {"model": "m", "temperature": 0, "top_p": 1, "stream": True, "user": "66f2",
         "messages": [USER | {"name": "ann"}], "stop": []} | PENALTIES,
        ["abc"],
    ),
    "the page of llama.cpp": (
        "chat/completions",
        {"messages": [USER], "stream": True, "return_progress": True, "temperature": 0,
         "reasoning_format": "auto", "max_tokens": -1, "timings_per_token": True,
         "cache_prompt": True, "samplers": "edkypmxt", "dynatemp_range": 0, "typical_p": 1,
         "xtc_probability": 0, "repeat_last_n": 64, "repeat_penalty": 1, "dry_multiplier": 0,
         "stream_options": {"continuous_usage_stats": True}},
        ["abc"],
    ),
    "lm-evaluation-harness": (
        "completions",
        {"prompt": [ALPHABET.encode("abc"), ALPHABET.encode("de")], "model": "m", "seed": 1234,
         "max_tokens": 8, "temperature": 0, "stop": ["\n\n", "<|endoftext|>"]},
        ["abc", "de"],
    ),
}  # fmt: skip


def alone(prompt: str) -> str:
    """Return what sample generate writes after ``prompt``, greedily."""
    config = GenerateConfig(max_new_tokens=8, temperature=0)
    tokens = generate(Decoder(make_backend(MODEL), ALPHABET), ALPHABET.encode(prompt), config)
    return ALPHABET.decode_bytes(token.idx for token in tokens).decode()


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    with in_process(ServeConfig(max_tokens=8), template=RAW, network=MODEL) as served:
        yield served


@pytest.mark.parametrize("client", REQUESTS)
def test_what_a_client_sends_is_answered_with_the_right_text(api: InProcess, client: str) -> None:
    path, body, prompts = REQUESTS[client]
    answered = api.client.post("/v1/" + path, json=body)
    assert answered.status_code == 200, answered.text
    parts = events(answered.text) if body.get("stream") else [answered.json()]
    texts = [""] * len(prompts)
    for choice in (choice for part in parts for choice in part["choices"]):
        message = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        texts[choice["index"]] += message.get("content") or ""
    assert texts == [alone(prompt) for prompt in prompts]


N_TEXTS = 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/pairs, whose vocabulary has pairs, and texts for its context."""
    folder = tmp_path_factory.mktemp("clients")
    tokenizer = prepare_text(words(3000), folder, tokenizer="bpe").tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=16
    )
    run = new_run(folder / "runs", "pairs")
    write_json(run / "config.json", {"format": 1})
    save_checkpoint(run, 1, random_model(config), {}, {"progress": {"n_tokens": 10}}, tokenizer)
    drawn = random.Random(0)
    for i in range(N_TEXTS):
        text = words(drawn.randint(1, 10), seed=i).strip() + drawn.choice(["", "\n", " \u00fc?"])
        assert len(tokenizer.encode(text)) <= 62
        (folder / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[ServerProcess]:
    """Return a server as it is without options."""
    with serving(place) as server:
        yield server


def test_lm_evaluation_harness_finds_texts_as_likely_as_score_does(
    server: ServerProcess, place: Path
) -> None:
    files = sorted(place.glob("??.txt"))
    ended = run_python(["-m", "sample", "score", *map(str, files), "--json"], place)
    described = list(map(json.loads, ended.stdout.splitlines()))[:N_TEXTS]
    nats = [-each["loss"] * each["tokens"] for each in described]
    texts = [file.read_text(encoding="utf-8") for file in files]
    for options in ({}, {"batch_size": 32}, {"num_concurrent": 16}):
        harness = LocalCompletionsAPI(
            base_url=server.url + "/v1/completions", model="pairs", max_length=64, **options
        )
        asked = [Instance("loglikelihood", {}, ("", text), 0) for text in texts]
        found = [nats for nats, _ in harness.loglikelihood(asked, disable_tqdm=True)]
        assert found == pytest.approx(nats, abs=1e-3)
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts[:5]]
    assert harness.loglikelihood_rolling(asked) == pytest.approx(nats[:5], abs=1e-3)


def test_a_hundred_completions_at_once_are_all_answered(server: ServerProcess) -> None:
    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none") as client:
            asked: dict[str, Any] = {"model": "pairs", "max_tokens": 20, "temperature": 0}
            every = [client.completions.create(prompt=f"the {i}", **asked) for i in range(100)]
            answers = await asyncio.gather(*every)
            prompts = [f"the {i}" for i in range(32)]
            at_once = await client.completions.create(prompt=prompts, **asked)
            twenty = await client.completions.create(prompt=prompts[:20], **asked)
        texts = [answer.choices[0].text for answer in answers]
        assert [choice.text for choice in at_once.choices] == texts[:32]
        assert [choice.text for choice in twenty.choices] == texts[:20]
        return texts

    assert all(asyncio.run(ask_all()))
