"""Documents -> ids, as fast as the machine goes: gigatoken where it can, with tiktoken as judge.

tiktoken defines which ids are right. gigatoken gives the same some twenty times faster; in every
run a sample of documents is encoded by both, and a difference ends its use.
"""

import logging
import os
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from common.dataset import token_dtype
from common.errors import DataError
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, CharTokenizer, Tokenizer
from prepare.forked import ForkedProcess, defer_signals, forked
from prepare.readers.chunks import SAFE_SPLIT, utf8_prefix_len

log = logging.getLogger(__name__)

PieceIds = npt.NDArray[np.unsignedinteger[Any]]
Encode = Callable[[list[bytes]], list[PieceIds]]  # pieces of UTF-8 -> the ids of each

JUDGE_FIRST = 50  # documents of each run that tiktoken always encodes too
JUDGE_ONE_IN = 200  # and one in so many of the others, chosen by their hash
DIGEST_BYTES = 16  # of XXH3
RIGHT, WRONG = b"right", b"wrong"
WAITING_BYTES = 1 << 20  # of text that is still to be compared
# Where letters, digits and marks of Unicode 17 begin (and their neighbours): of them gigatoken 0.10
# knows, tiktoken 0.14, with Unicode 16, does not. The test goes through all characters.
UNICODE_17 = re.compile(
    rb"\xe0(?:\xa2\x8f|[\xb1\xb3]\x9c)|\xe1\xab|\xea\x9f|\xf0(?:\x90[\xa5\xbb]|\x91[\xad\xb6\xb7]"
    rb"|\x96[\xba\xbb\xbf]|\x98[\x9f\xb4\xb6\xb7]|\x9e\x9b|\xab\x9c|\xac\xba|[\xb2\xb3])"
)
UNICODE_17_LEADS = (b"\xe0", b"\xe1", b"\xea", b"\xf0")  # for speed: they all begin with one
# gigatoken's names of the patterns that belong to tiktoken's published vocabularies
SCHEMES = {"cl100k_base": "cl100k", "o200k_base": "o200k"}


class EncodersDisagreeError(Exception):
    """gigatoken gave other ids than tiktoken: what it encoded in this run is not to be trusted."""


def make_encoder(tokenizer: Tokenizer, *, fast: bool = True) -> tuple[str, Encode]:
    """Return the name of the library that encodes, and the function that does it.

    ``fast=False`` gives tiktoken's function; gigatoken's is Judged.
    """
    if isinstance(tokenizer, CharTokenizer):
        return "characters", _character_encoder(tokenizer)
    encoder = _gigatoken(tokenizer) if fast else None
    if encoder is None:
        return "tiktoken", _tiktoken_encoder(tokenizer)
    return "gigatoken", Judged(encoder, tokenizer)


def _gigatoken(tokenizer: BytePairTokenizer) -> Any:
    """Return gigatoken's encoder of the tokenizer, or None where it has none."""
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


def _character_encoder(tokenizer: CharTokenizer) -> Encode:
    code_points = np.array([ord(c) for c in tokenizer.characters], np.int64)
    unknown = len(code_points)
    table = np.full(sys.maxunicode + 1, unknown, np.uint32)  # one entry a code point: 4.5 MB
    table[code_points] = np.arange(unknown, dtype=np.uint32)

    def encode(text: bytes) -> PieceIds:
        ids: PieceIds = table[np.frombuffer(text.decode("utf-8").encode("utf-32-le"), "<u4")]
        if (ids == unknown).any():
            raise DataError(
                "The sources changed while they were read: a character is there now that was not "
                "when they were first read. Run it again when they are complete."
            )
        return ids

    return lambda texts: [encode(text) for text in texts]


def _tiktoken_encoder(tokenizer: BytePairTokenizer) -> Encode:
    from concurrent.futures import ThreadPoolExecutor

    # tiktoken lets go of the interpreter, so threads are enough for all cores
    pool = ThreadPoolExecutor(os.cpu_count())
    return lambda texts: list(pool.map(partial(_tiktokens_ids, tokenizer), texts))


def _tiktokens_ids(tokenizer: BytePairTokenizer, text: bytes) -> PieceIds:
    try:
        return tokenizer.encode_array(text.decode("utf-8"))
    except ValueError:  # it gives up on about a million blanks in a row, and on other such runs
        half = text[: len(text) // 2]
        border = SAFE_SPLIT.match(half)
        cut = border.end() if border else utf8_prefix_len(half)
        if not cut:
            raise
        parts = [_tiktokens_ids(tokenizer, part) for part in (text[:cut], text[cut:])]
        return np.concatenate(parts)


def _has_unicode_17(text: bytes) -> bool:
    return any(lead in text for lead in UNICODE_17_LEADS) and bool(UNICODE_17.search(text))


class Judged:
    """gigatoken's encoding, a sample of it compared with tiktoken's."""

    def __init__(self, encoder: Any, tokenizer: BytePairTokenizer) -> None:
        self.n_left = JUDGE_FIRST  # pieces that tiktoken is to encode too, drawn or not
        self._encode = encoder.encode
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._judge: ForkedProcess | None = None  # None: this process compares

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside of this let another process compare: it takes half as long as encoding does."""
        with forked(partial(_compare, self._tokenizer)) as self._judge:
            try:
                yield
            finally:
                self._judge = None

    def __call__(self, texts: list[bytes]) -> list[PieceIds]:
        """Return gigatoken's ids of each text, or tiktoken's where the two cannot agree.

        Raises: EncodersDisagreeError, unless another process compares: then ``settle`` does.
        """
        rows = []
        for text in texts:
            if not text.isascii() and _has_unicode_17(text):
                rows.append(_tiktokens_ids(self._tokenizer, text))
                continue
            ids = self._encode(text)
            if self.n_left > 0 or xxhash.xxh3_64_intdigest(text) % JUDGE_ONE_IN == 0:
                self.n_left -= 1
                self._ask(text, _digest(ids))
            # A copy: what gigatoken returns lies in a buffer as large as the text could need.
            rows.append(ids.astype(self._dtype))
        return rows

    def _ask(self, text: bytes, digest: bytes) -> None:
        if self._judge is not None:
            self._judge.send(digest + text)
        elif not _is_right(self._tokenizer, text, digest):
            raise EncodersDisagreeError

    def settle(self) -> None:
        """Wait until all texts that were drawn are compared.

        Raises: EncodersDisagreeError; ForkedProcessDiedError.
        """
        if self._judge is not None:
            self._judge.send(b"")
            if self._judge.recv() != RIGHT:
                raise EncodersDisagreeError


def _compare(tokenizer: BytePairTokenizer, there: Connection) -> None:
    """Compare what comes, a digest of ids and their text; answer an empty message.

    What waits is taken in first, up to a limit, so that the other process need not wait.
    """
    verdict = RIGHT
    os.nice(10)  # only the end of a part waits for it
    waiting: deque[bytes] = deque()
    n_bytes = 0
    while True:
        while not waiting or (n_bytes < WAITING_BYTES and there.poll()):
            waiting.append(there.recv_bytes())
            n_bytes += len(waiting[-1])
        message = waiting.popleft()
        n_bytes -= len(message)
        if not message:
            there.send_bytes(verdict)
        elif not _is_right(tokenizer, message[DIGEST_BYTES:], message[:DIGEST_BYTES]):
            verdict = WRONG


def _is_right(tokenizer: BytePairTokenizer, text: bytes, digest: bytes) -> bool:
    try:
        expected = tokenizer.encode_array(text.decode("utf-8"))
    except ValueError:  # the judge itself gives up on this text
        return True
    return _digest(expected) == digest


def _digest(ids: PieceIds) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(ids, np.uint32).data)
