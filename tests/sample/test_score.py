"""Scores of texts: transformers, training's evaluation and sums by hand are the oracles.

As shown: colours that a terminal understands, columns that a program reads.
"""

import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.device import choose_device
from common.errors import DataError
from common.inference.decoder import Token
from common.inference.torch_backend import TorchBackend
from common.models.config import ARCHITECTURES, ModelConfig
from common.tokenizer import BytePairTokenizer, CharTokenizer, Tokenizer
from sample import score as score_module
from sample.score import Report, Score, encode_chunks, read_text, score_ids, surprisal
from tests.common.hf_weights import transformers_like
from tests.tiny import byte_tokenizer, prepare_text, random_model, successor_model, words
from tests.train.runs import evaluate_text
from train.evaluate import token_lengths

BYTES = byte_tokenizer()
ABC = CharTokenizer(("a", "b", "c"))
SHAPE: dict[str, Any] = {"block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}


def some_ids(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, n).tolist()  # type: ignore[no-any-return]


def logprobs(
    network: TorchBackend, ids: list[int], stride: int, n_chunk: int = 1000
) -> list[float]:
    chunks = [ids[i : i + n_chunk] for i in range(0, len(ids), n_chunk)]
    scored = score_ids(network, chunks, before=BYTES.eot_id, stride=stride)
    tokens = [token for window in scored for token in window]
    assert [token.idx for token in tokens] == ids  # each once, in order
    return [token.logprob for token in tokens]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_windows_give_what_transformers_gives_for_each(architecture: str, stride: int) -> None:
    config = ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE | ARCHITECTURES[architecture])
    model = random_model(config)
    theirs = transformers_like(model)
    text = some_ids(53)
    ids, expected = [BYTES.eot_id, *text], []
    # written out anew: token t is predicted in the first window that reaches it
    for t in range(1, len(ids)):
        start = max(0, -(-(t - 16) // stride)) * stride
        with torch.inference_mode():
            logits = theirs(torch.tensor([ids[start:t]])).logits[0, -1]
        expected.append(float(logits.log_softmax(-1)[ids[t]]))
    assert logprobs(TorchBackend(model), text, stride) == pytest.approx(expected, abs=2e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 60), stride=st.integers(1, 16), n_chunk=st.integers(1, 40))
def test_every_token_is_scored_once_however_the_ids_come(n: int, stride: int, n_chunk: int) -> None:
    config = ModelConfig(vocab_size=BYTES.vocab_size, block_size=16, n_layer=1, n_head=1, n_embd=4)
    network, ids = TorchBackend(random_model(config)), some_ids(n)
    at_once = logprobs(network, ids, stride)
    assert logprobs(network, ids, stride, n_chunk) == pytest.approx(at_once, abs=1e-5)


def test_windows_end_to_end_give_the_training_evaluations_number() -> None:
    model = random_model(ModelConfig(vocab_size=BYTES.vocab_size, **SHAPE))
    ids = some_ids(16 * 9 + 5)
    lengths = token_lengths(BYTES)
    cpu = choose_device("cpu")
    evaluated = evaluate_text(model, np.array(ids, np.uint16), lengths, cpu, max_tokens=1 << 20)
    score = Score()
    for tokens in score_ids(TorchBackend(model), [ids[1:]], before=ids[0], stride=16):
        score.add(tokens, BYTES)
    assert score.n_tokens == evaluated.n_tokens
    assert score.loss == pytest.approx(evaluated.loss, rel=1e-5)
    assert score.bpb == pytest.approx(evaluated.bpb, rel=1e-5)


def test_loss_perplexity_and_bits_a_byte_worked_out_by_hand() -> None:
    # after end-of-text and after a: a 1/2, b 1/4, c 1/4
    scores = {"a": math.log(2.0)} | dict.fromkeys(ABC.special_tokens, -50.0)
    model = successor_model(ABC, {"<|endoftext|>": scores, "a": scores, "b": scores})
    score = Score()
    for tokens in score_ids(TorchBackend(model), [ABC.encode("aab")], before=ABC.eot_id, stride=16):
        score.add(tokens, ABC)
    assert score.loss == pytest.approx(4 / 3 * math.log(2), rel=1e-5)
    assert score.perplexity == pytest.approx(2 ** (4 / 3), rel=1e-5)
    assert score.bpb == pytest.approx(4 / 3, rel=1e-5)  # four bits, three bytes


def test_bytes_count_as_text_has_them_and_end_of_text_has_none() -> None:
    wide = CharTokenizer(("\u00fc", "\u4e16"))  # 2 and 3 bytes
    score = Score()
    score.add([Token(0, -1.0), Token(1, -1.0), Token(wide.eot_id, -1.0)], wide)
    assert (score.n_tokens, score.n_bytes, score.nats) == (3, 5, 3.0)


def test_an_impossible_text_has_an_infinite_perplexity_and_no_text_a_loss_of_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    score = Score()
    assert (score.loss, score.bpb) == (0.0, 0.0)
    score.add([Token(0, -1e6)], ABC)
    assert score.perplexity == math.inf
    Report(ABC, per_token=False, as_json=True).add_score("f", score)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "file": "f", "tokens": 1, "bytes": 1, "loss": 1e6, "perplexity": None,
        "bpb": pytest.approx(1e6 / math.log(2)),
    }  # fmt: skip


@pytest.mark.parametrize("n_chunk", [1, 7, 100, 10_000])
def test_text_encoded_in_pieces_has_the_ids_of_the_whole(
    n_chunk: int, monkeypatch: pytest.MonkeyPatch, pairs: BytePairTokenizer
) -> None:
    monkeypatch.setattr(score_module, "CHUNK_CHARACTERS", 50)
    text = (
        "It  was \t\n\n the best\u00fc of 12 times,don't  \u4e16\u754c\n" * 40
        + "x" * 300
        + " end  "
    )
    texts = [text[i : i + n_chunk] for i in range(0, len(text), n_chunk)]
    chunks = list(encode_chunks(texts, pairs))
    assert [idx for chunk in chunks for idx in chunk] == pairs.encode(text)
    assert len(chunks) > (1 if n_chunk < 10_000 else 0)


def test_a_file_is_read_as_utf8_across_the_borders_of_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(score_module, "READ_BYTES", 1)
    text = "a\ufeff\u00fc\u4e16\U0001f600"
    for encoding in ("utf-8", "utf-8-sig"):  # a mark before it is no part of it
        assert "".join(read_text(io.BytesIO(text.encode(encoding)), "f")) == text


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"abc\xffdef", "byte 3"),
        (b"abcdef\xe4\xb8", "byte 6"),
        (b"\xef\xbb\xbfa\xff", "byte 4"),
        (b"\xef\xbb", "byte 0"),
    ],
)
def test_a_file_that_is_not_utf8_is_an_error_that_says_where(content: bytes, where: str) -> None:
    with pytest.raises(DataError, match=f"f.txt: not UTF-8 at {where}"):
        list(read_text(io.BytesIO(content), "f.txt"))


def surprising(text: bytes, n_bits: float) -> list[Token]:
    return [Token(byte, -n_bits * math.log(2)) for byte in text]


def coloured(text: bytes, n_bits: float) -> str:
    report = Report(BYTES, per_token=True, as_json=False)
    return "".join(map(report.coloured, surprising(text, n_bits)))


def as_columns(token: Token, tokenizer: Tokenizer) -> str:
    return Report(tokenizer, per_token=True, as_json=False).columns(token)


def test_bits_are_halvings() -> None:
    assert surprisal(Token(0, math.log(1 / 8))) == pytest.approx(3)


@pytest.mark.parametrize(
    ("n_bits", "expected"),
    [
        (0.0, "a"),
        (1.9, "a"),
        (2.1, "\x1b[38;5;16;48;5;229ma\x1b[0m"),
        (14.9, "\x1b[38;5;16;48;5;208ma\x1b[0m"),
        (99.0, "\x1b[38;5;16;48;5;196ma\x1b[0m"),
    ],
)
def test_what_surprises_is_coloured(n_bits: float, expected: str) -> None:
    assert coloured(b"a", n_bits) == expected


def test_a_character_of_several_tokens_comes_whole_and_line_ends_are_not_coloured() -> None:
    painted = coloured("\u4e16\n\U0001f600".encode(), 20)
    paint = "\x1b[38;5;16;48;5;196m{}\x1b[0m"
    assert painted == paint.format("\u4e16") + "\n" + paint.format("\U0001f600")


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert coloured(b"\x1b[2J", 0.0) == "\\x1b[2J"


def test_columns_hold_any_token_in_a_line() -> None:
    line = as_columns(Token(10, -1.0), BYTES)
    assert line == "1.443\t-1.00000\t10\t\\n\n"
    assert as_columns(Token(0xE4, -1.0), BYTES).endswith("\t228\t\\xe4\n")
    assert as_columns(Token(0, 0.0), CharTokenizer(("\\",))).endswith("\t0\t\\\\\n")
    tokenizer = CharTokenizer(("\u4e16",))
    assert as_columns(Token(0, 0.0), tokenizer) == "0.000\t0.00000\t0\t\u4e16\n"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    """Return a vocabulary with pairs, learned here."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = prepare_text(words(3000), folder, tokenizer="bpe").tokenizer()
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer
