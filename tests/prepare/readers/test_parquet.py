"""Parquet files and data sets, written by pyarrow and datasets themselves."""

import io
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from common.dataset import NAMES_NAME
from common.errors import DataError
from prepare.chunks import DROP, END, Stats
from prepare.config import PrepareConfig
from prepare.pipeline import prepare_corpus
from prepare.readers.documents import read_source
from prepare.sources.discover import find_sources
from prepare.sources.source import Source, SourceList
from tests.prepare.making import json_lines, prepare, tar_of, texts_of

TEXTS = [f"row {i} of some, with \u00fcmlauts" for i in range(100)]


def parquet_of(columns: dict[str, Any], row_group_size: int = 30, **options: Any) -> bytes:
    raw = io.BytesIO()
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, raw, row_group_size=row_group_size, **options)
    return raw.getvalue()


def read(source: Source | Path, **settings: Any) -> tuple[list[bytes], Stats]:
    stats = Stats()
    sources = find_sources([source]) if isinstance(source, Path) else SourceList([source])
    texts = []
    for each in sources:
        config = PrepareConfig(**settings)
        for text, chunk_end in read_source(each, config, stats, lambda n_bytes: None):
            if chunk_end is END:
                texts.append(text)
            else:
                assert text == b"" if chunk_end is DROP else text.startswith(each.name.encode())
    return texts, stats


def raw(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("row_group_size", [1, 30, 1000])
def test_every_row_is_a_document(
    row_group_size: int, kind: Any, compression: str, tmp_path: Path
) -> None:
    columns = {"id": list(range(100)), "text": pyarrow.array(TEXTS, kind)}
    content = parquet_of(columns, row_group_size, compression=compression)
    (tmp_path / "a.parquet").write_bytes(content)
    found, stats = read(tmp_path / "a.parquet")
    assert found == raw(TEXTS)
    assert stats == Stats()


def test_it_is_known_by_its_content_in_archives_too(tmp_path: Path) -> None:
    content = parquet_of({"text": TEXTS})
    (tmp_path / "a.tar").write_bytes(tar_of({"x/1": content, "x/2.txt": b"plain"}))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1", content)
    (tmp_path / "c").write_bytes(content)
    found, stats = read(tmp_path)
    assert found == [*raw(TEXTS), b"plain", *raw(TEXTS), *raw(TEXTS)]
    assert stats == Stats()


def test_null_and_empty_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(parquet_of({"text": ["one", None, "", " \n", "two"]}))
    found, stats = read(tmp_path / "a")
    assert found == [b"one", b"two"]
    assert stats.n_empty == 3


def test_text_may_lie_deeper_in_a_list_or_under_a_name_with_a_dot(tmp_path: Path) -> None:
    columns = {
        "meta": [{"body": {"text": "deep"}, "n": 1}, {"body": {"text": "deeper"}, "n": 2}],
        "parts": [["one", "two"], ["three"]],
        "with.dot": ["dot", "dots"],
        "turns": [[{"role": "a", "text": "x"}, {"role": "b", "text": "y"}], [{"text": "z"}]],
    }
    (tmp_path / "a").write_bytes(parquet_of(columns))
    for key, expected in [
        ("meta.body.text", [b"deep", b"deeper"]),
        ("parts", [b"one\n\ntwo", b"three"]),
        ("with.dot", [b"dot", b"dots"]),
        ("turns.text", [b"x\n\ny", b"z"]),
    ]:
        assert read(tmp_path / "a", text_key=key)[0] == expected


def test_a_row_without_text_costs_one_document_where_asked(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": None}, None, {"text": "two"}]
    (tmp_path / "a").write_bytes(parquet_of({"meta": rows}))
    with pytest.raises(DataError, match=r"row 2: no text under the key 'meta\.text'"):
        read(tmp_path / "a", text_key="meta.text")
    found, stats = read(tmp_path / "a", text_key="meta.text", on_error="skip")
    assert found == [b"one", b"two"]
    assert stats.n_empty == 1
    assert stats.reasons == {"no text under the key 'meta.text'": 1}


def test_newlines_are_collapsed_and_zero_bytes_counted_in_rows_too(
    saved: Path, tmp_path: Path
) -> None:
    texts = ["\n\n one\n\n\n\ntwo \n", "a\0b"]
    (tmp_path / "a").write_bytes(parquet_of({"text": texts}))
    found, stats = read(tmp_path / "a", collapse_newlines=True)
    assert found == [b"one\n\ntwo", b"a\0b"]
    assert stats.n_with_nul == 1
    rows = pytest.importorskip("datasets").Dataset.from_dict({"text": texts})
    rows.save_to_disk(tmp_path / "rows")
    assert read(data_set(tmp_path / "rows"), collapse_newlines=True) == (found, stats)


@pytest.mark.parametrize("key", ["text", "meta.text", "meta.n", "id"])
def test_a_missing_column_is_a_sentence_that_lists_those_there_are(
    key: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_of({"id": [1, 2], "body": ["x", "y"], "meta": [{"n": 1}, {"n": 2}]}))
    with pytest.raises(
        DataError, match=rf"^{path}.*: (no|the column) .*{key}.*--text-key"
    ) as caught:
        read(path, text_key=key)
    if key == "text":
        assert "'id', 'body', 'meta'" in caught.value.message


CONTENT = parquet_of({"text": TEXTS}, compression="none")


@pytest.mark.parametrize("n_kept", [4, 5, 8, 100, 1000, len(CONTENT) - 1, len(CONTENT) - 9])
@pytest.mark.parametrize("in_tar", [False, True])
def test_a_file_cut_short_is_a_sentence(in_tar: bool, n_kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(tar_of({"x": CONTENT[:n_kept]}) if in_tar else CONTENT[:n_kept])
    with pytest.raises(DataError, match=rf"^{path}.*: damaged or cut short parquet"):
        read(path)
    found, stats = read(path, on_error="skip")
    assert found == []
    assert stats.reasons == {"damaged or cut short parquet": 1}


def test_damage_anywhere_is_a_sentence_or_seen_in_no_text(tmp_path: Path) -> None:
    """Uncompressed pages without checksums cannot tell; what else comes must be a DataError."""
    path = tmp_path / "a"
    messages = []
    for position in range(4, len(CONTENT), 7):
        damaged = bytearray(CONTENT)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            read(path)
        except DataError as error:
            messages.append(error.message)
    assert len(messages) > 10
    assert all(message.startswith(str(path)) for message in messages)


def test_a_parquet_file_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(parquet_of({"text": ["x" * 100_000 + str(i) for i in range(400)]}, 50))
    (source,) = find_sources([path])
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    largest = 0
    for _ in read_source(source, PrepareConfig(), Stats(), lambda n_bytes: None):
        largest = max(largest, pool.bytes_allocated() - before)
    assert largest < 16_000_000  # of 40 MB, in row groups of 5


def test_a_parquet_file_of_a_long_row_has_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(parquet_of({"text": ["words " * 900_000, "short"]}))
    data = prepare([path], tmp_path / "data", split_rule="hash", val_fraction=0)
    assert texts_of(data, "train") == [b"words " * 900_000, b"short"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows as a data set of two splits, as one of them, and as JSON lines."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("datasets")
    rows = datasets.Dataset.from_dict(
        {"text": TEXTS, "body": [text.upper() for text in TEXTS], "n": list(range(100))}
    )
    rows.save_to_disk(folder / "one", num_shards=3)
    splits = {"train": rows, "test": rows.select(range(5))}
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    return folder


def data_set(path: Path, **changes: Any) -> Source:
    return Source(name=str(path), path=path, dataset=True, **changes)


def test_a_saved_data_set_gives_its_rows(saved: Path) -> None:
    assert read(data_set(saved / "one"))[0] == raw(TEXTS)
    assert read(data_set(saved / "one"), text_key="body")[0] == raw([t.upper() for t in TEXTS])
    assert read(data_set(saved / "splits"))[0] == raw(TEXTS)
    assert read(data_set(saved / "splits", split="test"))[0] == raw(TEXTS[:5])


def test_a_split_that_is_not_there_is_a_sentence_that_lists_those_there_are(saved: Path) -> None:
    message = r"^--dataset .*/splits: no split 'validation'; there are 'train', 'test'.*--split"
    with pytest.raises(DataError, match=message):
        read(data_set(saved / "splits", split="validation"))


def test_a_column_that_is_not_there_is_a_sentence_that_lists_those_there_are(saved: Path) -> None:
    message = r"/one, row 0: no text under the key 'story'; found the keys 'text', 'body', 'n'"
    with pytest.raises(DataError, match=message):
        read(data_set(saved / "one"), text_key="story")
    found, stats = read(data_set(saved / "one"), text_key="story", on_error="skip")
    assert found == []
    assert len(stats.reasons) == 1


def test_a_saved_data_set_is_prepared_as_its_rows_in_json_are(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    rows = prepare([tmp_path / "a.jsonl"], tmp_path / "rows", tokenizer="bpe", vocab_size="300")
    meta = prepare_corpus(
        SourceList([data_set(saved / "one")]), PrepareConfig(tokenizer="bpe", vocab_size="300"),
        tmp_path / "set", lambda name, size: lambda n_bytes: None,
    )  # fmt: skip
    assert (tmp_path / "set" / NAMES_NAME).read_text() == f"{saved / 'one'}\n"
    named = {NAMES_NAME: rows.meta["files"][NAMES_NAME]}
    assert meta["files"] | named == rows.meta["files"]
    assert meta["sources"][0]["size_bytes"] is None
    assert meta["sources"][0]["train"]["documents"] == 100


def test_a_name_at_the_hub_is_a_sentence_without_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = Source(name="someone/something", path=Path("someone/something"), dataset=True)
    with pytest.raises(DataError, match=r"^--dataset someone/something: cannot be opened") as error:
        read(source)
    assert "save_to_disk" in error.value.message
    assert "\n" not in error.value.message


def test_configuration_and_split_reach_the_library(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str, *, split: str, streaming: bool) -> Any:
        calls.append((name, config, split, streaming))
        return iter([{"text": "one"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1")
    path = Path("someone/something")
    source = Source(name=str(path), path=path, dataset=True, config="en", split="validation[:1%]")
    assert read(source)[0] == [b"one"]
    assert calls == [("someone/something", "en", "validation[:1%]", True)]


def test_without_the_package_a_data_set_is_a_sentence(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"^--dataset needs the package datasets: .*pip install"):
        read(data_set(saved / "one"))


def test_a_damaged_data_set_is_a_sentence(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "one", tmp_path / "copy")
    for shard in (tmp_path / "copy").glob("*.arrow"):
        os.truncate(shard, 100)
    with pytest.raises(DataError, match=r"^--dataset .*/copy: cannot be opened"):
        read(data_set(tmp_path / "copy"))


def test_text_in_bytes_that_nobody_marked_as_utf8_is_text(tmp_path: Path) -> None:
    values = [text.encode() for text in TEXTS] + [b"\xff damaged"]
    (tmp_path / "a.parquet").write_bytes(parquet_of({"text": pyarrow.array(values)}))
    found, stats = read(tmp_path / "a.parquet")
    assert found == [*raw(TEXTS), "\ufffd damaged".encode()]
    assert stats.n_bad_bytes == 1
    found, _ = read(tmp_path / "a.parquet", on_bad_bytes="skip")
    assert found == raw(TEXTS)


def test_a_column_of_numbers_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_of({"text": [1, 2], "body": ["a", "b"]}))
    with pytest.raises(DataError, match=r"'text' holds int64, not text; there are 'text', 'body'"):
        read(tmp_path / "a.parquet")


def test_of_a_data_set_with_sound_the_text_alone_is_read(tmp_path: Path) -> None:
    """Sound would need a package to be decoded."""
    datasets = pytest.importorskip("datasets")
    sound = {"bytes": b"RIFF", "path": None}
    rows = datasets.Dataset.from_dict({"text": TEXTS[:3], "audio": [sound] * 3})
    rows = rows.cast_column("audio", datasets.Audio())
    rows.save_to_disk(tmp_path / "spoken")
    assert read(data_set(tmp_path / "spoken"))[0] == raw(TEXTS[:3])


@pytest.mark.parametrize("name", ["one", "splits"])
def test_a_saved_data_set_that_is_named_as_a_folder_is_a_sentence(name: str, saved: Path) -> None:
    with pytest.raises(DataError, match=rf"save_to_disk wrote: pass --dataset {saved / name}$"):
        find_sources([saved / name])


@pytest.mark.parametrize("name", ["./saved/mydta", "/nowhere/mydata", "a/b/c", "mydta"])
def test_a_mistyped_folder_is_said_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "https://hub.invalid")
    for variable in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    source = Source(name=name, path=Path(name), dataset=True)
    with pytest.raises(DataError, match=f"^--dataset {re.escape(name)}: no such folder"):
        read(source)
