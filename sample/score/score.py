"""How surprised a network is by a text: loss, perplexity, bits per byte, and each token's share.

    file -> text in chunks -> ids -> windows that overlap -> one logprob a token

A window is a whole context and moves on by ``stride`` tokens; of each only the tokens that the one
before it did not reach are counted. So every token but those of the first window is predicted from
at least block_size - stride tokens. With a stride of block_size windows stand end to end, as in
training's evaluation. Memory does not grow with the text.
"""

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from common.errors import DataError
from common.inference.backend import Backend, KVCache
from common.inference.decoder import Token
from common.tokenizer import Tokenizer

READ_BYTES = 1 << 16
# Text is encoded in chunks that end before a blank behind a letter or digit: there every published
# way of cutting text into words begins a new one, so the ids are those of the whole text.
CHUNK_CHARACTERS = 1 << 18
WORD_END = re.compile(r"\w(?= )")


@dataclass
class Score:
    """The sum over a text."""

    nats: float = 0.0
    n_tokens: int = 0
    n_bytes: int = 0

    def add(self, tokens: Iterable[Token], tokenizer: Tokenizer) -> None:
        """Add more of the text; end-of-text stands for no byte."""
        for token in tokens:
            self.nats -= token.logprob
            self.n_tokens += 1
            self.n_bytes += len(tokenizer.token_bytes[token.idx])

    @property
    def loss(self) -> float:
        """Mean loss, nats a token."""
        return self.nats / max(1, self.n_tokens)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinite where it has no float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bpb(self) -> float:
        """Bits a byte of text, which compares between vocabularies."""
        return self.nats / math.log(2) / max(1, self.n_bytes)


def read_text(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield a file's text in chunks.

    Raises: DataError where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_read = 0
    try:
        while chunk := file.read(READ_BYTES):
            n_read += len(chunk)
            if text := decoder.decode(chunk):
                yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        position = n_read - len(error.object) + error.start
        raise DataError(
            f"{name}: not UTF-8 at byte {position:,} ({error.reason}). Convert it "
            "first, as in: iconv -f latin1 -t utf-8"
        ) from error


def encode_chunks(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the ids of a text that comes in chunks: together those of the whole."""
    held: list[str] = []
    n_held = 0
    for text in texts:
        held.append(text)
        n_held += len(text)
        if n_held < CHUNK_CHARACTERS:
            continue
        whole = "".join(held)
        ends = [match.end() for match in WORD_END.finditer(whole, n_held // 2)]
        if not ends:
            continue  # no blank so far: text that has none is held as a whole
        yield tokenizer.encode(whole[: ends[-1]])
        held, n_held = [whole[ends[-1] :]], n_held - ends[-1]
    yield tokenizer.encode("".join(held))


def score_ids(
    backend: Backend, chunks: Iterable[list[int]], before: int, stride: int
) -> Iterator[list[Token]]:
    """Yield the tokens of ``chunks``, window by window, each with its logprob.

    ``before`` is the id that precedes the text: end-of-text. ``stride`` is from 1 to block_size.
    """
    block_size = backend.config.block_size
    cache = backend.make_cache(1)
    ids = [before]  # from the window's first input on
    n_scored = 0  # of them, behind the first
    for chunk in chunks:
        ids += chunk
        while len(ids) > block_size:
            yield _score_window(cache, ids[: block_size + 1], n_scored)
            ids = ids[stride:]
            n_scored = block_size - stride
    if len(ids) - 1 > n_scored:
        yield _score_window(cache, ids, n_scored)


def _score_window(cache: KVCache, ids: list[int], n_skipped: int) -> list[Token]:
    """Score ids[1 + n_skipped :], each from all before it."""
    targets = ids[1 + n_skipped :]
    logprobs: list[float] = []
    for _, (logits, logsumexp) in cache.prefill([(0, ids[:-1])], len(targets)):
        chosen = targets[len(logprobs) : len(logprobs) + len(logits)]
        logprobs += (logits[np.arange(len(logits)), chosen] - logsumexp).tolist()
    return [Token(idx, logprob) for idx, logprob in zip(targets, logprobs, strict=True)]
