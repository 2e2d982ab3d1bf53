"""A source -> its documents: archives peeled, each plain file read as what its content says it is.

    Source --archives.leaves--> plain files --> text | JSON | parquet --> pieces of documents

One plain file, one JSON object, or one row of a table is one document.
"""

import codecs
import io
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Literal

from common.errors import DataError
from prepare.archives.codecs import BZIP2, XZ, Budget, codec_of
from prepare.archives.streams import HEAD_BYTES, ChunkReader, Stream, seekable
from prepare.archives.walk import leaves
from prepare.config import PrepareConfig
from prepare.readers.chunks import DROP, END, MORE, Piece, recut
from prepare.readers.jsonl import json_documents, looks_like_json
from prepare.readers.text import collapsed, plain_documents
from prepare.sources.discover import CountedFile, Progress, Source, Tally
from prepare.stats import Findings, UnreadableError
from prepare.workers.forked import is_allowed
from prepare.workers.prefetch import ahead, making

PARQUET_MAGIC = b"PAR1"
MAGIC_BYTES = 16  # more than any codec's
SLOW_CODECS = (XZ, BZIP2)  # 10 ms a MB and more: as long as all other work on it
APART_BYTES = 1 << 20  # on disk: a process takes some milliseconds to begin and end
WIDE_BOMS = {  # of JSON in another encoding than JSON's; the longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BLOCK_BYTES = 1 << 20
HELD_BYTES = 8 << 20  # of the beginning of a source: 1,000 documents of 8 kB


def read_source(
    source: Source, config: PrepareConfig, findings: Findings, progress: Progress
) -> Iterator[Piece]:
    """Yield the documents of one source, piece by piece, empty ones left out and counted.

    Raises: DataError naming the file and the place in it for whatever cannot be read.
    """
    if source.dataset:
        from prepare.readers.parquet import dataset_documents

        pieces = dataset_documents(source, config, findings)
        return recut(_or_skipped(source, pieces, config, findings), findings)
    tally = Tally(progress)
    apart = _apart(source)
    pieces = _pieces(source, config, findings, tally, decode_ahead=apart == "decoding")
    return ahead(pieces, tally, findings) if apart == "reading" else pieces


class Begun:
    """A source that another process has begun to read before anybody asks for its documents."""

    def __init__(self, pieces: Iterator[Piece], tally: Tally, findings: Findings) -> None:
        self._pieces, self._tally, self._findings = pieces, tally, findings
        self._held: list[Piece] = []

    def begins_with(self, n_documents: int) -> bool:
        """Tell whether so many documents come before HELD_BYTES of text; ``read`` has them too.

        Raises: what ``read_source`` does.
        """
        n_found = sum(fate is END for _, fate in self._held)
        n_bytes = sum(len(text) for text, _ in self._held)
        while n_found < n_documents and n_bytes < HELD_BYTES:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._held.append(piece)
            n_bytes += len(piece[0])
            n_found += piece[1] is END
        return n_found >= n_documents

    def read(self, findings: Findings, progress: Progress) -> Iterator[Piece]:
        """Yield what ``read_source`` would; it can be asked for once."""
        progress(self._tally.n_read)
        self._tally.progress = progress
        yield from self._held
        self._held = []
        yield from self._pieces
        findings.add(self._findings)


@contextmanager
def begun(source: Source, config: PrepareConfig) -> Iterator[Begun | None]:
    """Read a source from now on, as far ahead as there is room; None where that is of no use."""
    apart = "" if source.dataset or not is_allowed() else _apart(source)
    if not apart:
        yield None
        return
    tally, findings = Tally(lambda n_bytes: None), Findings()
    pieces = _pieces(source, config, findings, tally, decode_ahead=apart == "decoding")
    if apart == "reading":
        with making(pieces, tally, findings) as made:
            yield Begun(made, tally, findings)
        return
    with closing(pieces):
        source_begun = Begun(pieces, tally, findings)
        source_begun.begins_with(1)  # the first piece that is asked for begins it
        yield source_begun


def _pieces(
    source: Source, config: PrepareConfig, findings: Findings, tally: Tally, *, decode_ahead: bool
) -> Generator[Piece]:
    pieces = _file_documents(source, config, findings, tally, decode_ahead=decode_ahead)
    return recut(_or_skipped(source, pieces, config, findings), findings)


def _apart(source: Source) -> Literal["decoding", "reading", ""]:
    """Tell which work on a source is done by a process of its own.

    Encoding takes about as long as all that comes before it, unless that begins with a slow codec.
    Tables are read by pyarrow's threads, here.
    """
    try:
        with source.path.open("rb") as file:
            head = file.read(MAGIC_BYTES)
    except OSError:  # said where it is read
        return ""
    if source.n_read < APART_BYTES or head.startswith(PARQUET_MAGIC):
        return ""
    return "decoding" if codec_of(head) in SLOW_CODECS else "reading"


def _or_skipped(
    source: Source, pieces: Iterator[Piece], config: PrepareConfig, findings: Findings
) -> Iterator[Piece]:
    """Pass ``pieces`` on; with --on-error skip an error ends them instead of the run."""
    try:
        yield from pieces
    except OSError as error:
        message = f"{source.name}: cannot be read ({error.strerror or error})."
        if config.on_error == "fail":
            raise DataError(message) from error
    except DataError as error:
        message = error.message
        if config.on_error == "fail":
            raise
    else:
        return
    yield b"", DROP
    _skip(source.name, message, findings)


def _file_documents(
    source: Source, config: PrepareConfig, findings: Findings, tally: Tally, *, decode_ahead: bool
) -> Iterator[Piece]:
    with (
        CountedFile(source.path, tally, source.span) as file,
        io.BufferedReader(file, 1 << 20) as stream,
    ):
        start = source.span[0] if source.span else 0
        top = f"from byte {start:,} of {source.name}" if start else source.name
        budget = Budget(config.max_ratio, lambda: tally.n_read)
        ahead_of = tally if decode_ahead else None
        with closing(leaves(top, stream, budget, findings, ahead_of)) as found:
            for name, leaf in found:
                try:
                    yield from _leaf_documents(name, leaf, config, findings)
                except DataError as error:
                    # what holds no text is left out where it was found, and no error there
                    is_found = not source.named or name != source.name
                    if config.on_error == "fail" and not (
                        is_found and isinstance(error, UnreadableError)
                    ):
                        raise
                    yield b"", DROP
                    _skip(name, error.message, findings)


def _skip(name: str, message: str, findings: Findings) -> None:
    """List what is left out. Its reason ends before any number, so that alike ones are one."""
    _, _, what = message.removeprefix(name).partition(": ")
    findings.skip(name, re.split(r",? (?:at|before) byte|,? \d|[:;.(]", what)[0].strip(), message)


def _leaf_documents(
    name: str, leaf: Stream, config: PrepareConfig, findings: Findings
) -> Iterator[Piece]:
    head = leaf.peek(HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC):
        from prepare.readers.parquet import parquet_documents

        with seekable(leaf) as file:
            yield from parquet_documents(name, file, config, findings)
        return
    wide = ""
    if head.startswith(tuple(WIDE_BOMS)):
        wide = next(WIDE_BOMS[mark] for mark in WIDE_BOMS if head.startswith(mark))
    if wide and head.decode(wide, "ignore").lstrip()[:1] in ("{", "["):
        leaf = _as_utf8(leaf, wide)
    if looks_like_json(name, leaf, config.text_key):
        pieces = _noting_nul(json_documents(name, leaf, config, findings), findings)
        yield from collapsed(pieces) if config.collapse_newlines else pieces
    else:
        yield from plain_documents(name, leaf, config, findings)


def _as_utf8(leaf: Stream, encoding: str) -> Stream:
    blocks = iter(partial(leaf.read, BLOCK_BYTES), b"")
    texts = codecs.iterdecode(blocks, encoding, "replace")
    chunks = (text.encode("utf-8", "replace") for text in texts)
    return io.BufferedReader(ChunkReader(chunks), HEAD_BYTES)


def _noting_nul(pieces: Iterator[Piece], findings: Findings) -> Iterator[Piece]:
    noted = False
    for text, fate in pieces:
        if not noted and b"\0" in text:
            noted = True
            findings.n_with_nul += 1
        yield text, fate
        noted = noted and fate is MORE
