"""CSV and TSV -> documents: of each row the text in the column that --text-key names.

Read by Python's csv, which follows RFC 4180: a field with delimiters, quotes or line ends in it
stands between quotes. The first line names the columns; whether they stand apart by commas,
semicolons, tabs or bars is taken from it. Memory holds one row.
"""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from common.errors import DataError
from prepare.archives.streams import Stream, stream_of
from prepare.chunks import Chunk, Stats
from prepare.config import PrepareConfig
from prepare.readers.encoding import utf8_blocks
from prepare.readers.json_values import MAX_RECORD_BYTES
from prepare.readers.jsonl import Record, no_column, record_documents

DELIMITERS = ",;\t|"
BAD_BYTES = re.compile("[\ud800-\udfff]")  # as surrogateescape leaves them


def delimited_documents(
    name: str, stream: Stream, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    """Yield the texts of a column; raise DataError where there is none of that name."""
    records = delimited_records(name, stream, config, stats, text_key=config.text_key)
    yield from record_documents(records, config, stats, kind="CSV", is_promised=True)


def delimited_records(
    name: str, stream: Stream, config: PrepareConfig, stats: Stats, *, text_key: str | None = None
) -> Iterator[Record]:
    """Yield the rows, all their columns or only that of the texts."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    raw = stream_of(utf8_blocks(name, stream, config, stats))
    lines = io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="")
    first = next((line for line in lines if not line.isspace()), "")
    if not first:
        return
    headers = {mark: next(csv.reader([first], delimiter=mark)) for mark in DELIMITERS}
    # the one by which the column is found, else that which finds most
    delimiter = max(DELIMITERS, key=lambda mark: (text_key in headers[mark], len(headers[mark])))
    columns = headers[delimiter]
    if text_key is not None and text_key not in columns:
        raise no_column(name, text_key, columns)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    yield from _records(name, rows, columns, columns if text_key is None else [text_key])


def _records(name: str, rows: Any, columns: list[str], keys: list[str]) -> Iterator[Record]:
    places = {key: columns.index(key) for key in keys}
    while True:
        where = f"{name}, line {rows.line_num + 2:,}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"not CSV ({error})"
        else:
            if not row:
                continue
            if max(places.values()) < len(row) and not any(row[len(columns) :]):
                record = {key: row[place] for key, place in places.items()}
                text = "".join(record.values())
                has_bad_bytes = not text.isascii() and BAD_BYTES.search(text) is not None
                yield where, record, has_bad_bytes
                continue
            found = f"{len(row):,} fields, but the first line names {len(columns):,}"
        advice = "Text with quotes or delimiters in it has to stand between quotes."
        yield where, DataError(f"{where}: {found}. {advice} Or pass --on-error skip."), False
