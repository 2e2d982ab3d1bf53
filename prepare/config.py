"""Settings of ``prepare text``: each one's type, default and meaning, once."""

import codecs
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError
from common.settings import check_ranges, setting

MIN_LEARNED_IDS = 256  # the single bytes
MAX_LEARNED_IDS = (1 << 16) - 5  # with the special tokens, ids stay within uint16


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What decides the bytes that prepare writes, beside the sources."""

    tokenizer: str = setting(
        "bpe",
        "bpe (learned from the training split), char, a tiktoken name (gpt2, o200k_base, ...), "
        "or a .tiktoken file.",
    )
    vocab_size: str = setting(
        "auto", "Ids to learn for bpe, special ones apart; auto: by the size of the corpus."
    )
    text_key: str = setting(
        "text",
        "Key (or column) that holds the text in JSON, CSV, parquet and data sets; a.b: b in a, or "
        "in each item of a, joined.",
    )
    separator: str | None = setting(
        None, r"Cut each plain file into documents at this text; \n and \t are understood."
    )
    encoding: str = setting(
        "auto", "Of plain files: auto (UTF-8, a byte-order mark, else detected), or a codec's name."
    )
    newlines: Literal["lf", "keep"] = setting(
        "lf",
        "lf: CR LF in plain files becomes LF, and so does CR that ends all lines of one.",
    )
    strip_gutenberg: bool = setting(
        False, "Cut Project Gutenberg's header and licence off plain files."
    )
    collapse_newlines: bool = setting(
        False, "Strip documents and make three or more newlines two, as OpenWebText at the hub."
    )
    on_bad_bytes: Literal["replace", "skip", "fail"] = setting(
        "replace", "What to do with a document that is not UTF-8: put U+FFFD, leave it out, stop."
    )
    on_error: Literal["fail", "skip"] = setting(
        "fail", "What to do with a damaged file or record: stop, or leave it out and list it."
    )
    max_ratio: float = setting(
        1000, "Refuse archives that expand to more than this many times their size.", at_least=1
    )
    dedup: Literal["none", "exact"] = setting(
        "none", "exact: of documents that are equal only the first stays."
    )
    split_rule: Literal["auto", "hash", "tail"] = setting(
        "auto",
        "hash: whole documents, by a hash of their content; tail: the end of each document; "
        "auto: tail below 1,000 documents.",
    )
    val_fraction: float = setting(
        0.1, "Share of the text set aside for validation.", at_least=0, below=1
    )
    seed: int = setting(
        1337, "Another seed puts other documents into val.", at_least=0, below=1 << 64
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        is_number = self.vocab_size.isdecimal()
        if self.vocab_size != "auto" and not (
            is_number and MIN_LEARNED_IDS <= int(self.vocab_size) <= MAX_LEARNED_IDS
        ):
            raise ConfigError(
                f"--vocab-size is {self.vocab_size!r}: it must be auto, or a number from "
                f"{MIN_LEARNED_IDS} (the single bytes) to {MAX_LEARNED_IDS:,}."
            )
        if self.encoding == "auto":
            return
        try:
            b"x".decode(self.encoding, "replace")
            codecs.getincrementaldecoder(self.encoding)
        except (LookupError, ValueError) as error:
            raise ConfigError(
                f"--encoding {self.encoding}: Python has no such text encoding ({error}). Use "
                "auto, or a name such as utf-8, cp1252, koi8-r, shift_jis or gb18030."
            ) from error
