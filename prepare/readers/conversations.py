"""A source -> its conversations, packed (prepare/conversation.py): documents.py's of prepare chats.

    JSON, CSV, parquet, data sets --records--> shapes.py ------.
    WhatsApp, Discord, "NAME: " before each message --> logs.py --> turns --pack--> bytes

Archives, folders and encodings are read as those of texts are; what a file is, its content tells.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain

from common.errors import DataError
from prepare.archives.streams import HEAD_BYTES, PARQUET_MAGIC, Stream, begins_as_json
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
from prepare.conversation import ConversationError, Found, pack, skip_or_raise
from prepare.readers import logs
from prepare.readers.documents import read_source
from prepare.readers.json_values import to_utf8
from prepare.readers.jsonl import NOTHING, Record
from prepare.readers.shapes import COLUMNS, turns_of
from prepare.sources.source import JSON_LINES_SUFFIXES, Progress, Source

Conversations = Generator[Found | None]


def read_conversations(
    source: Source, config: ChatsConfig, stats: Stats, progress: Progress
) -> Iterator[Chunk]:
    """Yield the conversations of one source; raise DataError that says where it is wrong."""
    if not source.dataset:
        return read_source(source, config, stats, progress, read_file)
    from prepare.readers.parquet import dataset_records

    found = _of_records(source.name, dataset_records(source, _columns(config)), config, stats)
    name = source.name.encode("utf-8", "replace")
    chunks = chain([(name, NAME)], _packed(found, config, stats))
    return skip_errors(source.name, chunks, config.on_error, stats, is_found=False)


def read_file(name: str, stream: Stream, config: ChatsConfig, stats: Stats) -> Iterator[Chunk]:
    """Yield the conversations of one plain file; raise UnreadableError where it holds none."""
    yield from _packed(_in_file(name, stream, config, stats), config, stats)


def _in_file(name: str, stream: Stream, config: ChatsConfig, stats: Stats) -> Conversations:
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
        is_named = name.endswith((".json", *JSON_LINES_SUFFIXES))
        if is_named or (begins_as_json(head) and not logs.is_export(head)):
            records = json_records(name, json_in_utf8(name, stream, encoding, stats), config)
    if records is None:
        return logs.log_conversations(name, head, stream, config, stats)
    return _of_records(name, records, config, stats)


def _columns(config: ChatsConfig) -> frozenset[str]:
    """Return the columns of tables that are read."""
    if config.fields is None:
        return COLUMNS
    names = [name.strip() for name in config.fields.split(",")]
    return frozenset([*names, *(name.partition(".")[0] for name in names)])


def _of_records(
    name: str, records: Iterable[Record], config: ChatsConfig, stats: Stats
) -> Conversations:
    """Yield the conversations, None in the place of what holds none."""
    has_some = False
    for where, record, has_bad_bytes in records:
        found: list[Found] = []
        try:
            if isinstance(record, DataError):
                raise record
            if record is NOTHING:
                pass
            elif logs.is_discord(record):
                messages = logs.discord_messages(record, where)
                found = list(logs.export_conversations(name, "Discord", messages, config, stats))
            else:
                found = [(where, *turns_of(record, config.fields, where))]
        except DataError as error:
            kind = "not JSON" if "JSON" in error.message else "not CSV"
            reason = error.reason if isinstance(error, ConversationError) else kind
            if config.on_error == "fail" and reason == "no conversation" and not has_some:
                raise UnreadableError(error.message) from error  # a file of something else
            skip_or_raise(where, error, reason, config, stats)
        has_some = has_some or bool(found)
        stats.n_bad_bytes += has_bad_bytes
        yield from found
        if not found:
            yield None


def _packed(conversations: Conversations, config: ChatsConfig, stats: Stats) -> Iterator[Chunk]:
    with closing(conversations):
        for found in conversations:
            packed = b""
            if found:
                where, shape, turns, rejected = found
                texts = [to_utf8(turn.text) for turn in turns]
                said = [(turn.role, text) for turn, (text, _) in zip(turns, texts, strict=True)]
                bad, is_bad = to_utf8(rejected.text) if rejected else (None, False)
                stats.n_bad_bytes += is_bad or any(is_bad for _, is_bad in texts)
                packed = pack(said, bad)
            if len(packed) > MAX_CHUNK_BYTES:
                detail = f"{len(packed):,} bytes, and {MAX_CHUNK_BYTES:,} are the limit: cut it."
                too_long = ConversationError(where, "too long a conversation", detail)
                skip_or_raise(where, too_long, too_long.reason, config, stats)
                packed = b""
            if packed:
                stats.chats[f"shapes/{shape}"] += 1
            yield packed, END if packed else DROP
