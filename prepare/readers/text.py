r"""A plain text file of any length -> its documents.

    utf8_blocks -> _refuse_binary -> _normalize_newlines -> _strip_gutenberg
           -> _split (into documents) -> _replace_invalid

Each step is a generator from blocks to blocks, so that memory stays flat. No block ends inside a
character. What could not be decoded goes through the steps as bytes that occur in no UTF-8: only
_replace_invalid, behind the cut into documents, knows which one has to pay for them.
"""

import codecs
import re
from collections.abc import Iterator
from itertools import chain

from prepare.archives.streams import HEAD_BYTES, Stream
from prepare.chunks import DROP, END, MAX_CHUNK_BYTES, MORE, NAME, Chunk, Stats, UnreadableError
from prepare.config import PrepareConfig
from prepare.readers.encoding import utf8_blocks
from prepare.readers.foreign import text_taker, warn_of_markup

# Beyond this share of zero bytes a file is taken for binary: text has hardly any.
MAX_NUL_SHARE = 0.01
START_SEARCH_BYTES = 1 << 16  # Gutenberg's header is some 2 KB, of the 1990s some 12
GUTENBERG_START = re.compile(
    rb"^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG"
    rb"(?:(?:(?!\n\s*\n)(?s:.)){0,400}?\*\*\*)?[^\n]*\n?"  # a long title goes on in the next line
    rb"|^\*END ?\*? ?THE SMALL PRINT![^\n]*\n?",
    re.MULTILINE | re.IGNORECASE,
)
GUTENBERG_END = re.compile(
    rb"\n[ \t]{0,40}(?:\*\*\* ?END OF TH(?:E|IS)|End of(?: the| this)?) Project Gutenberg",
    re.IGNORECASE,
)
LINE_ENDS = re.compile(rb"\r+\n")
END_MARK_BYTES = 128  # at least the longest match of it


def is_clean(text: bytes, config: PrepareConfig) -> bool:
    """Return True for most short files, which no step would change, in a fifth of the time."""
    return (
        config.encoding == "auto"
        and not (config.separator or config.strip_gutenberg)
        and b"\0" not in text
        and b"\x1b$" not in text
        and (config.newlines == "keep" or b"\r" not in text)
        and not text.startswith(codecs.BOM_UTF8)
        and _is_utf8(text)
    )


def text_documents(
    name: str, stream: Stream, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    """Return the documents of one plain file; raise UnreadableError, also late, for no text."""
    head = stream.peek(HEAD_BYTES)
    take = text_taker(head)
    warn_of_markup(name, head, config.separator, stats)
    if len(head) < HEAD_BYTES and not take and is_clean(head, config):  # as most are
        return iter([(head, END)])
    blocks = _refuse_binary(name, utf8_blocks(name, stream, config, stats))
    if config.newlines == "lf":
        blocks = _normalize_newlines(blocks, stats)
    if config.strip_gutenberg:
        blocks = _strip_gutenberg(blocks)
    escaped = config.separator or ""
    separator = escaped.replace(r"\n", "\n").replace(r"\t", "\t").encode("utf-8", "surrogateescape")
    documents = take(blocks) if take else _split(blocks, separator)
    return _replace_invalid(name, documents, len(separator), config, stats)


def _refuse_binary(name: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    n_bytes = n_zero = 0
    for block in blocks:
        n_bytes += len(block)
        n_zero += block.count(0)
        if n_zero > MAX_NUL_SHARE * n_bytes:
            raise UnreadableError(
                f"{name}: binary, not text: {n_zero:,} of its first {n_bytes:,} bytes are zero. "
                "Name text files, or archives of them."
            )
        yield block


def _normalize_newlines(blocks: Iterator[bytes], stats: Stats) -> Iterator[bytes]:
    """Make CR LF, and CR CR LF, one LF; and CR where the beginning has no other line ends."""
    held = _beginning(blocks)
    is_cr = held.count(b"\r") > 1 and b"\n" not in held
    found = is_cr
    for block in chain([b""], blocks):
        text = held + block
        held = text[len(text.rstrip(b"\r")) :]
        text = text.removesuffix(held)
        if b"\r\n" in text:
            found, text = True, LINE_ENDS.sub(b"\n", text)
        yield text.replace(b"\r", b"\n") if is_cr else text
    yield held.replace(b"\r", b"\n") if is_cr else held
    stats.n_crlf += found


def _beginning(blocks: Iterator[bytes]) -> bytes:
    """Return what is looked at before anything is decided: START_SEARCH_BYTES, or all."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= START_SEARCH_BYTES:
            break
    return head


def _strip_gutenberg(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what stands between Project Gutenberg's marks; all of it where there are none."""
    head = _beginning(blocks)
    end = GUTENBERG_END.search(head, 0, START_SEARCH_BYTES)
    reach = end.start() if end else START_SEARCH_BYTES
    begin = max((mark.end() for mark in GUTENBERG_START.finditer(head, 0, reach)), default=0)
    text = b"\n"  # its first byte was yielded before, and shows whether a line begins
    for block in chain([head[begin:]], blocks):
        text += block
        if end := GUTENBERG_END.search(text):
            yield text[1 : end.start() + 1]
            for _ in blocks:  # to its end: whether the file is whole shows only there
                pass
            return
        cut = text.rfind(b"\n", -END_MARK_BYTES) % len(text)  # -1 becomes the last byte
        yield text[1 : cut + 1]
        text = text[cut:]
    yield text[1:]


def _split(blocks: Iterator[bytes], separator: bytes) -> Iterator[Chunk]:
    """Yield the documents between separators; all is one where there is no separator."""
    held = b""  # the end of a block that may begin a separator
    for block in blocks:
        *whole, text = (held + block).split(separator) if separator else [block]
        for part in whole:
            yield part, END
        lengths = range(min(len(text), len(separator) - 1), 0, -1)
        n_held = next((n for n in lengths if text.endswith(separator[:n])), 0)
        yield text[: len(text) - n_held], MORE
        held = text[len(text) - n_held :]
    yield held, END


def _replace_invalid(
    name: str, chunks: Iterator[Chunk], separator_bytes: int, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    """Replace what is not UTF-8, or drop the document; count both.

    A document is named by its place in the text as the steps before have left it.
    """
    offset = start = 0
    bad = dropped = False
    for text, chunk_end in chunks:
        offset += len(text)
        if not (dropped or _is_utf8(text)):
            bad = True
            text = text.decode("utf-8", "replace").encode()
            if dropped := config.on_bad_bytes == "skip":
                stats.skip(f"{name}, byte {start:,}", "not UTF-8")
                yield b"", DROP
        if not dropped:
            yield text, chunk_end
        if chunk_end is END:
            stats.n_bad_bytes += bad
            offset = start = offset + separator_bytes
            bad = dropped = False


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


MANY_NEWLINES = re.compile("\n\n\n+")


def collapse_newlines(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    r"""Make each document re.sub("\n\n\n+", "\n\n", text).strip(), as OpenWebText at the hub is.

    Whitespace is held back until something follows it; once it is longer than MAX_CHUNK_BYTES it is
    let through, even if the document ends after it. Source: Skylion007/openwebtext, openwebtext.py.
    """
    space, is_split = "", False  # is_split: some of the document was yielded
    for chunk, chunk_end in chunks:
        is_alone = chunk_end is END and not (is_split or space)
        if chunk_end in (DROP, NAME) or (is_alone and _is_collapsed(chunk)):
            yield chunk, chunk_end
        else:
            text = MANY_NEWLINES.sub("\n\n", space + chunk.decode())
            text = text if is_split else text.lstrip()
            body = text.rstrip()
            if chunk_end is MORE and len(text) - len(body) > MAX_CHUNK_BYTES:
                body = text
            space = text[len(body) :]
            if body or chunk_end is END:
                yield body.encode(), chunk_end
                is_split = True
        if chunk_end is not MORE:
            space, is_split = "", False


def _is_collapsed(text: bytes) -> bool:
    """Return True for most texts, where there is nothing to do, without decoding them."""
    if not text or b"\n\n\n" in text:
        return False
    return 32 < text[0] < 127 and 32 < text[-1] < 127  # no whitespace, Unicode's included
