"""Other projects' own readers and writers, or what their sources say of the format, as oracles."""

import importlib.util
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common.dataset import SPLITS, DataFolder, Split
from common.tokenizer import END_OF_TEXT, GPT2_PATTERN, BytePairTokenizer
from prepare.report.export import export_llmc
from tests.prepare.making import write_data
from tests.processes import run_python

GPT2_EOT = 50256
BYTES = {bytes([byte]): byte for byte in range(256)}


def make_data(folder: Path, eot_id: int, largest: int) -> tuple[DataFolder, dict[Split, list[int]]]:
    """Return a data folder of random ids below ``largest``, and those of each split."""
    random = np.random.default_rng(0)
    lengths: dict[Split, list[int]] = {"train": [5, 0, 1, 300, 2, 77], "val": [40, 3]}
    rows: dict[Split, list[list[int]]] = {
        split: [[*random.integers(largest, size=n).tolist(), eot_id] for n in lengths[split]]
        for split in SPLITS
    }
    rows["train"][0][0] = largest - 1
    tokenizer = BytePairTokenizer("gpt2", GPT2_PATTERN, BYTES, {END_OF_TEXT: eot_id})
    data = write_data(folder, rows, tokenizer)
    return data, {split: [i for row in rows[split] for i in row] for split in SPLITS}


@pytest.fixture(params=[(GPT2_EOT, GPT2_EOT), (200_018, 200_018)], ids=["uint16", "uint32"])
def data_and_ids(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[DataFolder, dict[Split, list[int]]]:
    return make_data(tmp_path / "data", *request.param)


def documents(ids: list[int], eot_id: int) -> list[list[int]]:
    """Cut a stream after each end-of-text id."""
    ends = [i + 1 for i, token in enumerate(ids) if token == eot_id]
    return [ids[start:end] for start, end in pairwise([0, *ends])]


# nanoGPT


def test_nanogpt_maps_the_ids_as_they_are(tmp_path: Path) -> None:
    """Source: nanoGPT, train.py, get_batch: np.memmap of uint16, y moved on by one."""
    data, ids = make_data(tmp_path, GPT2_EOT, GPT2_EOT)
    for split in SPLITS:
        mapped = np.memmap(data.path / f"{split}.bin", dtype=np.uint16, mode="r")
        x, y = (mapped[7 + shift : 23 + shift].astype(np.int64).tolist() for shift in (0, 1))
        assert mapped.tolist() == ids[split]
        assert x == ids[split][7:23]
        assert y == ids[split][8:24]


# Megatron-LM

# In a process of its own: its import takes seconds, warns, and tells torch.load what to trust.
MEGATRON = """
import json, sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

for line in sys.stdin:
    prefix, copy, dtype = json.loads(line)
    builder = IndexedDatasetBuilder(copy + ".bin", dtype=getattr(numpy, dtype))
    rows = {}
    for mmap in (True, False):
        read = IndexedDataset(prefix, mmap=mmap)
        rows[mmap] = [read[i].tolist() for i in range(len(read))]
    assert rows[True] == rows[False]
    assert read.index.dtype == getattr(numpy, dtype)
    assert read.document_indices.tolist() == list(range(len(read) + 1))
    for row in rows[True]:
        builder.add_item(torch.tensor(row))
        builder.end_document()
    builder.finalize(copy + ".idx")
    print(json.dumps(rows[True]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has wheels for Linux only"
)
def test_megatron_lm_reads_every_document_and_writes_the_same_bytes(tmp_path: Path) -> None:
    forms = [(GPT2_EOT, "uint16"), (200_018, "int32")]
    made = {dtype: make_data(tmp_path / dtype, eot_id, eot_id) for eot_id, dtype in forms}
    copies = {
        (dtype, split): tmp_path / f"{dtype}_{split}" for _, dtype in forms for split in SPLITS
    }
    lines = [
        json.dumps([str(tmp_path / dtype / split), str(copy), dtype]) + "\n"
        for (dtype, split), copy in copies.items()
    ]
    process = run_python(["-W", "ignore", "-c", MEGATRON], tmp_path, typed="".join(lines))
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in process.stdout.splitlines()]
    for ((dtype, split), copy), rows in zip(copies.items(), found, strict=True):
        data, ids = made[dtype]
        assert rows == documents(ids[split], data.tokenizer().eot_id)
        for suffix in ("bin", "idx"):
            ours = (data.path / f"{split}.{suffix}").read_bytes()
            assert copy.with_name(f"{copy.name}.{suffix}").read_bytes() == ours


# llm.c and modded-nanogpt


def load_shard(path: Path, magic: int = 20240520, version: int = 1) -> npt.NDArray[np.int64]:
    """Read a shard as llm.c does, which demands the exact size (llmc/dataloader.h)."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(256 * 4), np.int32)
        tokens = np.frombuffer(file.read(), {1: np.uint16, 7: np.uint32}[version])
    assert header[:2].tolist() == [magic, version]
    assert header[2] == len(tokens) > 0
    assert not header[3:].any()
    return tokens.astype(np.int64)


def llmc_batches(paths: list[Path], n: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (inputs, targets) of n = B * T tokens: n + 1 are read, the position moves on by n."""
    for path in paths:
        tokens = load_shard(path)
        assert len(tokens) >= n + 1  # llm.c refuses to start otherwise
        for i in range((len(tokens) - 1) // n):
            batch = tokens[i * n : i * n + n + 1].tolist()
            yield batch[:-1], batch[1:]


def modded_nanogpt_documents(paths: list[Path]) -> list[list[int]]:
    """Return what lies from each id 50256 to the next; before the first of a shard is nothing read.

    Source: modded-nanogpt, train_gpt.py, Shard.
    """
    found = []
    for path in paths:
        tokens = load_shard(path)
        starts = np.flatnonzero(tokens == GPT2_EOT).tolist()
        found += [tokens[a:b].tolist() for a, b in pairwise([*starts, len(tokens)])]
    return found


def test_llmc_reads_batches_of_the_stream(tmp_path: Path) -> None:
    data, ids = make_data(tmp_path / "data", GPT2_EOT, GPT2_EOT)
    stream = [GPT2_EOT, *ids["train"]]
    whole = sorted(path for path in export_llmc(data, tmp_path / "1") if "train" in path.name)
    batches = list(llmc_batches(whole, 16))
    assert len(batches) == (len(stream) - 1) // 16
    for i, (inputs, targets) in enumerate(batches):
        assert inputs == stream[16 * i : 16 * i + 16]
        assert targets == stream[16 * i + 1 : 16 * i + 17]


def test_llmc_finds_a_batch_in_every_shard(tmp_path: Path) -> None:
    """Shards of 391 tokens but the last would leave it one: llm.c would not start."""
    data, ids = make_data(tmp_path / "data", GPT2_EOT, GPT2_EOT)
    assert len(ids["train"]) + 1 == 392
    paths = export_llmc(data, tmp_path / "out", shard_tokens=391)
    shards = [load_shard(path) for path in sorted((tmp_path / "out").glob("data_train_*.bin"))]
    assert [len(shard) for shard in shards] == [196, 196]
    assert np.concatenate(shards).tolist() == [GPT2_EOT, *ids["train"]]
    assert list(llmc_batches([path for path in paths if "train" in path.name], 195))


def test_modded_nanogpt_finds_every_document(tmp_path: Path) -> None:
    data, ids = make_data(tmp_path / "data", GPT2_EOT, GPT2_EOT)
    for path, split in zip(export_llmc(data, tmp_path / "out"), SPLITS, strict=True):
        texts = [row[:-1] for row in documents(ids[split], GPT2_EOT)]
        # the id after the last document begins one without text
        assert modded_nanogpt_documents([path]) == [[GPT2_EOT, *text] for text in [*texts, []]]


def test_llmcs_llama_3_reads_ids_beyond_uint16(tmp_path: Path) -> None:
    """Source: llm.c, train_llama3.py, _load_data_shard."""
    data, ids = make_data(tmp_path / "data", 128_000, 128_000)
    for path, split in zip(export_llmc(data, tmp_path / "out"), SPLITS, strict=True):
        assert load_shard(path, magic=20240801, version=7).tolist() == [128_000, *ids[split]]
