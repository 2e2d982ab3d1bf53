"""Documents -> ids, as fast as the machine goes.

    texts, UTF-8 --encode--> ids of each --join_documents--> ids in a row, as in train.bin:
                                                             each document, then the end-of-text id

tiktoken defines which ids are right. gigatoken gives the same some twenty times faster; in every
run a sample of texts is encoded by both, and one difference ends gigatoken's use. Text is always
ordinary text: what looks like a special token in it yields ordinary ids.
"""

import logging
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from common.cpus import available_cpus
from common.dataset import token_dtype
from common.errors import DataError, defer_signals
from common.huggingface.json_tokenizer import JsonTokenizer
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, CharTokenizer, Tokenizer
from prepare.chunks import split_prefix_len

log = logging.getLogger(__name__)

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
Encode = Callable[[list[bytes]], list[TokenIds]]  # UTF-8 -> the ids of each text

# gigatoken's names of the patterns that belong to tiktoken's published vocabularies
SCHEMES = {"cl100k_base": "cl100k", "o200k_base": "o200k"}
VERIFY_FIRST = 50  # texts of each process
# tiktoken encodes 18 MB/s where the whole of prepare does 100: so this costs 0.7 % of the time
VERIFY_ONE_IN = 800  # of the texts after those
# Where letters, digits and marks of Unicode 17 begin (and their neighbours): of them gigatoken 0.10
# knows, tiktoken 0.14, with Unicode 16, does not. The test goes through all characters.
UNICODE_17 = re.compile(
    rb"\xe0(?:\xa2\x8f|[\xb1\xb3]\x9c)|\xe1\xab|\xea\x9f|\xf0(?:\x90[\xa5\xbb]|\x91[\xad\xb6\xb7]"
    rb"|\x96[\xba\xbb\xbf]|\x98[\x9f\xb4\xb6\xb7]|\x9e\x9b|\xab\x9c|\xac\xba|[\xb2\xb3])"
)
UNICODE_17_LEADS = (b"\xe0", b"\xe1", b"\xea", b"\xf0")  # for speed: they all begin with one


class EncodersDisagreeError(Exception):
    """gigatoken gave other ids than tiktoken: what it encoded in this run is not to be trusted."""


def make_encoder(tokenizer: Tokenizer, *, fast: bool = True) -> tuple[str, Encode]:
    """Return the name of the library that encodes, and the function that does it.

    ``fast=False`` gives tiktoken's function; gigatoken's raises EncodersDisagreeError where a text
    that both encode has other ids.
    """
    if isinstance(tokenizer, CharTokenizer):
        return "characters", _char_encoder(tokenizer)
    if isinstance(tokenizer, JsonTokenizer):
        ids, dtype = tokenizer.encode, token_dtype(tokenizer.vocab_size)
        return "tokenizers", lambda texts: [np.array(ids(text.decode()), dtype) for text in texts]
    if fast and (gigatoken := _gigatoken(tokenizer)) is not None:
        return "gigatoken", VerifiedEncoder(gigatoken.encode, tokenizer)
    from concurrent.futures import ThreadPoolExecutor

    # tiktoken lets go of the interpreter, so threads are enough for all cores
    pool = ThreadPoolExecutor(available_cpus())
    return "tiktoken", lambda texts: list(pool.map(partial(_tiktoken_ids, tokenizer), texts))


def join_documents(documents: Iterable[TokenIds], eot_id: int, dtype: "np.dtype[Any]") -> TokenIds:
    """Return the ids of one document or more in a row, the end-of-text id after each."""
    eot = np.array([eot_id], dtype)
    parts = [part for ids in documents for part in (ids, eot)]
    return np.concatenate(parts, dtype=dtype, casting="same_kind")


class VerifiedEncoder:
    """gigatoken's encoding of texts, a sample of it compared with tiktoken's."""

    def __init__(self, encode: Callable[[bytes], TokenIds], tokenizer: BytePairTokenizer) -> None:
        self._encode, self._tokenizer = encode, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._n_left = VERIFY_FIRST

    def __call__(self, texts: list[bytes]) -> list[TokenIds]:
        """Return gigatoken's ids of each text, or tiktoken's where the two cannot agree."""
        rows = []
        for text in texts:
            if not text.isascii() and _has_unicode_17(text):
                rows.append(_tiktoken_ids(self._tokenizer, text))
                continue
            ids = self._encode(text)
            if self._n_left > 0 or xxhash.xxh3_64_intdigest(text) % VERIFY_ONE_IN == 0:
                self._n_left -= 1
                self._verify(text, ids)
            # A copy: what gigatoken returns lies in a buffer as large as the text could need.
            rows.append(ids.astype(self._dtype))
        return rows

    def _verify(self, text: bytes, ids: TokenIds) -> None:
        try:
            expected = self._tokenizer.encode_array(text.decode("utf-8"))
        except ValueError:  # tiktoken gives up on this text: a million blanks in a row
            return
        if not np.array_equal(ids, expected):
            raise EncodersDisagreeError


def _has_unicode_17(text: bytes) -> bool:
    return any(lead in text for lead in UNICODE_17_LEADS) and bool(UNICODE_17.search(text))


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
        return np.concatenate([_tiktoken_ids(tokenizer, part) for part in (text[:cut], text[cut:])])


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
        path.write_bytes(tokenizer.file_content)
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
