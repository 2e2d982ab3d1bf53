"""Documents -> ids, as fast as the machine goes.

    texts, UTF-8 --encode--> ids of each --join_documents--> ids in a row, as in train.bin:
                                                             each document, then the end-of-text id

tiktoken defines which ids are right. gigatoken gives the same some twenty times faster, and a
sample of its ids is compared with tiktoken's (verify.py). Text is always ordinary text: what
looks like a special token in it yields ordinary ids.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, CharTokenizer, Tokenizer
from prepare.chunks import split_prefix_len
from prepare.forked import defer_signals
from prepare.tokens.verify import TokenIds, VerifiedEncoder

log = logging.getLogger(__name__)

Encode = Callable[[list[bytes]], list[TokenIds]]  # UTF-8 -> the ids of each text

# gigatoken's names of the patterns that belong to tiktoken's published vocabularies
SCHEMES = {"cl100k_base": "cl100k", "o200k_base": "o200k"}


def make_encoder(tokenizer: Tokenizer, *, fast: bool = True) -> tuple[str, Encode]:
    """Return the name of the library that encodes, and the function that does it.

    ``fast=False`` gives tiktoken's function; gigatoken's raises EncodersDisagreeError where a text
    that both encode has other ids.
    """
    if isinstance(tokenizer, CharTokenizer):
        return "characters", _char_encoder(tokenizer)
    tiktoken_ids = partial(_tiktoken_ids, tokenizer)
    gigatoken = _gigatoken(tokenizer) if fast else None
    if gigatoken is not None:
        return "gigatoken", VerifiedEncoder(gigatoken.encode, tiktoken_ids, tokenizer)
    from concurrent.futures import ThreadPoolExecutor

    # tiktoken lets go of the interpreter, so threads are enough for all cores
    pool = ThreadPoolExecutor(os.cpu_count())
    return "tiktoken", lambda texts: list(pool.map(tiktoken_ids, texts))


def join_documents(documents: Iterable[TokenIds], eot_id: int, dtype: "np.dtype[Any]") -> TokenIds:
    """Return the ids of one document or more in a row, the end-of-text id after each."""
    eot = np.array([eot_id], dtype)
    parts = [part for ids in documents for part in (ids, eot)]
    return np.concatenate(parts, dtype=dtype, casting="same_kind")


def _char_encoder(tokenizer: CharTokenizer) -> Encode:
    code_points = np.array([ord(c) for c in tokenizer.characters], np.int64)
    unknown = len(code_points)
    table = np.full(sys.maxunicode + 1, unknown, np.uint32)  # one entry a code point: 4.5 MB
    table[code_points] = np.arange(unknown, dtype=np.uint32)

    def encode(text: bytes) -> TokenIds:
        ids: TokenIds = table[np.frombuffer(text.decode("utf-8").encode("utf-32-le"), "<u4")]
        if (ids == unknown).any():
            raise DataError(
                "The sources changed while they were read: a character is there now that was not "
                "when they were first read. Run it again when they are complete."
            )
        return ids

    return lambda texts: [encode(text) for text in texts]


def _tiktoken_ids(tokenizer: BytePairTokenizer, text: bytes) -> TokenIds:
    try:
        return tokenizer.encode_array(text.decode("utf-8"))
    except ValueError:  # it gives up on about a million blanks in a row, and on other such runs
        cut, _ = split_prefix_len(text[: len(text) // 2])
        if not cut:
            raise
        parts = [_tiktoken_ids(tokenizer, part) for part in (text[:cut], text[cut:])]
        return np.concatenate(parts)


def _gigatoken(tokenizer: BytePairTokenizer) -> Any:
    """Return gigatoken's encoder of the vocabulary, or None where it has none."""
    scheme = "gpt2" if tokenizer.pattern == GPT2_PATTERN else SCHEMES.get(tokenizer.name)
    if scheme is None:
        return None
    try:
        import gigatoken
    except ImportError:
        log.info("gigatoken is not installed: tiktoken encodes, some twenty times slower.")
        return None
    # At its first call it imports from numpy, and ends with a panic if Ctrl-C comes meanwhile.
    with tempfile.TemporaryDirectory() as folder, defer_signals():
        path = Path(folder, tokenizer.file_name)
        path.write_bytes(tokenizer.file_content())
        try:
            # No special tokens: with them, text that looks like one would not be encoded.
            encoder = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer=scheme)
            encoder.encode(b" ")
            return encoder
        except BaseException as error:
            # a panic in Rust, which has no name to import; or ranks that leave numbers out
            if type(error).__name__ != "PanicException" and type(error) is not RuntimeError:
                raise
            log.warning("gigatoken cannot take this vocabulary: tiktoken encodes.")
            return None
