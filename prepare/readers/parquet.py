"""Tables -> documents: parquet files and Hugging Face data sets, a batch of rows at a time."""

import socket
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from common.errors import DataError
from prepare.archives.streams import Stream, damage_as_data_error, seekable
from prepare.chunks import NAME, Chunk, Stats
from prepare.config import PrepareConfig
from prepare.readers.jsonl import Record, no_column, record_documents
from prepare.sources.source import Source

BATCH_ROWS = 16  # so that no batch is large where rows are
BUFFER_BYTES = 1 << 20  # of a column that is read at a time


def parquet_documents(
    name: str, stream: Stream, config: PrepareConfig, stats: Stats
) -> Iterator[Chunk]:
    """Yield the texts of a parquet file's column; raise DataError where that is not to be had."""
    records = parquet_records(name, stream, {config.text_key}, text_key=config.text_key)
    yield from record_documents(records, config, stats, is_promised=True)


def parquet_records(
    name: str, stream: Stream, wanted: Collection[str], *, text_key: str | None = None
) -> Iterator[Record]:
    """Yield the rows of a parquet file, those of its columns that are ``wanted``.

    With ``text_key`` raise DataError where there is no column of that name with text in it.
    """
    import pyarrow
    import pyarrow.parquet

    errors = (pyarrow.ArrowException, OSError, ValueError)  # the last of text that is not UTF-8
    with damage_as_data_error(name, "parquet", errors), seekable(stream) as file:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
        names = table.schema_arrow.names
        columns = [column for column in names if column in wanted]
        if text_key is None:
            columns = columns or names  # to be named, where none is of use
        else:
            columns = columns or [text_key.partition(".")[0]]
            _check_column(name, table.schema_arrow, columns[0], text_key)
        batches = table.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)
        yield from _records(name, (row for batch in batches for row in batch.to_pylist()))


def _check_column(name: str, schema: Any, column: str, text_key: str) -> None:
    import pyarrow

    if column not in schema.names:
        raise no_column(name, text_key, schema.names)
    kind = schema.field(column).type
    if pyarrow.types.is_primitive(kind):
        raise DataError(
            f"{name}: the column {column!r} holds {kind}, not text; there are "
            f"{', '.join(map(repr, schema.names[:10]))}. Name the right one: --text-key."
        )


def dataset_documents(source: Source, config: PrepareConfig, stats: Stats) -> Iterator[Chunk]:
    """Yield the texts of a Hugging Face data set: a folder saved by it, or one at the hub."""
    yield source.name.encode("utf-8", "replace"), NAME
    records = dataset_records(source, {config.text_key, config.text_key.partition(".")[0]})
    yield from record_documents(records, config, stats, is_promised=True)


def dataset_records(source: Source, wanted: Collection[str]) -> Iterator[Record]:
    """Yield the rows of a data set, where it has them with the columns that are ``wanted`` only."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "--dataset needs the package datasets: .venv/bin/pip install -r requirements.txt"
        ) from error
    try:
        rows = _open(datasets, source)
        columns = getattr(rows, "column_names", None) or []  # None: known when they are read
        if names := [
            column for column in columns if column in wanted
        ]:  # alone, as others may need packages to be decoded: sound, pictures
            rows = rows.select_columns(names)
        yield from _records(source.name, rows)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"--dataset {source.name}: cannot be opened ({error}). Check the name, --config and "
            "--split, and the network; or save it into a folder with save_to_disk and name that."
        ) from error


def _open(datasets: Any, source: Source) -> Any:
    saved = ("dataset_info.json", "dataset_dict.json")
    if not any((source.path / name).exists() for name in saved):
        name = str(source.path)
        if not source.path.exists():
            _refuse_unreachable(datasets, source.name)
        return datasets.load_dataset(name, source.config, split=source.split, streaming=True)
    rows = datasets.load_from_disk(str(source.path))
    has_splits = isinstance(rows, datasets.DatasetDict)
    if source.config or not (has_splits or source.split == "train"):
        option = "config" if source.config else "split"
        raise DataError(
            f"--dataset {source.name}: a folder of save_to_disk with one {option}, which has no "
            f"name there: leave --{option} away."
        )
    if not has_splits:
        return rows
    if source.split not in rows:
        raise DataError(
            f"--dataset {source.name}: no split {source.split!r}; there are "
            f"{', '.join(map(repr, rows))}. Name the right one: --split."
        )
    return rows[source.split]


def _refuse_unreachable(datasets: Any, name: str) -> None:
    """Raise DataError for what cannot be at the hub, and where that has no address at all.

    The library itself would try for half a minute.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"--dataset {name}: no such folder. Check the path.")
    if datasets.config.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    host = urllib.parse.urlsplit(datasets.config.HF_ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise DataError(
            f"--dataset {name}: no such folder, and {host}, where it could be, cannot be reached "
            f"({error.strerror}). Check the path, or the network."
        ) from error


def _records(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        has_bad_bytes = False
        for key, value in row.items():
            if isinstance(value, bytes):  # text that nobody marked as UTF-8
                text = value.decode("utf-8", "replace")
                has_bad_bytes = has_bad_bytes or text.encode() != value
                row = row | {key: text}
        yield f"{name}, row {number:,}", row, has_bad_bytes
