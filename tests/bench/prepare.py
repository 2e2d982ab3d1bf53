"""Prepare against the usual way: datasets.map + tiktoken + memmap, as nanoGPT's prepare does it.

Where the time goes on two cores, for each MB of such text: on one zstd and JSON, 3 ms, or xz,
12 ms, and tiktoken's sample, 0.7 ms; on the other gigatoken, 1.8 ms, writing and SHA-256, 1.1 ms,
and Python, hashes and copies, 2 ms; a tar's members take 3 to 5 ms more. Beginning takes 0.3 s
besides: Python and its modules, the first documents, GPT-2's vocabulary, gigatoken's tables.

Tried and without gain: threads, in place of processes, that judge or write (each waits for the
interpreter's lock, and so does what it should relieve), and ids that are not copied at once.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import tiktoken
import zstandard

from common.errors import UserError
from common.tokenizer import BytePairTokenizer
from prepare.corpus import documentation
from prepare.tokens.encode import make_encoder
from prepare.tokens.vocab_and_split import published_tokenizer, train_bpe
from tests.bench.table import compare

MB = 1_000_000
SMALL, MEDIUM, LARGE = 100 * MB, 400 * MB, 1_000 * MB
# As on most machines: Python keeps modules compiled, and does not compile ours at every start.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
SHARED = Path(__file__).resolve().parents[3] / "shared/data"  # speeches, Wikipedia, plays, sums
DOCUMENT_CHARACTERS = 5_000  # as OpenWebText's
N_ARCHIVES = 16
N_IDS = 8_192  # learned, where GPT-2's vocabulary is not on this machine

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


def natural_texts(n_bytes: int) -> Iterator[str]:
    """Yield documents of natural text, of about n_bytes; each turn through them bears another mark.

    One turn is longer than what xz looks back (8 MiB), so that repetition makes it no quicker.
    """
    paths = sorted(SHARED.rglob("*.txt")) + sorted(SHARED.rglob("*.jsonl"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    if not texts:
        sys.stdout.write("No shared/data beside this folder: measured on documentation instead.\n")
        texts = [text for _, text in documentation()]
    n_given = turn = 0
    while True:
        for text in texts:
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                document = f"{text[start : start + DOCUMENT_CHARACTERS]}\n{turn}"
                yield document
                n_given += len(document.encode())
                if n_given >= n_bytes:
                    return
        turn += 1


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = _vocabulary(folder)
        _encoding(vocabulary)
        source = _json_lines(folder / "small.jsonl.zst", SMALL)
        _against_datasets(folder, source, SMALL)
        medium = _json_lines(folder / "medium.jsonl.zst", MEDIUM)
        _against_datasets(folder, medium, MEDIUM)
        medium.unlink()
        parts = _archives(folder)
        _against_xz(folder, parts)
        _many_archives(folder, parts)
        _growth(folder, source)


def _vocabulary(folder: Path) -> BytePairTokenizer:
    try:
        tokenizer = published_tokenizer("gpt2")
    except UserError:
        tokenizer = train_bpe([text.encode() for text in natural_texts(20 * MB)], N_IDS)
    (folder / "vocab.tiktoken").write_bytes(tokenizer.file_content)
    (folder / "vocab.tiktoken.pattern").write_text(tokenizer.pattern, encoding="utf-8")
    sys.stdout.write(f"Vocabulary: {tokenizer.name}, {len(tokenizer.ranks):,} ids\n")
    return tokenizer


def _encoding(tokenizer: BytePairTokenizer) -> None:
    texts = list(natural_texts(SMALL))
    raw = [text.encode("utf-8") for text in texts]
    n_mb = sum(map(len, raw)) / MB
    peer = tiktoken.Encoding(
        "peer", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )

    def ours() -> None:
        name, encode = make_encoder(tokenizer)  # a new one: what it has seen before is quicker
        assert name == "gigatoken"
        for start in range(0, len(raw), 400):
            encode(raw[start : start + 400])

    compare(
        f"Encoding {n_mb:.0f} MB, {len(raw):,} documents", "MB/s",
        {
            "ours, one core, a sample judged": _rate(n_mb, ours),
            f"tiktoken encode_ordinary_batch on {os.cpu_count()}": _rate(
                n_mb, lambda: peer.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
            ),
        },
    )  # fmt: skip


def _rate(n_mb: float, act: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        act()
        return n_mb / (time.perf_counter() - start)

    return measure


def _json_lines(path: Path, n_bytes: int) -> Path:
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for text in natural_texts(n_bytes):
            writer.write(json.dumps({"text": text}).encode() + b"\n")
    return path


def _tar_xz(path: Path, texts: list[str]) -> Path:
    with lzma.open(path, "wb", preset=6) as file, tarfile.open(fileobj=file, mode="w|") as tar:
        for i, text in enumerate(texts):
            raw = text.encode()
            member = tarfile.TarInfo(f"openwebtext/{i:07}.txt")
            member.size = len(raw)
            tar.addfile(member, BytesIO(raw))
    return path


def _ours(folder: Path, *arguments: str | Path, core: int | None = None) -> None:
    """Run prepare as a process of its own, into a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [
            sys.executable, "-m", "prepare", "text", *map(str, arguments),
            "--tokenizer", str(folder / "vocab.tiktoken"), "--out", out,
        ]  # fmt: skip
        pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
        subprocess.run(command, check=True, capture_output=True, preexec_fn=pin, env=ENVIRONMENT)


def _against_datasets(folder: Path, source: Path, n_bytes: int) -> None:
    def peer() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            vocabulary = str(folder / "vocab.tiktoken")
            subprocess.run(
                [sys.executable, "-c", PEER, str(source), vocabulary, out],
                check=True, capture_output=True, env=ENVIRONMENT,
            )  # fmt: skip

    n_mb = n_bytes / MB
    compare(
        f".jsonl.zst to .bin, {n_mb:.0f} MB of text, whole process", "MB/s",
        {
            "ours": _rate(n_mb, lambda: _ours(folder, source)),
            f"datasets.map on {os.cpu_count()}, tiktoken, memmap": _rate(n_mb, peer),
        },
    )  # fmt: skip


def _archives(folder: Path) -> list[Path]:
    """Return four .tar.xz of SMALL in all."""
    texts = list(natural_texts(SMALL))
    return [_tar_xz(folder / f"part{i}.tar.xz", texts[i::4]) for i in range(4)]


def _against_xz(folder: Path, parts: list[Path]) -> None:
    if shutil.which("xz") is None:
        sys.stdout.write("\nNo xz on this machine: one .tar.xz against xz -dc is left out.\n")
        return
    source = folder / "one.tar.xz"
    for n_times in (1, 4):
        with source.open("wb") as file:  # archives joined are one, to xz and to us
            for part in parts * n_times:
                file.write(part.read_bytes())
        _one_xz(folder, source, n_times * SMALL // MB)
    source.unlink()


def _one_xz(folder: Path, source: Path, n_mb: int) -> None:
    xz = ["xz", "-dc", str(source)]
    compare(
        f"One .tar.xz of {n_mb} MB of text to .bin, whole process; 0.80: a quarter longer", "MB/s",
        {
            "ours": _rate(n_mb, lambda: _ours(folder, source)),
            "xz -dc to nowhere": _rate(
                n_mb, lambda: subprocess.run(xz, check=True, stdout=subprocess.DEVNULL)
            ),
        },
    )  # fmt: skip


def _many_archives(folder: Path, parts: list[Path]) -> None:
    archives = folder / "archives"
    archives.mkdir()
    for i in range(N_ARCHIVES):
        shutil.copy(parts[i % len(parts)], archives / f"{i:02}.tar.xz")
    n_mb = N_ARCHIVES // len(parts) * SMALL / MB
    compare(
        f"{N_ARCHIVES} .tar.xz of {n_mb:.0f} MB of text in all", "MB/s",
        {
            "on two cores": _rate(n_mb, lambda: _ours(folder, archives)),
            "on one": _rate(n_mb, lambda: _ours(folder, archives, core=0)),
        },
    )  # fmt: skip
    with Memory() as memory:
        _ours(folder, archives, "--workers", "2")
    sys.stdout.write(f"Peak memory, all processes together: {memory.peak_bytes / MB:,.0f} MB\n")
    shutil.rmtree(archives)


def _growth(folder: Path, small: Path) -> None:
    large = _json_lines(folder / "large.jsonl.zst", LARGE)
    peaks: dict[Path, float] = {}

    def run(source: Path) -> None:
        with Memory() as memory:
            _ours(folder, source)
        peaks[source] = max(peaks.get(source, 0), memory.peak_bytes / MB)

    compare(
        "Growth: one .jsonl.zst, ten times as much", "MB/s",
        {
            "1,000 MB": _rate(LARGE / MB, lambda: run(large)),
            "100 MB": _rate(SMALL / MB, lambda: run(small)),
        },
    )  # fmt: skip
    sys.stdout.write(
        f"Peak memory: {peaks[large]:,.0f} MB against {peaks[small]:,.0f} MB, "
        f"{peaks[large] / peaks[small]:.2f} times\n"
    )


class Memory:
    """The most memory that the processes begun inside have at any one time, by Linux's PSS.

    PSS shares out what several processes have in common, so that it adds up.
    """

    def __enter__(self) -> "Memory":
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            total = sum(map(_pss_bytes, _descendants(os.getpid())))
            self.peak_bytes = max(self.peak_bytes, total)


def _descendants(pid: int) -> Iterator[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for t in tasks for c in (t / "children").read_text("ascii").split()]
    except OSError:  # it ended meanwhile
        return
    for child in children:
        yield child
        yield from _descendants(child)


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0
    return 1024 * sum(int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:"))
