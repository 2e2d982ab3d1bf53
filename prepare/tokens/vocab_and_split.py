"""What the first pass decides: the vocabulary, and which document is train and which is val.

The vocabulary is learned from texts by gigatoken, is one that tiktoken publishes, or a file's. The
side is a pure function of a document's content. So the split is the same for any order of files and
on any machine, stays as it is when more documents come later, and exact duplicates never stand on
both sides.

Source: byte-pair encoding, Sennrich et al. 2016 (arXiv:1508.07909), on the bytes of words cut out
by GPT-2's pattern. The tests hold gigatoken against that algorithm in Python.
"""

import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import xxhash

from common.dataset import Split
from common.errors import DataError, defer_signals
from common.files import write_json
from common.tokenizer import (
    GPT2_PATTERN,
    BytePairTokenizer,
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
    read_ranks,
    save_tokenizer,
    special_ids_after,
    tiktoken_tokenizer,
)
from prepare.chunks import split_prefix_len
from prepare.config import PrepareConfig
from prepare.sources.vocabulary import described_vocabulary

log = logging.getLogger(__name__)

# Below this many documents a split by document is too coarse: one in ten of 30 says little.
MIN_DOCUMENTS = 1_000
FILE_NAME = "plan.json"
MIN_AUTO_IDS, MAX_AUTO_IDS = 512, 32_768  # below, words are spelt out; above, few are still met
MAX_WORD_BYTES = 10_000  # a word of a million blanks takes gigatoken 15 s to learn from: the square
# Where no blanks are, hardly a word is met twice, and each byte of them takes gigatoken 45: beyond
# this much of them, no more texts are learned from. English has 30 MB of text in the same memory.
MAX_UNBROKEN_BYTES = 4 << 20
UNBROKEN_BYTES = 128  # a word between blanks from here on is none, in any language
# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer
NO_BLANKS = re.compile(
    rb"(?:[\xe3-\xe9][\x80-\xbf]{2}|\xe0[\xb8-\xbf][\x80-\xbf]"
    rb"|\xe1[\x80-\x82\x9e\x9f][\x80-\xbf]){4,}"
)

# (task, document, bytes) of documents in several chunks; a list, as it is in JSON
Lengths: TypeAlias = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How documents are encoded and split.

    It goes to other processes without its vocabulary, which they read from ``folder``: through a
    pipe, which does not hold it, each worker would begin only when the one before it is there to
    take it.
    """

    folder: Path
    tokenizer: Tokenizer
    rule: str  # hash, tail or files
    lengths: Lengths

    def __getstate__(self) -> dict[str, Any]:
        vocabulary = describe_tokenizer(self.tokenizer)
        return vars(self) | {"folder": self.folder.absolute(), "tokenizer": vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = load_tokenizer(state["folder"], state["tokenizer"])
        vars(self).update(state | {"tokenizer": tokenizer})

    def save(self, key: str) -> None:
        """Write it into ``folder``, under the ``key`` of the sources and options."""
        save_tokenizer(self.tokenizer, self.folder)
        state = self.__getstate__() | {"folder": None, "key": key}
        write_json(self.folder / FILE_NAME, state)

    @classmethod
    def load(cls, folder: Path, key: str) -> "Plan | None":
        """Read back what a run of the same sources and options saved before it was stopped."""
        try:
            state = json.loads((folder / FILE_NAME).read_bytes())
        except (OSError, ValueError):
            return None
        if state.pop("key") != key:
            return None
        tokenizer = load_tokenizer(folder, state["tokenizer"])
        return cls(**state | {"folder": folder, "tokenizer": tokenizer})


def unit_hash(digest: bytes, seed: int) -> float:
    """Return a number in [0, 1) that depends on nothing but a text's XXH3 of 128 bits and the seed.

    Source: XXH3, github.com/Cyan4973/xxHash, whose values no later version changes.
    """
    return xxhash.xxh3_64_intdigest(digest, seed) / 2**64


def split_of(digest: bytes, config: PrepareConfig) -> Split:
    """Return the side that a whole document of this XXH3 belongs to, where its content decides."""
    return "val" if unit_hash(digest, config.seed) < config.val_fraction else "train"


def tail_cut(n_bytes: int, val_fraction: float) -> int:
    """Return where the last tenth of a document of ``n_bytes`` begins, maybe in a character."""
    return int(n_bytes * (1 - val_fraction))


def character_at(text: bytes, cut: int) -> int:
    """Return where the first character begins that does not begin before ``cut``."""
    while cut < len(text) and text[cut] & 0xC0 == 0x80:  # a byte that continues a character
        cut += 1
    return cut


def split_document(
    text: bytes, digest: bytes, rule: str, config: PrepareConfig, *, val: bool
) -> list[tuple[Split, bytes]]:
    """Return the split, or the two splits, that a document belongs to, with its text there.

    ``digest`` is its XXH3; ``val``: it comes from one of --val-files.
    """
    if rule == "files":
        return [("val" if val else "train", text)]
    if rule == "hash":
        return [(split_of(digest, config), text)]
    cut = character_at(text, tail_cut(len(text), config.val_fraction))
    halves: list[tuple[Split, bytes]] = [("train", text[:cut]), ("val", text[cut:])]
    return [(split, part) for split, part in halves if part]


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
    if find_spec("gigatoken") is None:
        raise DataError(
            "--tokenizer bpe needs the package gigatoken: .venv/bin/pip install -r requirements.txt"
        )
    # Words do not reach across a separator that is no text: 0xff occurs in no UTF-8.
    chosen = _until_too_unbroken(texts)
    corpus = b"\xff".join(part for text in chosen for part in _without_long_words(text))
    command = [sys.executable, "-P", str(Path(__file__).with_name("learn_bpe.py")), str(vocab_size)]
    process = None
    try:
        with defer_signals():  # it does not hear Ctrl-C, which ends the waiting for it
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        learned, _ = process.communicate(corpus)
    finally:
        if process is not None:
            process.kill()
            process.wait()
    if process.returncode:
        raise DataError(
            f"The process that learns the vocabulary ended with {process.returncode}: it was "
            "killed, or there was no memory left for it. Run the same command again, or take a "
            "vocabulary that is there: --tokenizer gpt2."
        )
    # Two pairs can make the same bytes (aa + aa, aaa + a); the later one is no new token.
    tokens = dict.fromkeys(map(bytes.fromhex, learned.decode("ascii").split()))
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return BytePairTokenizer("bpe", GPT2_PATTERN, ranks, special_ids_after(len(ranks)))


def _until_too_unbroken(texts: list[bytes]) -> Iterator[bytes]:
    """Yield texts, all or the first, which hold MAX_UNBROKEN_BYTES of script without blanks."""
    n_bytes = 0
    for text in texts:
        yield text
        found = NO_BLANKS.findall(text) if not text.isascii() else []
        n_bytes += sum(map(len, found or (w for w in text.split() if len(w) >= UNBROKEN_BYTES)))
        if n_bytes >= MAX_UNBROKEN_BYTES:
            return


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


def named_tokenizer(name: str) -> Tokenizer:
    """Return the vocabulary of a data folder, a run or a checkpoint, or a published one."""
    if described := described_vocabulary(name):
        return load_tokenizer(described[0], described[1]["tokenizer"])
    if Path(name).is_dir():
        raise DataError(
            f"--tokenizer {name}: a folder without a vocabulary: no data set, no checkpoint, and "
            "no run that has one. Name the run that you will fine-tune (runs/NAME), or its data."
        )
    return published_tokenizer(name)


def published_tokenizer(name: str) -> BytePairTokenizer:
    """Return the vocabulary of a .tiktoken file, or tiktoken's of this name."""
    if Path(name).is_file():
        return file_tokenizer(Path(name))
    run = Path("runs", name)
    hint = f" The run of that name is {run}." if described_vocabulary(str(run)) else ""
    return tiktoken_tokenizer(name, hint)


def file_tokenizer(path: Path) -> BytePairTokenizer:
    """Return the vocabulary in a bare .tiktoken file, cut into words in GPT-2's way, which is said.

    A file that lies in a data folder or a checkpoint is read with what that says of it.
    """
    if path.suffix in (".json", ".model"):
        raise DataError(
            f"--tokenizer {path}: a vocabulary of another library (tokenizer.json, SentencePiece), "
            "which is not read here. Name a .tiktoken file, one of tiktoken's names, or bpe."
        )
    ranks = read_ranks(path)
    log.warning("%s: such a file does not say how text is cut into words; using GPT-2's way.", path)
    return BytePairTokenizer(
        path.stem, GPT2_PATTERN, ranks, special_ids_after(max(ranks.values()) + 1)
    )
