"""Documents -> ids, as fast as the machine goes: gigatoken where it can, with tiktoken as judge.

tiktoken defines which ids are right. gigatoken gives the same some twenty times faster, on all
cores; in every run a sample of documents is encoded by both, and a difference ends its use.
"""

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import DataError
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, CharTokenizer, Tokenizer
from prepare.split import hash_fraction

log = logging.getLogger(__name__)

FlatIds = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]
# UTF-8 documents -> (ids one after another, number of ids of each)
EncodeBatch = Callable[[list[bytes]], tuple[FlatIds, Lengths]]

JUDGE_FIRST = 50  # documents of each run that tiktoken always encodes too
JUDGE_SHARE = 1 / 200  # and this share of the others, chosen by their hash


class EncodersDisagreeError(Exception):
    """gigatoken gave other ids than tiktoken: what it encoded in this run is not to be trusted."""


def make_encoder(tokenizer: Tokenizer, *, fast: bool = True) -> tuple[str, EncodeBatch]:
    """Return the name of the library that encodes, and the function that does it.

    The function raises EncodersDisagreeError when gigatoken fails its judge; ``fast=False`` then
    gives tiktoken's.
    """
    if isinstance(tokenizer, CharTokenizer):
        return "characters", _character_encoder(tokenizer)
    scheme = _gigatoken_scheme(tokenizer)
    if fast and scheme is not None:
        try:
            import gigatoken
        except ImportError:
            log.info("gigatoken is not installed: tiktoken encodes, some twenty times slower.")
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, tokenizer.file_name)
                path.write_bytes(tokenizer.file_content())
                try:
                    # No special tokens: with them, text that looks like one would not be encoded.
                    encoder = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer=scheme)
                except BaseException as error:
                    if type(error).__name__ != "PanicException":  # raised from Rust
                        raise
                    log.warning("gigatoken cannot take this vocabulary: tiktoken encodes.")
                else:
                    return "gigatoken", _Judged(encoder, tokenizer)
    return "tiktoken", _tiktoken_encoder(tokenizer)


def _gigatoken_scheme(tokenizer: BytePairTokenizer) -> str | None:
    """Return gigatoken's name for the tokenizer's pattern, or None where it has none."""
    if tokenizer.pattern == GPT2_PATTERN:
        return "gpt2"
    return {"cl100k_base": "cl100k", "o200k_base": "o200k"}.get(tokenizer.name)


def _concatenate(rows: list[FlatIds]) -> tuple[FlatIds, Lengths]:
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.concatenate([*rows, np.zeros(0, np.uint32)]), lengths


def _character_encoder(tokenizer: CharTokenizer) -> EncodeBatch:
    code_points = np.array([ord(c) for c in tokenizer.characters], np.int64)
    unknown = len(code_points)
    table = np.full(sys.maxunicode + 1, unknown, np.uint32)  # one entry a code point: 4.5 MB
    table[code_points] = np.arange(unknown, dtype=np.uint32)

    def encode_batch(texts: list[bytes]) -> tuple[FlatIds, Lengths]:
        as_utf32 = (text.decode("utf-8").encode("utf-32-le") for text in texts)
        ids, lengths = _concatenate([table[np.frombuffer(raw, "<u4")] for raw in as_utf32])
        if (ids == unknown).any():
            raise DataError(
                "The sources changed while they were read: a character is there now that was not "
                "when they were first read. Run it again when they are complete."
            )
        return ids, lengths

    return encode_batch


def _tiktoken_encoder(tokenizer: BytePairTokenizer) -> EncodeBatch:
    def encode_batch(texts: list[bytes]) -> tuple[FlatIds, Lengths]:
        return _concatenate(
            [np.array(tokenizer.encode(text.decode("utf-8")), np.uint32) for text in texts]
        )

    return encode_batch


class _Judged:
    """gigatoken's batch encoding, a sample of it compared with tiktoken's."""

    def __init__(self, encoder: "object", tokenizer: BytePairTokenizer) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._n_seen = 0

    def __call__(self, texts: list[bytes]) -> tuple[FlatIds, Lengths]:
        layout = self._encoder.encode_batch(texts).layout  # type: ignore[attr-defined]
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]
        for i, text in enumerate(texts):
            self._n_seen += 1
            if self._n_seen <= JUDGE_FIRST or hash_fraction(text, seed=0) < JUDGE_SHARE:
                self._judge(text, ids[offsets[i] : offsets[i + 1]])
        return ids, np.diff(offsets)

    def _judge(self, text: bytes, ids: FlatIds) -> None:
        try:
            expected = self._tokenizer.encode(text.decode("utf-8"))
        except DataError:  # the judge itself gave up on this text, so it says nothing
            return
        if not np.array_equal(ids, np.array(expected, np.uint32)):
            raise EncodersDisagreeError
