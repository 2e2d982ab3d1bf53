"""Settings of prepare text and prepare chats: each one's type, default and meaning, once."""

import codecs
from dataclasses import dataclass
from typing import ClassVar, Literal

from common.errors import ConfigError
from common.settings import check_ranges, setting

MIN_LEARNED_IDS = 256  # the single bytes
MAX_LEARNED_IDS = (1 << 16) - 5  # with the special tokens, ids stay within uint16


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What decides the bytes that prepare writes, beside the sources."""

    is_chats: ClassVar[bool] = False

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


NOT_OF_CHATS = (  # settings of text that say nothing of conversations
    *("vocab_size", "text_key", "separator", "newlines", "strip_gutenberg", "collapse_newlines"),
    *("on_bad_bytes", "split_rule"),
)


@dataclass(frozen=True, kw_only=True)
class ChatsConfig(PrepareConfig):
    """The same of conversations."""

    is_chats: ClassVar[bool] = True

    tokenizer: str = setting(
        "data",
        "Whose vocabulary: the data folder's, run's (runs/NAME) or checkpoint's that will be "
        "fine-tuned; or a tiktoken name (gpt2, ...), or a vocabulary file.",
    )
    context: int = setting(
        0,
        "Ids that a conversation may have: a longer one is cut between turns. auto or 0: the "
        "context of the run that --tokenizer names, else 1,024.",
        at_least=0,
        auto=True,
    )
    fields: str | None = setting(
        None, "Keys or columns that hold question and answer, as in question,answer; a.b: b in a."
    )
    speakers: str | None = setting(
        None, 'Of plain text with "NAME: " before each message: the names, as in User,Bot.'
    )
    me: str | None = setting(
        None,
        "Who of them, or in an export of WhatsApp or Discord, speaks as the assistant; of "
        "--speakers by default the last.",
    )
    split_rule: Literal["auto", "hash", "tail"] = "hash"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer in ("bpe", "char"):
            raise ConfigError(
                f"--tokenizer {self.tokenizer}: conversations are encoded by the vocabulary of the "
                "run that is fine-tuned on them: name that run (runs/NAME), or its data."
            )
        for name in ("fields", "speakers"):
            value: str | None = getattr(self, name)
            names = [part.strip() for part in (value or "").split(",")]
            if value is not None and (len(names) < 2 or not all(names)):
                raise ConfigError(f"--{name} {value}: two names are needed, with a comma between.")
        if self.fields is not None and self.fields.count(",") > 1:
            raise ConfigError(f"--fields {self.fields}: two names only, a question's, an answer's.")
