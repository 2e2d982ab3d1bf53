"""Prepare against the usual way: datasets.map + tiktoken + memmap, as nanoGPT's prepare does it.

Floor: a document must be decompressed, parsed and encoded once. On two cores zstd gives about
370 MB/s of text on one, json about 400, gigatoken about 230 on both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiktoken
import zstandard

from common.tokenizer import GPT2_PATTERN, BytePairTokenizer
from prepare.corpus import documentation
from prepare.encode import make_encoder
from prepare.vocabulary import learn_bpe

COPIES = 6  # of the documentation of this machine: about 48 MB
N_IDS = 8_192

# The peer, a process of its own as ours is: argv = jsonl.zst, vocabulary, folder.
PEER = """
import sys, os, numpy as np, tiktoken
from datasets import load_dataset
from tiktoken.load import load_tiktoken_bpe
source, vocabulary, folder = sys.argv[1:]
ranks = load_tiktoken_bpe(vocabulary)
pattern = open(vocabulary + ".pattern", encoding="utf-8").read()
enc = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
def process(example):
    ids = enc.encode_ordinary(example["text"]) + [len(ranks)]
    return {"ids": ids, "len": len(ids)}
rows = load_dataset("json", data_files=source, cache_dir=folder)["train"]
splits = rows.train_test_split(test_size=0.1, seed=2357, shuffle=True)
done = splits.map(process, remove_columns=["text"], num_proc=os.cpu_count())
for split, rows in done.items():
    arr = np.memmap(f"{folder}/{split}.bin", np.uint16, "w+", shape=(sum(rows["len"]),))
    at = 0
    n_shards = min(1024, len(rows))
    for i in range(n_shards):
        batch = rows.shard(n_shards, i, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        arr[at : at + len(ids)] = ids
        at += len(ids)
    arr.flush()
"""


def main() -> None:
    """Print both tables."""
    from tests.bench.table import compare

    texts = [f"{text}{i}" for i in range(COPIES) for _, text in documentation()]
    raw = [text.encode("utf-8") for text in texts]
    n_mb = sum(map(len, raw)) / 1e6
    tokenizer = learn_bpe(raw[: len(raw) // COPIES], N_IDS)
    name, encode_batch = make_encoder(tokenizer)
    peer = tiktoken.Encoding(
        "peer", pat_str=GPT2_PATTERN, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )

    def ours() -> float:
        start = time.perf_counter()
        encode_batch(raw)
        return n_mb / (time.perf_counter() - start)

    def tiktoken_batch() -> float:
        start = time.perf_counter()
        peer.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
        return n_mb / (time.perf_counter() - start)

    compare(
        f"Encoding {n_mb:.0f} MB, {len(raw):,} documents, {N_IDS:,} ids", "MB/s",
        {f"ours ({name}, a sample judged)": ours, "tiktoken encode_ordinary_batch": tiktoken_batch},
        repeats=3,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        _whole_process(Path(folder), texts, tokenizer, n_mb)


def _whole_process(
    folder: Path, texts: list[str], tokenizer: BytePairTokenizer, n_mb: float
) -> None:
    from tests.bench.table import compare

    source, vocabulary = folder / "corpus.jsonl.zst", folder / "vocab.tiktoken"
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    source.write_bytes(zstandard.ZstdCompressor().compress(lines))
    vocabulary.write_bytes(tokenizer.file_content())
    Path(f"{vocabulary}.pattern").write_text(GPT2_PATTERN, encoding="utf-8")

    def run(arguments: list[str]) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments, out], check=True, capture_output=True)
            return n_mb / (time.perf_counter() - start)

    ours = ["-m", "prepare", "text", str(source), "--tokenizer", str(vocabulary), "--out"]
    peer = ["-c", PEER, str(source), str(vocabulary)]
    compare(
        f".jsonl.zst to .bin, {n_mb:.0f} MB of text, whole process", "MB/s",
        {
            "ours": lambda: run(ours),
            f"datasets.map on {os.cpu_count()}, tiktoken, memmap": lambda: run(peer),
        },
        repeats=3,
    )  # fmt: skip
