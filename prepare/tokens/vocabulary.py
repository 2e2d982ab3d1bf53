"""The vocabulary: learned from texts by gigatoken, one that tiktoken publishes, or a file's.

Source: byte-pair encoding, Sennrich et al. 2016 (arXiv:1508.07909), on the bytes of words cut out
by GPT-2's pattern. The tests hold gigatoken against that algorithm in Python.
"""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.dataset import META_NAME, open_data
from common.errors import DataError, defer_signals
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    read_ranks,
    special_ids_after,
)
from prepare.chunks import split_prefix_len

log = logging.getLogger(__name__)

MIN_AUTO_IDS, MAX_AUTO_IDS = 512, 32_768  # below, words are spelt out; above, few are still met
MAX_WORD_BYTES = 10_000  # a word of a million blanks takes gigatoken 15 s to learn from: the square


def auto_vocab_size(n_train_bytes: int) -> int:
    """Return how many ids to learn: the square root of the bytes, as the nearest power of two.

    Measured in bits per byte at equal training time, from 0.25 to 7 MB; above that it is the same
    line drawn on. Source: tests/bench/VOCABULARY.md.

    Example: 225,000 bytes -> 512; 7,000,000 -> 2,048; 100,000,000 -> 8,192.
    """
    size: int = 2 ** round(math.log2(max(1, n_train_bytes)) / 2)
    return min(max(size, MIN_AUTO_IDS), MAX_AUTO_IDS)


def train_bpe(texts: list[bytes], vocab_size: int) -> BytePairTokenizer:
    """Learn ``vocab_size`` byte pairs (fewer where the text has no more) from ``texts``.

    The most frequent pair is merged first; of equally frequent ones that of the smaller ids.
    """
    try:
        import gigatoken
    except ImportError as error:
        raise DataError(
            "--tokenizer bpe needs the package gigatoken: .venv/bin/pip install -r requirements.txt"
        ) from error
    # Words do not reach across a separator that is no text: 0xff occurs in no UTF-8.
    corpus = b"\xff".join(part for text in texts for part in _without_long_words(text))
    # Ctrl-C cannot end native code; raised right behind it, it would leave stderr silent.
    with defer_signals(), _output_discarded():
        learned, _ = gigatoken.train_bpe(
            corpus, vocab_size, [], tie_breaking="raw_token_ids", separator=b"\xff"
        )
    # Two pairs can make the same bytes (aa + aa, aaa + a); the later one is no new token.
    tokens = dict.fromkeys(learned[i] for i in range(len(learned)))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return BytePairTokenizer("bpe", GPT2_PATTERN, ranks, special_ids_after(len(ranks)))


def _without_long_words(text: bytes) -> Iterator[bytes]:
    """Cut a text between words, and words of more than MAX_WORD_BYTES inside."""
    start = 0
    while len(text) - start > MAX_WORD_BYTES:
        part = text[start : start + MAX_WORD_BYTES]
        n_bytes, _ = split_prefix_len(part)
        part = part[:n_bytes]
        yield part
        start += len(part)
    yield text[start:]


@contextmanager
def _output_discarded() -> Iterator[None]:
    """Send what native code prints to stdout and stderr nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {target: os.dup(target) for target in (1, 2)}
    try:
        with open(os.devnull, "wb") as nowhere:
            for target in saved:
                os.dup2(nowhere.fileno(), target)
        yield
    finally:
        for target, descriptor in saved.items():
            os.dup2(descriptor, target)
            os.close(descriptor)


def published_tokenizer(name: str) -> BytePairTokenizer:
    """Return the vocabulary of a .tiktoken file, or tiktoken's of this name.

    tiktoken's keeps its own end-of-text id; the other special tokens come after its last.

    Raises: DataError when tiktoken has no such name, or the file can neither be found nor fetched.
    """
    if Path(name).is_file():
        return file_tokenizer(Path(name))
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
    after = [token for token in SPECIAL_TOKENS if token != END_OF_TEXT]
    special_tokens = {END_OF_TEXT: encoding.eot_token} | {
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
