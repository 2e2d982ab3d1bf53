import itertools
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from common.dataset import SPLITS, DataFolder, Split
from common.errors import DataError
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
)
from prepare.report import export
from prepare.report.export import export_llmc, export_text
from tests.prepare.making import write_data

Exporter = Callable[[DataFolder, Path], list[Path]]

BYTES = {bytes([byte]): byte for byte in range(256)}
MERGES = {b"th": 256, b"the": 257, b' "': 258, b"\\n": 259, b"\xf0\x9f": 260, b"\x98\x80": 261}
# Beside text of every width: all that JSON escapes, what only looks like its lines, and what
# str.splitlines takes for line ends.
TEXTS = {
    "train": [
        "the theatre",
        "",
        '"}\n{"text": "',
        "\\n \\\\ \\u0041",
        "".join(map(chr, range(300))),
    ],
    "val": ["\u2028 \x85 \ud7ff\ue000 \ufffd \U0001f600a\U0010ffff", '{"text": "'],
}
TOKENIZERS: dict[str, Tokenizer] = {
    "bpe": BytePairTokenizer("small", GPT2_PATTERN, BYTES | MERGES, {END_OF_TEXT: 262}),
    "gpt2's end": BytePairTokenizer("gpt2", GPT2_PATTERN, BYTES | MERGES, {END_OF_TEXT: 50256}),
    "uint32": BytePairTokenizer("large", GPT2_PATTERN, BYTES | MERGES, {END_OF_TEXT: 100_257}),
    "char": CharTokenizer(tuple(sorted(set("".join(itertools.chain(*TEXTS.values())))))),
}


def write_texts(folder: Path, tokenizer: Tokenizer) -> DataFolder:
    """Write a data folder of TEXTS."""
    rows = {
        split: [[*tokenizer.encode(text), tokenizer.eot_id] for text in TEXTS[split]]
        for split in SPLITS
    }
    return write_data(folder, rows, tokenizer)


@pytest.fixture(params=TOKENIZERS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> DataFolder:
    return write_texts(tmp_path / "data", TOKENIZERS[request.param])


@pytest.fixture
def small(tmp_path: Path) -> DataFolder:
    """Return a folder whose ids fit on a line; 3 ends a document."""
    rows: dict[Split, list[list[int]]] = {"train": [[0, 1, 3], [3], [2, 2, 2, 3]], "val": [[1, 3]]}
    return write_data(tmp_path / "data", rows, CharTokenizer(("a", "b", "c")))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# text


@pytest.mark.parametrize("block_bytes", [4, 12, 1 << 20])
def test_the_documents_come_back_however_the_file_is_cut(
    data: DataFolder, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BLOCK_BYTES", block_bytes)
    paths = export_text(data, tmp_path / "out")
    assert paths == [tmp_path / "out" / "train.jsonl", tmp_path / "out" / "val.jsonl"]
    assert names(tmp_path / "out") == {"train.jsonl", "val.jsonl"}
    for split, path in zip(SPLITS, paths, strict=True):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS[split]]
        assert path.read_bytes() == "".join(lines).encode("utf-8")


def test_a_split_without_documents_is_an_empty_file_of_lines(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": [[0, 3]], "val": []}, CharTokenizer(("a", "b", "c")))
    export_text(data, tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == b'{"text": "a"}\n'
    assert (tmp_path / "val.jsonl").read_bytes() == b""


def test_memory_does_not_grow_with_a_document(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["bpe"]
    row = [ord("a")] * 4_000_000 + [tokenizer.eot_id]
    data = write_data(tmp_path, {"train": [row], "val": []}, tokenizer)
    del row
    tracemalloc.start()
    try:
        export_text(data, tmp_path)
        export_llmc(data, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "train.jsonl").stat().st_size == 4_000_000 + len('{"text": ""}\n')
    assert peak < 3_500_000  # the document has 4 MB of text and 8 MB of ids


# llmc


def test_a_shard_is_256_int32_then_the_end_of_text_id_then_the_ids(
    small: DataFolder, tmp_path: Path
) -> None:
    """By hand, from llm.c's dev/data/data_common.py."""
    train, val = export_llmc(small, tmp_path / "out")
    header = struct.pack("<256i", 20240520, 1, 9, *[0] * 253)
    assert train.read_bytes() == header + struct.pack("<9H", 3, 0, 1, 3, 3, 2, 2, 2, 3)
    header = struct.pack("<256i", 20240520, 1, 3, *[0] * 253)
    assert val.read_bytes() == header + struct.pack("<3H", 3, 1, 3)
    assert names(tmp_path / "out") == {"data_train_000000.bin", "data_val_000000.bin"}


def test_a_vocabulary_beyond_uint16_takes_llama_3s_header_and_uint32(tmp_path: Path) -> None:
    rows: dict[Split, list[list[int]]] = {"train": [[65, 100_257]], "val": []}
    data = write_data(tmp_path, rows, TOKENIZERS["uint32"])
    (shard,) = export_llmc(data, tmp_path / "out")
    header = struct.pack("<256i", 20240801, 7, 3, *[0] * 253)
    assert shard.read_bytes() == header + struct.pack("<3I", 100_257, 65, 100_257)


@pytest.mark.parametrize("block_bytes", [1, 6, 1 << 20])
@pytest.mark.parametrize("shard_tokens", range(1, 12))
def test_shards_laid_together_are_the_stream_for_any_size(
    small: DataFolder,
    shard_tokens: int,
    block_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "BLOCK_BYTES", block_bytes)
    paths = export_llmc(small, tmp_path / "out", shard_tokens=shard_tokens)
    assert paths == [
        tmp_path / "out" / f"data_{split}_{i:06}.bin"
        for split, n_tokens in [("train", 9), ("val", 3)]
        for i in range(-(-n_tokens // shard_tokens))
    ]
    train = [path.read_bytes() for path in paths if "train" in path.name]
    counts = [struct.unpack_from("<i", raw, 8)[0] for raw in train]
    assert [len(raw) for raw in train] == [1024 + 2 * count for count in counts]
    assert max(counts) <= shard_tokens
    assert max(counts) - min(counts) <= 1  # so that none is too short for a batch
    stream = b"".join(raw[1024:] for raw in train)
    assert stream == struct.pack("<H", 3) + (small.path / "train.bin").read_bytes()


def test_a_split_without_documents_has_no_shards(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": [[0, 3]], "val": []}, CharTokenizer(("a", "b", "c")))
    assert export_llmc(data, tmp_path) == [tmp_path / "data_train_000000.bin"]


def test_shards_of_a_larger_export_stop_it_before_anything_is_written(
    small: DataFolder, tmp_path: Path
) -> None:
    """A loader takes every file that its pattern fits."""
    out = tmp_path / "out"
    export_llmc(small, out, shard_tokens=4)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=rf"^{out}/data_train_000001\.bin: left by another export"):
        export_llmc(small, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    export_llmc(small, out, shard_tokens=3)  # none is left over


def test_modded_nanogpt_is_spoken_of_where_it_would_find_no_document(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("gpt2's end", "uint32"):
        export_llmc(write_texts(tmp_path / name, TOKENIZERS[name]), tmp_path / name)
    assert caplog.messages == []
    export_llmc(write_texts(tmp_path / "bpe", TOKENIZERS["bpe"]), tmp_path / "bpe")
    assert "The end-of-text id is 262, not GPT-2's 50256" in caplog.text


def test_an_export_again_replaces_the_files_and_leaves_nothing_behind(
    small: DataFolder, tmp_path: Path
) -> None:
    first = export_llmc(small, tmp_path / "out")
    shard = first[0].read_bytes()
    rows: dict[Split, list[list[int]]] = {"train": [[1, 3]], "val": [[2, 3]]}
    other = write_data(small.path, rows, CharTokenizer(("a", "b", "c")))
    assert first[0].read_bytes() == shard  # what was prepared later is another file
    export_llmc(other, tmp_path / "out")
    assert first[0].read_bytes()[1024:] == struct.pack("<3H", 3, 1, 3)
    assert names(tmp_path / "out") == {path.name for path in first}


# all


@pytest.mark.parametrize("export_as", [export_text, export_llmc])
def test_only_files_of_the_same_name_are_replaced(
    small: DataFolder, export_as: Exporter, tmp_path: Path
) -> None:
    (tmp_path / "fresh").mkdir()
    fresh = {path.name: path.read_bytes() for path in export_as(small, tmp_path / "fresh")}
    out = tmp_path / "out"
    out.mkdir()
    for name in (*fresh, "notes.txt"):
        (out / name).write_bytes(b"older")
    export_as(small, out)
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert found == fresh | {"notes.txt": b"older"}


@pytest.mark.parametrize("export_as", [export_text, export_llmc])
def test_a_place_that_cannot_be_written_is_an_error_in_a_sentence(
    small: DataFolder, export_as: Exporter, tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(DataError, match=f"^{tmp_path}/out: cannot be written"):
        export_as(small, tmp_path / "out")
