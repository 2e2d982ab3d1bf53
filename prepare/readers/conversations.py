"""A source -> its conversations, packed (prepare/conversation.py): documents.py's of prepare chats.

    JSON, CSV, parquet, data sets --records--> shapes.py ------.
    WhatsApp, Discord, "NAME: " before each message --> logs.py --> turns --pack--> bytes

Archives, folders and encodings are read as those of texts are; what a file is, its content tells.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain

from common.errors import DataError
from prepare.archives.streams import (
    HEAD_BYTES,
    PARQUET_MAGIC,
    Stream,
    begins_as_json,
)
from prepare.chunks import (
    DROP,
    END,
    MAX_CHUNK_BYTES,
    NAME,
    Chunk,
    Stats,
    UnreadableError,
    skip_errors,
)
from prepare.config import ChatsConfig
from prepare.conversation import ConversationError, Message, pack
from prepare.readers.documents import read_source
from prepare.readers.json_values import to_utf8
from prepare.readers.jsonl import NOTHING, Record
from prepare.readers.shapes import COLUMNS, turns_of
from prepare.sources.source import JSON_LINES_SUFFIXES, Progress, Source

Found = tuple[str, str, list[Message], Message | None]  # where, shape, turns, rejected answer
NONE: Found = ("", "", [], None)  # in the place of a record that is left out


def read_conversations(
    source: Source, config: ChatsConfig, stats: Stats, progress: Progress
) -> Iterator[Chunk]:
    """Yield the conversations of one source; raise DataError that says where it is wrong."""
    if not source.dataset:
        return read_source(source, config, stats, progress, read_file)
    from prepare.readers.parquet import dataset_records

    found = _of_records(dataset_records(source, _columns(config)), config, stats)
    name = source.name.encode("utf-8", "replace")
    chunks = chain([(name, NAME)], _packed(found, stats))
    return skip_errors(source.name, chunks, config.on_error, stats, is_found=False)


def read_file(name: str, stream: Stream, config: ChatsConfig, stats: Stats) -> Iterator[Chunk]:
    """Yield the conversations of one plain file; raise UnreadableError where it holds none."""
    yield from _packed(_in_file(name, stream, config, stats), stats)


def _in_file(name: str, stream: Stream, config: ChatsConfig, stats: Stats) -> Generator[Found]:
    from prepare.readers.encoding import json_head, json_in_utf8
    from prepare.readers.jsonl import json_records

    head = stream.peek(HEAD_BYTES)
    records: Iterable[Record] | None = None
    if head.startswith(PARQUET_MAGIC):
        from prepare.readers.parquet import parquet_records

        records = parquet_records(name, stream, _columns(config))
    elif name.lower().endswith((".csv", ".tsv")):
        from prepare.readers.delimited import delimited_records

        records = delimited_records(name, stream, config, stats)
    else:
        encoding, head = json_head(name, head, config)
        if name.endswith((".json", *JSON_LINES_SUFFIXES)) or begins_as_json(head):
            records = json_records(name, json_in_utf8(name, stream, encoding, stats), config)
    if records is None:
        raise UnreadableError(f"{name}: no conversations recognised in it. ")
    return _of_records(records, config, stats)


def _columns(config: ChatsConfig) -> frozenset[str]:
    """Return the columns of tables that are read."""
    if config.fields is None:
        return COLUMNS
    names = [name.strip() for name in config.fields.split(",")]
    return frozenset([*names, *(name.partition(".")[0] for name in names)])


def _of_records(records: Iterable[Record], config: ChatsConfig, stats: Stats) -> Generator[Found]:
    has_some = False
    for where, record, has_bad_bytes in records:
        try:
            if isinstance(record, DataError):
                raise record
            if record is NOTHING:
                yield NONE
                continue
            found = [(where, *turns_of(record, config.fields, where))]
        except DataError as error:
            reason = error.reason if isinstance(error, ConversationError) else "not a record"
            if config.on_error == "skip":
                stats.skip(where, reason, error.message)
                yield NONE
            elif reason == "no conversation" and not has_some:  # it may be of something else
                raise UnreadableError(error.message) from error
            else:
                raise
        else:
            has_some = True
            stats.n_bad_bytes += has_bad_bytes
            yield from found


def _packed(conversations: Generator[Found], stats: Stats) -> Iterator[Chunk]:
    with closing(conversations):
        for where, shape, turns, rejected in conversations:
            if not turns:
                yield b"", DROP
                continue
            texts = [to_utf8(turn.text) for turn in [*turns, *([rejected] if rejected else [])]]
            stats.n_bad_bytes += any(is_bad for _, is_bad in texts)
            said = [(turn.role, text) for turn, (text, _) in zip(turns, texts, strict=False)]
            packed = pack(said, texts[-1][0] if rejected else None)
            if len(packed) > MAX_CHUNK_BYTES:
                raise DataError(
                    f"{where}: a conversation of {len(packed):,} bytes; {MAX_CHUNK_BYTES:,} is the "
                    "limit. Cut it between an answer and the next question."
                )
            stats.chats[f"shapes/{shape}"] += 1
            yield packed, END
