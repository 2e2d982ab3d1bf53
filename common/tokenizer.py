"""Text <-> token ids, by byte pairs or characters; saved beside the data and in every checkpoint.

    text --encode--> ids --decode_bytes--> UTF-8 bytes of the same text

A tokenizer is one vocabulary file and a description (kind, pattern, special tokens), which the
folder's JSON carries. Text is always encoded as ordinary text: what looks like a special token in
it yields ordinary ids, and a special id only ever comes from the program. A third kind, which only
train import makes, is in huggingface/json_tokenizer.py.
"""

import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError, explained
from common.files import atomic_write
from common.huggingface.json_tokenizer import JsonTokenizer

if TYPE_CHECKING:
    import tiktoken

MAX_RANKS = 1 << 24  # of a vocabulary that is read; the largest published have 200,000
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

# How GPT-2 cuts text into words before pairs are merged, in the equal but faster form that
# tiktoken publishes as r50k. Source: Radford et al. 2019, released code, encoder.py.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def special_ids_after(n_ordinary: int) -> dict[str, int]:
    """Return ids for the special tokens of a vocabulary learned here: those after its last."""
    return {token: n_ordinary + i for i, token in enumerate(SPECIAL_TOKENS)}


@dataclass(frozen=True)
class BytePairTokenizer:
    """Byte-pair encoding: tiktoken's, over ``ranks`` that were learned here or published.

    Source: Sennrich et al. 2016, section 3.2 (arXiv:1508.07909), on bytes as in GPT-2.
    """

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]

    kind = "bpe"
    file_name = "vocab.tiktoken"

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(max(self.ranks.values()), max(self.special_tokens.values())) + 1

    @property
    def eot_id(self) -> int:
        """The id that ends every document."""
        return self.special_tokens[END_OF_TEXT]

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        import tiktoken  # here: of two processes that prepare, only one needs it

        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={}
        )

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, in order of ids; empty for special ids and for gaps."""
        table = [b""] * self.vocab_size
        for token, rank in self.ranks.items():
            table[rank] = token
        return table

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` as ordinary text; raise DataError where tiktoken panics."""
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # raised from Rust; no name to import
                raise
            raise DataError(
                f"tiktoken gave up on a text of {len(text):,} characters, which happens on runs of "
                "about a million blanks: shorten such runs in the source."
            ) from error

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of ``text``, which holds no lone surrogates, without a list in between."""
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def missing(self, text: str) -> list[str]:
        """Return the characters of ``text`` that cannot be encoded: none, as any byte can be."""
        return []

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 bytes of ``ids``; special ids add none."""
        return b"".join(self.token_bytes[i] for i in ids)

    @cached_property
    def file_content(self) -> bytes:
        """The ranks in tiktoken's own format: base64 of the token, space, rank."""
        in_order = sorted(self.ranks.items(), key=itemgetter(1))
        encode = binascii.b2a_base64
        return b"".join([encode(t, newline=False) + b" %d\n" % rank for t, rank in in_order])


@dataclass(frozen=True)
class CharTokenizer:
    """One id a character, in code-point order; characters outside the vocabulary have none."""

    characters: tuple[str, ...]

    kind = "char"
    name = "char"
    file_name = "vocab.json"

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens: those after the last character's."""
        return special_ids_after(len(self.characters))

    @property
    def vocab_size(self) -> int:
        """Characters plus special tokens."""
        return len(self.characters) + len(self.special_tokens)

    @property
    def eot_id(self) -> int:
        """The id that ends every document."""
        return self.special_tokens[END_OF_TEXT]

    @cached_property
    def id_of(self) -> dict[str, int]:
        """The id of each character."""
        return {character: i for i, character in enumerate(self.characters)}

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes of each id, in order of ids; empty for special ids."""
        return [c.encode("utf-8") for c in self.characters] + [b""] * len(self.special_tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, leaving out the characters that ``missing`` names."""
        return [self.id_of[c] for c in text if c in self.id_of]

    def missing(self, text: str) -> list[str]:
        """Return the distinct characters of ``text`` that the vocabulary lacks, in order."""
        return [c for c in dict.fromkeys(text) if c not in self.id_of]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 bytes of ``ids``; special ids add none."""
        return b"".join(self.token_bytes[i] for i in ids)

    @property
    def file_content(self) -> bytes:
        """The characters as a JSON list, so that a newline is safe among them."""
        return (json.dumps(self.characters, ensure_ascii=False) + "\n").encode("utf-8")


Tokenizer = BytePairTokenizer | CharTokenizer | JsonTokenizer


def tiktoken_tokenizer(name: str, hint: str = "") -> BytePairTokenizer:
    """Return the vocabulary that tiktoken publishes under this name.

    It keeps its own end-of-text id; the other special tokens come after its last. Raise DataError,
    with the ``hint``, where tiktoken has no such name, or its file is not to be had.
    """
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        raise DataError(
            f"--tokenizer {name}: not bpe, not char, no file of that name, and tiktoken knows only "
            f"{', '.join(sorted(tiktoken.list_encoding_names()))}.{hint}"
        )
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        raise DataError(
            f"--tokenizer {name}: its vocabulary is not on this machine and could not be fetched "
            f"({type(error).__name__}). Set TIKTOKEN_CACHE_DIR to a folder that holds it, or use "
            "--tokenizer bpe, which needs no network."
        ) from error
    # -1: those after its last id, but for the first of them, which it has
    special_tokens = special_ids_after(encoding.n_vocab - 1) | {END_OF_TEXT: encoding.eot_token}
    return BytePairTokenizer(
        name, encoding._pat_str, dict(encoding._mergeable_ranks), special_tokens
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the vocabulary file into ``folder``; its description goes into the folder's JSON."""
    with atomic_write(folder / tokenizer.file_name) as file:
        file.write(tokenizer.file_content)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return, as JSON, what ``load_tokenizer`` needs beside the vocabulary file."""
    description: dict[str, Any] = {
        "kind": tokenizer.kind,
        "name": tokenizer.name,
        "file": tokenizer.file_name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "special_tokens": tokenizer.special_tokens,
    }
    if isinstance(tokenizer, BytePairTokenizer):
        description["pattern"] = tokenizer.pattern
    return description


def load_tokenizer(folder: Path, description: dict[str, Any]) -> Tokenizer:
    """Read back what save_tokenizer wrote; raise DataError where it is missing or does not fit."""
    path = folder / description["file"]
    tokenizer: Tokenizer
    if description["kind"] == "char":
        tokenizer = CharTokenizer(_read_characters(path))
    elif description["kind"] == "tokenizers":
        tokenizer = JsonTokenizer(_read(path), description["special_tokens"])
        with explained(f"{path}: not a tokenizer.json that can be read", kind=DataError):
            tokenizer.library.get_vocab_size()
    else:
        name, pattern, special = itemgetter("name", "pattern", "special_tokens")(description)
        tokenizer = BytePairTokenizer(name, pattern, read_ranks(path), special)
    if tokenizer.vocab_size != description["vocab_size"]:
        raise DataError(
            f"{path}: gives {tokenizer.vocab_size:,} ids, but the folder's description promises "
            f"{description['vocab_size']:,}: the file belongs to another vocabulary."
        )
    return tokenizer


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _read_characters(path: Path) -> tuple[str, ...]:
    try:
        characters = json.loads(_read(path))
        is_list = isinstance(characters, list)
        if not is_list or not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise ValueError("it holds something else")
    except ValueError as error:
        raise DataError(f"{path}: not a JSON list of single characters ({error}).") from error
    return tuple(characters)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a vocabulary in tiktoken's format; raise DataError that names a line in another."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
            if len(ranks) != number or not 0 <= int(rank) < MAX_RANKS:
                raise ValueError
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not tiktoken's format, which is the base64 of a token, "
                "a space and its rank, each once."
            ) from error
    if len(set(ranks.values())) != len(ranks):
        raise DataError(f"{path}: several tokens have the same rank: no byte-pair vocabulary.")
    lacking = sum(bytes([byte]) not in ranks for byte in range(256))
    if lacking:
        raise DataError(
            f"{path}: {lacking} of the 256 single bytes have no rank: some texts would have no ids."
        )
    return ranks
