"""Get a vocabulary: learned from the training split, the characters of the corpus, or published.

Source of the learning: byte-pair encoding, Sennrich et al. 2016 (arXiv:1508.07909), on the bytes
of words cut out by GPT-2's pattern.
"""

import heapq
import logging
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common.dataset import META_NAME, open_data
from common.errors import ConfigError, DataError
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    read_ranks,
    special_ids_after,
)
from prepare.forked import defer_signals
from prepare.readers.chunks import SAFE_SPLIT, utf8_prefix_len

log = logging.getLogger(__name__)

MIN_LEARNED_IDS = 256  # the single bytes
MIN_AUTO_IDS, MAX_AUTO_IDS = 512, 32_768  # below, words are spelt out; above, few are still met
MAX_WORD_BYTES = 10_000  # a word of a million blanks takes gigatoken 15 s to learn from: the square
MAX_LEARNED_IDS = (1 << 16) - len(SPECIAL_TOKENS)  # ids stay within uint16


def auto_vocab_size(n_train_bytes: int) -> int:
    """Return how many ids to learn: the square root of the bytes, as the nearest power of two.

    Measured in bits per byte at equal training time, from 0.25 to 7 MB; above that it is the same
    line drawn on. Source: tests/bench/VOCABULARY.md.

    Example: 225,000 bytes -> 512; 7,000,000 -> 2,048; 100,000,000 -> 8,192.
    """
    size: int = 2 ** round(math.log2(max(1, n_train_bytes)) / 2)
    return min(max(size, MIN_AUTO_IDS), MAX_AUTO_IDS)


def parse_vocab_size(value: str, n_train_bytes: int) -> int:
    """Return the number of ids that --vocab-size asks for.

    Raises: ConfigError when it is neither ``auto`` nor a number in range.
    """
    if value == "auto":
        return auto_vocab_size(n_train_bytes)
    if not value.isdecimal() or not MIN_LEARNED_IDS <= int(value) <= MAX_LEARNED_IDS:
        raise ConfigError(
            f"--vocab-size is {value!r}: it must be auto, or a number from {MIN_LEARNED_IDS} (the "
            f"single bytes) to {MAX_LEARNED_IDS:,}."
        )
    return int(value)


class Sampled(NamedTuple):
    """A piece of a document that a vocabulary may be learned from."""

    fraction: float  # its hash, from 0 to 1
    text: bytes
    start: int  # where it begins in its document
    n_document_bytes: int
    in_val: bool  # where documents are split by their hash
    of_val_file: bool


class Sample:
    """At most ``max_bytes`` of pieces, chosen by hash: the same in any order.

    Kept are the pieces with the smallest hashes that fit (bottom-k sampling). One that did not
    fit bars all with larger hashes, also those that come later and would: else order would count.
    """

    def __init__(self, max_bytes: int, barred_from: float = 1.0) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.barred_from = barred_from  # the smallest hash that did not fit; every hash is below 1
        self._heap: list[tuple[float, Sampled]] = []  # largest hash first, by its negative

    def add(self, piece: Sampled) -> None:
        """Offer one piece."""
        if piece.fraction >= self.barred_from:
            return
        heapq.heappush(self._heap, (-piece.fraction, piece))
        self.size_bytes += len(piece.text)
        self._shrink()

    def merge(self, other: "Sample") -> None:
        """Take in another sample, as if all its pieces had been offered here."""
        self.barred_from = min(self.barred_from, other.barred_from)
        self._shrink()
        for piece in other.pieces():
            self.add(piece)

    def _shrink(self) -> None:
        while len(self._heap) > 1 and (
            self.size_bytes > self.max_bytes
            or -self._heap[0][0] >= self.barred_from  # equal to one that did not fit
        ):
            negative, left_out = heapq.heappop(self._heap)
            self.barred_from = min(self.barred_from, -negative)
            self.size_bytes -= len(left_out.text)

    def pieces(self) -> list[Sampled]:
        """Return the pieces kept, in the order of their hashes."""
        return [piece for _, piece in sorted(self._heap, reverse=True)]


def _without_long_words(text: bytes) -> Iterator[bytes]:
    """Cut a text between words, and words of more than MAX_WORD_BYTES inside."""
    start = 0
    while len(text) - start > MAX_WORD_BYTES:
        part = text[start : start + MAX_WORD_BYTES]
        border = SAFE_SPLIT.match(part)
        part = part[: border.end() if border else utf8_prefix_len(part)]
        yield part
        start += len(part)
    yield text[start:]


def learn_bpe(texts: list[bytes], vocab_size: int) -> BytePairTokenizer:
    """Learn ``vocab_size`` byte pairs (fewer where the text has no more) from ``texts``."""
    texts = [part for text in texts for part in _without_long_words(text)]
    try:
        import gigatoken
    except ImportError:
        log.warning("gigatoken is not installed: learning the vocabulary in Python, which is slow.")
        tokens = learn_in_python(texts, vocab_size)
    else:
        # Words do not reach across a separator that is no text: 0xff occurs in no UTF-8.
        # raw_token_ids: of equally frequent pairs that of the smaller ids, as learn_in_python does.
        # Ctrl-C cannot end native code; raised right behind it, it would leave stderr silent.
        with defer_signals(), _silenced():
            learned, _ = gigatoken.train_bpe(
                b"\xff".join(texts), vocab_size, [], tie_breaking="raw_token_ids", separator=b"\xff"
            )
        tokens = [learned[i] for i in range(len(learned))]
    # Two pairs can make the same bytes (aa + aa, aaa + a); the later one is no new token.
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    return BytePairTokenizer("bpe", GPT2_PATTERN, ranks, special_ids_after(len(ranks)))


@contextmanager
def _silenced() -> Iterator[None]:
    """Send what native code prints to stdout and stderr nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        for target, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.close(nowhere)


def learn_in_python(texts: list[bytes], vocab_size: int) -> list[bytes]:
    """Return the tokens of a vocabulary in order of rank: single bytes, then merged pairs.

    The most frequent pair is merged first; of equally frequent ones that of the smaller ids.
    """
    import regex  # comes with tiktoken

    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(w.encode("utf-8") for w in regex.findall(GPT2_PATTERN, text.decode("utf-8")))
    tokens = [bytes([byte]) for byte in range(256)]
    words = [list(word) for word in counts]
    weights = list(counts.values())
    pair_counts: Counter[tuple[int, int]] = Counter()
    words_with: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += weights[number]
            words_with[pair].add(number)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < vocab_size:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:  # an entry that later merges made stale
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        merged = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changed: set[tuple[int, int]] = set()
        for number in words_with.pop(pair):
            word, weight = words[number], weights[number]
            for old in pairwise(word):
                pair_counts[old] -= weight
            words[number] = word = _merge(word, pair, merged)
            for new in pairwise(word):
                pair_counts[new] += weight
                words_with[new].add(number)
                changed.add(new)
        for new in changed:
            if merged in new:
                heapq.heappush(heap, (-pair_counts[new], new))
    return tokens


def _merge(word: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            out.append(merged)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def published_tokenizer(name: str) -> BytePairTokenizer:
    """Return a tiktoken vocabulary by name, its own end-of-text id kept, the rest put after.

    Raises: DataError when tiktoken has no such name, or the file can neither be found nor fetched.
    """
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        raise DataError(
            f"--tokenizer {name}: not bpe, not char, no file of that name, and tiktoken knows only "
            f"{', '.join(sorted(tiktoken.list_encoding_names()))}."
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DataError(
            f"--tokenizer {name}: its vocabulary is not on this machine and could not be fetched "
            f"({type(error).__name__}). Set TIKTOKEN_CACHE_DIR to a folder that holds it, or use "
            "--tokenizer bpe, which needs no network."
        ) from error
    eot_id = encoding.eot_token
    after = [token for token in SPECIAL_TOKENS if token != END_OF_TEXT]
    special_tokens = {END_OF_TEXT: eot_id} | {
        token: encoding.n_vocab + i for i, token in enumerate(after)
    }
    return BytePairTokenizer(
        name, encoding._pat_str, dict(encoding._mergeable_ranks), special_tokens
    )


def file_tokenizer(path: Path) -> BytePairTokenizer:
    """Return the vocabulary in a .tiktoken file, with its own pattern if it lies in a data folder.

    A bare file carries no pattern; GPT-2's is used, and said.
    """
    if (path.parent / META_NAME).exists():
        tokenizer = open_data(path.parent).tokenizer()
        if isinstance(tokenizer, BytePairTokenizer) and path.name == tokenizer.file_name:
            return tokenizer
    log.warning("%s: such a file does not say how text is cut into words; using GPT-2's way.", path)
    ranks = read_ranks(path)
    return BytePairTokenizer(
        path.stem, GPT2_PATTERN, ranks, special_ids_after(max(ranks.values()) + 1)
    )
