"""A difference between gigatoken and tiktoken is found, and ends gigatoken's use."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.tokenizer import BytePairTokenizer
from prepare.tokens.encode import (
    VERIFY_FIRST,
    EncodersDisagreeError,
    VerifiedEncoder,
)
from prepare.tokens.vocab_and_split import train_bpe
from tests.prepare.making import prepare, snapshot


@pytest.fixture(scope="module")
def learned() -> BytePairTokenizer:
    return train_bpe([b"what is right and what is wrong with these words " * 9], 300)


class FakeEncoder:
    """Has gigatoken's interface and tiktoken's ids, but those of texts with 'wrong' in them."""

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: bytes) -> "np.ndarray[Any, Any]":
        ids = self._tokenizer.encode(text.decode())[:: -1 if b"wrong" in text else 1]
        return np.array(ids, np.uint32)


def verified(tokenizer: BytePairTokenizer) -> VerifiedEncoder:
    return VerifiedEncoder(FakeEncoder(tokenizer).encode, tokenizer)


def test_a_difference_in_the_first_documents_is_always_found(learned: BytePairTokenizer) -> None:
    encode = verified(learned)
    encode([b"right"] * (VERIFY_FIRST - 1))
    with pytest.raises(EncodersDisagreeError):
        encode([b"wrong words"])


def test_of_the_later_documents_a_share_is_verified(learned: BytePairTokenizer) -> None:
    encode = verified(learned)
    encode([b"right"] * VERIFY_FIRST)
    encode([b"wrong words"])
    with pytest.raises(EncodersDisagreeError):  # one in 400: some of 6,000 for all but certain
        encode([b"wrong words %d" % i for i in range(6_000)])


def test_after_a_difference_tiktoken_encodes_everything_and_it_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import gigatoken

    class FakeTokenizer:
        @staticmethod
        def from_tiktoken(path: Path, pretokenizer: str) -> FakeEncoder:
            lines = path.read_bytes().splitlines()
            assert len(lines) == 300
            assert pretokenizer == "gpt2"
            return FakeEncoder(tokenizer)

    (tmp_path / "in").mkdir()
    for i in range(20):
        text = f"what is right and what is {'wrong' if i == 17 else 'left'}, number {i}. " * 9
        (tmp_path / "in" / f"{i}.txt").write_text(text, encoding="utf-8")
    right = prepare([tmp_path / "in"], tmp_path / "right", tokenizer="bpe", vocab_size="300")
    assert right.meta["encoder"] == "gigatoken"
    loaded = right.tokenizer()
    assert isinstance(loaded, BytePairTokenizer)
    tokenizer = loaded
    monkeypatch.setattr(gigatoken, "Tokenizer", FakeTokenizer)
    with caplog.at_level(logging.WARNING):
        again = prepare([tmp_path / "in"], tmp_path / "again", tokenizer="bpe", vocab_size="300")
    assert again.meta["encoder"] == "tiktoken"
    assert "gigatoken gave other ids than tiktoken" in caplog.text
    assert again.meta["files"] == right.meta["files"]
    assert snapshot(again.path).keys() == snapshot(right.path).keys()
