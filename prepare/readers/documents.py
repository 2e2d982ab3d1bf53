"""A source -> its documents. Whoever wants to know what prepare does begins here.

    Source --iter_files--> plain files --read_file--> documents, in chunks --rechunk--> tokens/

A file is what its first bytes say it is: archives are unpacked, layer by layer, and what is left is
read as parquet, CSV, JSON or text. One text file, one JSON object, or one row of a table is a
document. What reads each kind is imported where the first of its kind is met.
"""

import io
from collections.abc import Iterator
from contextlib import closing, suppress

from common.errors import DataError
from prepare.archives.streams import (
    COMPRESSED_EXTENSION,
    HEAD_BYTES,
    PARQUET_MAGIC,
    WIDE_MARKS,
    Entries,
    ExpansionLimit,
    Stream,
    archive_kind,
    begins_as_json,
    failing_stream,
    stream_of,
)
from prepare.chunks import NAME, Chunk, ReadFile, Stats, UnreadableError, rechunk, skip_errors
from prepare.config import PrepareConfig
from prepare.readers.foreign import special_reader
from prepare.readers.text import collapse_newlines, text_documents
from prepare.sources.source import (
    JSON_LINES_SUFFIXES,
    Progress,
    ProgressFile,
    ReadCounter,
    Source,
    is_hidden,
)

MAX_DEPTH = 8  # no corpus nests deeper; a file made to nest for ever does
PREFETCH_BYTES = 1 << 20  # on disk: a process takes some milliseconds to begin and end


def read_source(
    source: Source,
    config: PrepareConfig,
    stats: Stats,
    progress: Progress,
    read: ReadFile | None = None,
) -> Iterator[Chunk]:
    """Yield the documents of one source, in chunks; raise DataError that says where it is wrong."""
    counter = ReadCounter(progress)
    large = not source.error and source.path.is_file() and source.n_read >= PREFETCH_BYTES
    slow = large and _is_slow(source)
    if source.dataset:
        from prepare.readers.parquet import dataset_documents

        documents = dataset_documents(source, config, stats)
    else:
        documents = _source_documents(source, config, stats, counter, read or read_file, slow=slow)
    documents = skip_errors(source.name, documents, config.on_error, stats, is_found=False)
    if config.collapse_newlines:
        documents = collapse_newlines(documents)
    chunks = rechunk(documents, stats)
    is_parquet = source.path.suffix == ".parquet"  # pyarrow, which reads it, is loaded here, once
    if large and not slow and not is_parquet:
        from prepare.readers.prefetch import prefetch

        return prefetch(chunks, counter, stats)
    return chunks


def _is_slow(source: Source) -> bool:
    """Tell xz and bzip2: decompressing takes a process as long as all else takes another."""
    with suppress(OSError), source.path.open("rb") as file:  # said where it is read
        return file.read(6).startswith((b"\xfd7zXZ\0", b"BZh"))
    return False


def _source_documents(
    source: Source,
    config: PrepareConfig,
    stats: Stats,
    counter: ReadCounter,
    read: ReadFile,
    *,
    slow: bool,
) -> Iterator[Chunk]:
    if source.error:
        raise DataError(source.error)
    with (
        ProgressFile(source.path, counter, source.byte_range) as file,
        io.BufferedReader(file, 1 << 20) as stream,
    ):
        start = source.byte_range[0] if source.byte_range else 0
        source_name = f"from byte {start:,} of {source.name}" if start else source.name
        limit = ExpansionLimit(config.max_ratio, lambda: counter.n_read)
        prefetched = counter if slow else None
        with closing(iter_files(source_name, stream, limit, stats, prefetched=prefetched)) as files:
            for name, content in files:
                yield name.encode("utf-8", "replace"), NAME
                documents = read(name, content, config, stats)
                is_found = not source.named or name != source.name
                yield from skip_errors(name, documents, config.on_error, stats, is_found=is_found)


def iter_files(
    name: str,
    stream: Stream,
    limit: ExpansionLimit,
    stats: Stats,
    depth: int = 0,
    prefetched: ReadCounter | None = None,
) -> Entries:
    """Yield (name, stream) of each plain file inside ``stream``; read one before taking the next.

        openwebtext.tar.xz -> xz -> tar -> urlsf_subset00-1_data.xz -> xz -> tar -> 0001.txt

    Raise DataError on truncated or corrupt layers, with the name and the offset; a stream that was
    yielded can raise it too, and UnreadableError for an office document.
    """
    if depth > MAX_DEPTH:
        raise DataError(f"{name}: more than {MAX_DEPTH} layers of archives inside one another.")
    kind = archive_kind(name, stream.peek(HEAD_BYTES))
    if not kind:
        yield name, stream
    elif kind in ("tar", "zip"):
        yield from _iter_entries(kind, name, stream, limit, stats, depth)
    else:
        from prepare.archives.codecs import decompress

        decompressed = decompress(name, stream, kind, limit)
        if prefetched:  # the outermost layer, by a process of its own
            from prepare.readers.prefetch import prefetch

            decompressed = limit.counted(prefetch(decompressed, prefetched, Stats()))
        with closing(decompressed) as blocks:
            inner_name = COMPRESSED_EXTENSION.sub("", name)
            yield from iter_files(inner_name, stream_of(blocks), limit, stats, depth + 1)


def _iter_entries(
    kind: str, name: str, stream: Stream, limit: ExpansionLimit, stats: Stats, depth: int
) -> Entries:
    if kind == "zip":
        from prepare.archives.zip import zip_entries

        entries = zip_entries(name, stream, limit)
    else:
        from prepare.archives.tar import tar_entries

        entries = tar_entries(name, stream, stats)
    try:
        with closing(entries):
            for entry, content in entries:
                if is_hidden(entry):
                    continue
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
    if name.lower().endswith((".csv", ".tsv")):
        from prepare.readers.delimited import delimited_documents

        yield from delimited_documents(name, stream, config, stats)
        return
    if read_special := special_reader(name, head):
        yield from read_special(name, stream, stats)
        return
    is_named = name.endswith((".json", *JSON_LINES_SUFFIXES))
    if is_named or head.startswith(WIDE_MARKS) or begins_as_json(head.lstrip(b"\0")):
        from prepare.readers.encoding import json_head, json_in_utf8
        from prepare.readers.jsonl import json_documents, looks_like_json

        encoding, head = json_head(name, head, config)
        if is_named or (begins_as_json(head) and looks_like_json(name, head, config.text_key)):
            in_utf8 = json_in_utf8(name, stream, encoding, stats)
            yield from json_documents(name, in_utf8, config, stats)
            return
    yield from text_documents(name, stream, config, stats)
