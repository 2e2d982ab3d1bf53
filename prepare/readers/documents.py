"""A source -> its documents. Whoever wants to know what prepare does begins here.

    Source --iter_files--> plain files --read_file--> documents, in chunks --rechunk--> tokens/

A file is what its first bytes say it is: archives are unpacked, layer by layer, and what is left is
read as parquet, JSON or text. One text file, one JSON object, or one row of a table is a document.
"""

import io
from collections.abc import Iterator
from contextlib import closing

from common.errors import DataError
from prepare.archives.codecs import CODECS, decompress
from prepare.archives.sniff import archive_kind, without_extension
from prepare.archives.streams import (
    HEAD_BYTES,
    Entries,
    ExpansionLimit,
    Stream,
    failing_stream,
    stream_of,
)
from prepare.archives.tar import tar_entries
from prepare.archives.zip import zip_entries
from prepare.chunks import END, Chunk, Stats, UnreadableError, rechunk, skip_errors
from prepare.config import PrepareConfig
from prepare.readers.encoding import WIDE_MARKS, json_in_utf8, utf8_blocks
from prepare.readers.jsonl import json_documents, looks_like_json
from prepare.readers.prefetch import prefetch
from prepare.readers.text import collapse_newlines, count_nul, is_clean, text_documents
from prepare.sources.discover import Progress, ProgressFile, ReadCounter, Source

MAX_DEPTH = 8  # no corpus nests deeper; a file made to nest for ever does
PREFETCH_BYTES = 1 << 20  # on disk: a process takes some milliseconds to begin and end
PARQUET_MAGIC = b"PAR1"


def read_source(
    source: Source, config: PrepareConfig, stats: Stats, progress: Progress
) -> Iterator[Chunk]:
    """Yield the documents of one source, chunk by chunk, empty ones left out and counted.

    Raises: DataError naming the file and the place in it for whatever cannot be read.
    """
    if source.dataset:
        from prepare.readers.parquet import dataset_documents

        rows = _normalized(dataset_documents(source, config, stats), config, stats)
        return rechunk(
            skip_errors(source.name, rows, config.on_error, stats, is_found=False), stats
        )
    counter = ReadCounter(progress)
    documents = _source_documents(source, config, stats, counter)
    documents = skip_errors(source.name, documents, config.on_error, stats, is_found=False)
    chunks = rechunk(documents, stats)
    return prefetch(chunks, counter, stats) if _is_worth_a_process(source) else chunks


def _is_worth_a_process(source: Source) -> bool:
    try:
        with source.path.open("rb") as file:
            is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
            return (
                source.n_read >= PREFETCH_BYTES and not is_parquet
            )  # pyarrow is loaded here, once
    except OSError:  # said where it is read
        return False


def _source_documents(
    source: Source, config: PrepareConfig, stats: Stats, counter: ReadCounter
) -> Iterator[Chunk]:
    with (
        ProgressFile(source.path, counter, source.byte_range) as file,
        io.BufferedReader(file, 1 << 20) as stream,
    ):
        start = source.byte_range[0] if source.byte_range else 0
        source_name = f"from byte {start:,} of {source.name}" if start else source.name
        limit = ExpansionLimit(config.max_ratio, lambda: counter.n_read)
        with closing(iter_files(source_name, stream, limit, stats)) as files:
            for name, content in files:
                documents = _normalized(read_file(name, content, config, stats), config, stats)
                is_found = not source.named or name != source.name
                yield from skip_errors(name, documents, config.on_error, stats, is_found=is_found)


def iter_files(
    name: str, stream: Stream, limit: ExpansionLimit, stats: Stats, depth: int = 0
) -> Entries:
    """Yield (name, stream) of each plain file inside ``stream``; read one before taking the next.

        openwebtext.tar.xz -> xz -> tar -> urlsf_subset00-1_data.xz -> xz -> tar -> 0001.txt

    Raises: DataError on truncated or corrupt layers, with the name and the offset; a stream that
    was yielded can raise it too, and UnreadableError for an office document.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"{name}: more than {MAX_DEPTH} layers of archives inside one another.")
    kind = archive_kind(name, stream.peek(HEAD_BYTES))
    if not kind:
        yield name, stream
        return
    if kind in CODECS:
        with closing(decompress(name, stream, CODECS[kind], limit)) as blocks:
            inner = stream_of(blocks)
            yield from iter_files(without_extension(name), inner, limit, stats, depth + 1)
        return
    is_zip = kind == "zip"
    entries = zip_entries(name, stream, limit) if is_zip else tar_entries(name, stream, stats)
    try:
        with closing(entries):
            for entry, content in entries:
                try:
                    yield from iter_files(f"{name}/{entry}", content, limit, stats, depth + 1)
                except DataError as error:  # said when it is read, so that what follows can be too
                    yield f"{name}/{entry}", failing_stream(error)
    except UnreadableError as error:
        yield name, failing_stream(error)


def read_file(name: str, stream: Stream, config: PrepareConfig, stats: Stats) -> Iterator[Chunk]:
    """Yield the documents of one plain file, blank ones with the rest."""
    head = stream.peek(HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC):
        from prepare.readers.parquet import parquet_documents

        yield from parquet_documents(name, stream, config, stats)
        return
    if head.startswith(WIDE_MARKS):
        stream = json_in_utf8(stream, head)
        head = stream.peek(HEAD_BYTES)
    if looks_like_json(name, head, config.text_key):
        yield from json_documents(name, stream, config, stats)
    elif len(head) < HEAD_BYTES and is_clean(head, config):  # as most are
        yield head, END
    else:
        yield from text_documents(name, utf8_blocks(name, stream, config, stats), config, stats)


def _normalized(chunks: Iterator[Chunk], config: PrepareConfig, stats: Stats) -> Iterator[Chunk]:
    chunks = count_nul(chunks, stats)
    return collapse_newlines(chunks) if config.collapse_newlines else chunks
