"""Several texts after one prompt: each as if alone, in order, ending where it should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.checkpoint import Checkpoint
from common.inference.config import GenerateConfig
from common.inference.decoder import Decoder, generate
from common.inference.selector import make_backend
from common.inference.torch_backend import TorchBackend
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.tokenizer import Tokenizer
from sample import generate as samples
from sample.generate import Wanted, write_json, write_text
from sample.loaded_model import Ready
from tests.sample.conftest import ALPHABET, round_and_round
from tests.tiny import byte_tokenizer, random_model

BYTES = byte_tokenizer()
WARM = GenerateConfig(max_new_tokens=12, temperature=1.5, seed=7)
LIKELIEST = GenerateConfig(max_new_tokens=6, temperature=0)


def ready(model: GPT, tokenizer: Tokenizer) -> Ready:
    return Ready(
        Path("runs/x/step-00000001"), Checkpoint(model, tokenizer, {}), TorchBackend(model)
    )


def byte_model() -> GPT:
    return random_model(
        ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=16)
    )


@pytest.mark.parametrize("most_rows", [1, 2, 16])
def test_sample_i_is_the_text_of_seed_plus_i_however_many_are_decoded_together(
    most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_ROWS", most_rows)
    model = byte_model()
    lines = [json.loads(s) for s in write_json(ready(model, BYTES), Wanted("ab", WARM, 5))]
    assert sorted(line["sample"] for line in lines) == list(range(5))
    for line in lines:
        config = replace(WARM, seed=7 + line["sample"])
        tokens = generate(Decoder(make_backend(model), BYTES), [97, 98], config)
        alone = BYTES.decode_bytes(token.idx for token in tokens)
        assert line["seed"] == config.seed
        assert line["text"] == alone.decode("utf-8", "replace")


def test_texts_are_written_in_order_divided_by_dashes() -> None:
    model = byte_model()
    wanted = Wanted("ab", WARM, 3)
    lines = [json.loads(s) for s in write_json(ready(model, BYTES), wanted)]
    texts = {line["sample"]: line["text"] for line in lines}
    expected = "\n---\n".join(f"ab{texts[i]}" for i in range(3)) + "\n"
    assert "".join(write_text(ready(model, BYTES), wanted)) == expected


def test_the_first_text_comes_while_it_is_generated() -> None:
    pieces = write_text(ready(round_and_round(forwards=True), ALPHABET), Wanted("ab", LIKELIEST, 3))
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
    circle = ready(round_and_round(forwards=True), ALPHABET)
    wanted = Wanted("ab", LIKELIEST, 1, stops)
    assert "".join(write_text(circle, wanted)) == f"ab{expected}\n"
    described = json.loads("".join(write_json(circle, wanted)))
    assert (described["text"], described["finish"]) == (expected, finish)


def test_json_names_each_token_and_the_likeliest_beside_it() -> None:
    circle = ready(round_and_round(forwards=True), ALPHABET)
    (line,) = write_json(circle, Wanted("ab", replace(LIKELIEST, max_new_tokens=2), n_top=2))
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


def test_a_prompt_longer_than_the_context_is_said() -> None:
    circle = ready(round_and_round(forwards=True), ALPHABET)  # a context of 16
    assert Wanted("a" * 16, LIKELIEST).notices(circle) == []
    assert Wanted("a" * 17, LIKELIEST).notices(circle) == [
        "The prompt has 17 tokens and the context 16: only its end is seen."
    ]
