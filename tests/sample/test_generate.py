"""Several texts after one prompt: each as if alone, in order, ending where it should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.inference.torch_backend import TorchBackend
from common.models.config import GenerateConfig, ModelConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from sample import generate as samples
from sample.generate import GenerateRequest, write_json, write_text
from sample.loaded_model import LoadedModel, RunInfo
from tests.sample.conftest import ALPHABET, round_and_round
from tests.tiny import byte_tokenizer, random_model

BYTES = byte_tokenizer()
WARM = GenerateConfig(max_new_tokens=12, temperature=1.5, seed=7)
LIKELIEST = GenerateConfig(max_new_tokens=6, temperature=0)


def loaded(model: GPT, tokenizer: Tokenizer) -> LoadedModel:
    info = RunInfo(folder=Path(), step=1, n_tokens=1, n_parameters=1, config=model.config)
    return LoadedModel(info, tokenizer, TorchBackend(model))


def byte_model() -> GPT:
    return random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16)
    )


@pytest.mark.parametrize("max_rows", [1, 2, 16])
def test_sample_i_is_the_text_of_seed_plus_i_however_many_are_decoded_together(
    max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_ROWS", max_rows)
    model = byte_model()
    lines = [
        json.loads(s) for s in write_json(loaded(model, BYTES), GenerateRequest("ab", WARM, 5))
    ]
    assert sorted(line["sample"] for line in lines) == list(range(5))
    for line in lines:
        config = replace(WARM, seed=7 + line["sample"])
        tokens = generate(Decoder(make_backend(model), BYTES), [97, 98], config)
        alone = BYTES.decode_bytes(token.idx for token in tokens)
        assert line["seed"] == config.seed
        assert line["text"] == alone.decode("utf-8", "replace")


def test_texts_are_written_in_order_divided_by_dashes() -> None:
    model = byte_model()
    request = GenerateRequest("ab", WARM, 3)
    lines = [json.loads(s) for s in write_json(loaded(model, BYTES), request)]
    texts = {line["sample"]: line["text"] for line in lines}
    expected = "\n---\n".join(f"ab{texts[i]}" for i in range(3)) + "\n"
    assert "".join(write_text(loaded(model, BYTES), request)) == expected


def test_the_first_text_comes_while_it_is_generated() -> None:
    pieces = write_text(
        loaded(round_and_round(forwards=True), ALPHABET), GenerateRequest("ab", LIKELIEST, 3)
    )
    assert [next(pieces) for _ in range(3)] == ["abc", "d", "e"]


@pytest.mark.parametrize(
    ("stops", "expected", "finish"),
    [
        (("de",), "c", "stop"),  # two tokens
        (("f", "cde"), "", "stop"),  # from the first token on
        (("hg",), "cdefgh", "length"),  # its beginning was held back, then came out
        (("x",), "cdefgh", "length"),
    ],
)
def test_a_stop_text_ends_across_tokens_and_is_not_written(
    stops: tuple[str, ...], expected: str, finish: str
) -> None:
    circle = loaded(round_and_round(forwards=True), ALPHABET)
    request = GenerateRequest("ab", LIKELIEST, 1, stops)
    assert "".join(write_text(circle, request)) == f"ab{expected}\n"
    described = json.loads("".join(write_json(circle, request)))
    assert (described["text"], described["finish"]) == (expected, finish)


def test_json_names_each_token_and_the_likeliest_beside_it() -> None:
    circle = loaded(round_and_round(forwards=True), ALPHABET)
    (line,) = write_json(
        circle, GenerateRequest("ab", replace(LIKELIEST, max_new_tokens=2), top_logprobs=2)
    )
    described = json.loads(line)
    assert [token["text"] for token in described["tokens"]] == ["c", "d"]
    for token in described["tokens"]:
        # 50 above all others
        assert token["logprob"] == pytest.approx(0, abs=1e-6)
        assert (token["top"][0]["id"], token["top"][0]["logprob"]) == (
            token["id"],
            token["logprob"],
        )
        assert token["top"][1]["logprob"] == pytest.approx(-50, abs=1e-3)
