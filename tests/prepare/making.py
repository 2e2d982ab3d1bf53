"""Archives made by hand, data folders made in this process, and what stands in them."""

import io
import json
import shutil
import struct
import tarfile
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.dataset import SPLITS, DataFolder, Split, open_data, token_dtype
from common.tokenizer import Tokenizer
from prepare.config import PrepareConfig
from prepare.output.commit import Files, commit
from prepare.output.dataset_writer import TokenWriter
from prepare.pipeline import prepare_corpus
from prepare.sources.discover import find_sources


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar of regular files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def json_lines(texts: list[str], key: str = "text") -> bytes:
    """Return one JSON object a line."""
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode("ascii")


def prepare(
    sources: list[Path],
    out: Path,
    val_files: Collection[Path] = (),
    config: PrepareConfig | None = None,
    **settings: Any,
) -> DataFolder:
    """Prepare ``sources`` into ``out`` in this process, by characters where not said otherwise."""
    prepare_corpus(
        find_sources(sources, val_paths=list(val_files), out=out),
        config or PrepareConfig(**{"tokenizer": "char"} | settings),
        out,
        lambda name, size: lambda n_bytes: None,
    )
    return open_data(out)


def write_data(
    folder: Path,
    documents: Mapping[Split, Sequence[Any]],
    tokenizer: Tokenizer,
    dtype: "np.dtype[Any] | None" = None,
    **meta: Any,
) -> DataFolder:
    """Write a data folder of documents of ids, each with its end-of-text id.

    They are taken to have 2 bytes a token; ``meta`` goes into meta.json.
    """
    work = folder / ".unfinished"
    work.mkdir(parents=True)
    files: Files = {}
    splits = {}
    for split in SPLITS:
        writer = TokenWriter(work, split, dtype or token_dtype(tokenizer.vocab_size))
        for row in documents[split]:
            assert np.max(row, initial=0) <= np.iinfo(writer.dtype).max
            writer.add_ids(np.array(row, writer.dtype).tobytes())
            writer.add_lengths(np.array([len(row)]))
        files |= writer.finish()
        counts = {"documents": writer.n_documents, "tokens": writer.n_tokens}
        splits[split] = counts | {"bytes": 2 * writer.n_tokens}
    commit(folder, work, files, tokenizer, {"splits": splits} | meta)
    shutil.rmtree(work)
    return open_data(folder)


def token_rows(data: DataFolder, split: Split) -> list[list[int]]:
    """Return the ids of each document, as nanoGPT's memmap and Megatron's index have them.

    None of our code reads here. Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
    """
    raw = (data.path / f"{split}.idx").read_bytes()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, n_sequences, n_documents = struct.unpack("<QBQQ", raw[9:34])
    assert version == 1
    assert n_documents == n_sequences + 1
    itemsize, dtype = {8: (2, "<u2"), 4: (4, "<i4")}[code]
    lengths_end = 34 + 4 * n_sequences
    pointers_end = lengths_end + 8 * n_sequences
    lengths = struct.unpack(f"<{n_sequences}i", raw[34:lengths_end])
    pointers = struct.unpack(f"<{n_sequences}q", raw[lengths_end:pointers_end])
    assert struct.unpack(f"<{n_documents}q", raw[pointers_end:]) == tuple(range(n_documents))
    path = data.path / f"{split}.bin"
    if not n_sequences:
        assert path.stat().st_size == 0
        return []
    ids = np.memmap(path, dtype=dtype, mode="r")
    assert pointers[-1] + itemsize * lengths[-1] == path.stat().st_size
    ends = [*pointers, path.stat().st_size]
    assert [(end - start) // itemsize for start, end in pairwise(ends)] == list(lengths)
    return [
        ids[start // itemsize : start // itemsize + length].tolist()
        for start, length in zip(pointers, lengths, strict=True)
    ]


def texts_of(data: DataFolder, split: Split) -> list[bytes]:
    """Return the documents of a split, decoded; the end-of-text id must end each, and only that."""
    tokenizer = data.tokenizer()
    rows = token_rows(data, split)
    for row in rows:
        assert row.index(tokenizer.eot_id) == len(row) - 1
    return [tokenizer.decode_bytes(row[:-1]) for row in rows]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by name; empty where there is no folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
