"""A source -> its documents: archives peeled, each plain file read as what its content says it is.

    Source --archives.iter_files--> plain files --> text | JSON | parquet --> pieces of documents

One plain file, one JSON object, or one row of a table is one document.
"""

import codecs
import io
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Literal

from common.errors import DataError
from prepare.archives.codecs import BZIP2, XZ, ExpansionLimit, codec_of
from prepare.archives.prefetch import ahead
from prepare.archives.streams import HEAD_BYTES, ChunkReader, Stream, seekable
from prepare.archives.walk import iter_files
from prepare.config import PrepareConfig
from prepare.readers.chunks import DROP, MORE, Chunk, rechunk
from prepare.readers.jsonl import json_documents, looks_like_json
from prepare.readers.text import collapsed, plain_documents
from prepare.sources.discover import Progress, ProgressFile, ReadCounter, Source
from prepare.stats import Stats, UnreadableError

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


def read_source(
    source: Source, config: PrepareConfig, stats: Stats, progress: Progress
) -> Iterator[Chunk]:
    """Yield the documents of one source, piece by piece, empty ones left out and counted.

    Raises: DataError naming the file and the place in it for whatever cannot be read.
    """
    if source.dataset:
        from prepare.readers.parquet import dataset_documents

        pieces = dataset_documents(source, config, stats)
        return rechunk(_or_skipped(source, pieces, config, stats), stats)
    counter = ReadCounter(progress)
    apart = _apart(source)
    pieces = _pieces(source, config, stats, counter, decode_ahead=apart == "decoding")
    return ahead(pieces, counter, stats) if apart == "reading" else pieces


def _pieces(
    source: Source, config: PrepareConfig, stats: Stats, counter: ReadCounter, *, decode_ahead: bool
) -> Generator[Chunk]:
    pieces = _file_documents(source, config, stats, counter, decode_ahead=decode_ahead)
    return rechunk(_or_skipped(source, pieces, config, stats), stats)


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
    source: Source, pieces: Iterator[Chunk], config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
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
    _skip(source.name, message, stats)


def _file_documents(
    source: Source, config: PrepareConfig, stats: Stats, counter: ReadCounter, *, decode_ahead: bool
) -> Iterator[Chunk]:
    with (
        ProgressFile(source.path, counter, source.span) as file,
        io.BufferedReader(file, 1 << 20) as stream,
    ):
        start = source.span[0] if source.span else 0
        top = f"from byte {start:,} of {source.name}" if start else source.name
        limit = ExpansionLimit(config.max_ratio, lambda: counter.n_read)
        ahead_of = counter if decode_ahead else None
        with closing(iter_files(top, stream, limit, stats, ahead_of)) as found:
            for name, leaf in found:
                try:
                    yield from _leaf_documents(name, leaf, config, stats)
                except DataError as error:
                    # what holds no text is left out where it was found, and no error there
                    is_found = not source.named or name != source.name
                    if config.on_error == "fail" and not (
                        is_found and isinstance(error, UnreadableError)
                    ):
                        raise
                    yield b"", DROP
                    _skip(name, error.message, stats)


def _skip(name: str, message: str, stats: Stats) -> None:
    """List what is left out. Its reason ends before any number, so that alike ones are one."""
    _, _, what = message.removeprefix(name).partition(": ")
    stats.skip(name, re.split(r",? (?:at|before) byte|,? \d|[:;.(]", what)[0].strip(), message)


def _leaf_documents(
    name: str, leaf: Stream, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    head = leaf.peek(HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC):
        from prepare.readers.parquet import parquet_documents

        with seekable(leaf) as file:
            yield from parquet_documents(name, file, config, stats)
        return
    wide = ""
    if head.startswith(tuple(WIDE_BOMS)):
        wide = next(WIDE_BOMS[mark] for mark in WIDE_BOMS if head.startswith(mark))
    if wide and head.decode(wide, "ignore").lstrip()[:1] in ("{", "["):
        leaf = _as_utf8(leaf, wide)
    if looks_like_json(name, leaf, config.text_key):
        pieces = _noting_nul(json_documents(name, leaf, config, stats), stats)
        yield from collapsed(pieces) if config.collapse_newlines else pieces
    else:
        yield from plain_documents(name, leaf, config, stats)


def _as_utf8(leaf: Stream, encoding: str) -> Stream:
    blocks = iter(partial(leaf.read, BLOCK_BYTES), b"")
    texts = codecs.iterdecode(blocks, encoding, "replace")
    chunks = (text.encode("utf-8", "replace") for text in texts)
    return io.BufferedReader(ChunkReader(chunks), HEAD_BYTES)


def _noting_nul(pieces: Iterator[Chunk], stats: Stats) -> Iterator[Chunk]:
    noted = False
    for text, chunk_end in pieces:
        if not noted and b"\0" in text:
            noted = True
            stats.n_with_nul += 1
        yield text, chunk_end
        noted = noted and chunk_end is MORE
