"""Shards, sample and merge by one law: the data hold the documents, however the work was cut up."""

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.dataset import SPLITS, Split, verify_data
from common.errors import DataError
from prepare import chunks
from prepare.config import PrepareConfig
from prepare.output import dataset_writer, shard_writer
from prepare.output.dataset_writer import find_duplicates
from prepare.output.shard import ROW, Shard
from prepare.sources import source as reading
from prepare.tokens.encode import make_encoder
from prepare.tokens.sample import CorpusSample, SampleItem
from prepare.tokens.vocab_and_split import split_document, split_of
from prepare.workers import executor
from tests.prepare.making import json_lines, prepare, snapshot, texts_of, token_rows

WORDS = ["alpha", "beta", "gamma", "don't", "12", "345", "\u00fcmlaut", "\u6f22\u5b57", "foo_bar"]
WORDS += ["\n\n", "", "...", "\U0001f600", "<|endoftext|>"]
DAMAGED = object()  # a record that turns out to be none after much of it was read


@dataclass(frozen=True)
class Cut:
    """How small everything is cut, in the order of the work."""

    chunk_bytes: int
    batch_bytes: int
    group_bytes: int
    span_bytes: int
    sorted_rows: int
    block_rows: int
    copy_bytes: int

    @contextmanager
    def applied(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks, "MAX_CHUNK_BYTES", self.chunk_bytes)
            patch.setattr(shard_writer, "BATCH_BYTES", self.batch_bytes)
            patch.setattr(executor, "GROUP_BYTES", self.group_bytes)
            patch.setattr(reading, "RANGE_BYTES", self.span_bytes)
            patch.setattr(dataset_writer, "SORTED_ROWS", self.sorted_rows)
            patch.setattr(dataset_writer, "BLOCK_ROWS", self.block_rows)
            patch.setattr(dataset_writer, "COPY_BYTES", self.copy_bytes)
            yield


@dataclass(frozen=True)
class Given:
    """Files of documents, some of them damaged, and how to prepare them."""

    files: list[list[Any]]
    val_files: list[bool]
    config: PrepareConfig
    cut: Cut

    def written(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Write the files; return those that are train and those that are val."""
        sides: tuple[list[Path], list[Path]] = ([], [])
        for number, (documents, val) in enumerate(zip(self.files, self.val_files, strict=True)):
            path = folder / f"{number}.jsonl"
            lines = [
                json_lines(["junk " * 40])[:-3] + b"\n" if text is DAMAGED else json_lines([text])
                for text in documents
            ]
            path.write_bytes(b"".join(lines))
            sides[val].append(path)
        return sides


@st.composite
def corpora(draw: st.DrawFn) -> Given:
    n_words = st.sampled_from([1, 3, 50, 300])
    number = st.integers(0, 1 << 32)

    def words(n: int, seed: int) -> str:
        chosen = np.random.default_rng(seed).integers(len(WORDS), size=n)
        return " ".join(WORDS[i] for i in chosen)

    texts = st.one_of(
        st.builds(words, n_words, number),
        st.sampled_from(["again", "again and " * 30, " \n", DAMAGED]),
    )
    files = draw(st.lists(st.lists(texts, max_size=25), min_size=1, max_size=4))
    files[0] = ["a document without junk", *files[0]]
    by_file = draw(st.booleans())
    val_files = [by_file and i > 0 and draw(st.booleans()) for i in range(len(files))]
    tokenizer = draw(st.sampled_from(["char", "bpe"]))
    config = PrepareConfig(
        tokenizer=tokenizer,
        vocab_size="300" if tokenizer == "bpe" else "auto",
        split_rule=draw(st.sampled_from(["hash", "tail"])),
        dedup=draw(st.sampled_from(["none", "exact"])),
        val_fraction=draw(st.sampled_from([0, 0.1, 0.5])),
        on_error="skip",
    )
    cut = Cut(
        chunk_bytes=draw(st.sampled_from([64, 256, 1 << 22])),
        batch_bytes=draw(st.sampled_from([1, 100, 4_000])),
        group_bytes=draw(st.sampled_from([1, 10_000])),
        span_bytes=draw(st.sampled_from([300, 2_000, 1 << 26])),
        sorted_rows=draw(st.sampled_from([1, 7, 1_000])),
        block_rows=draw(st.sampled_from([1, 5, 10_000])),
        copy_bytes=draw(st.sampled_from([4, 100, 10_000])),
    )
    return Given(files, val_files, config, cut)


def expected_rows(case: Given) -> tuple[dict[Split, list[bytes]], int]:
    """Return the documents of each split and the number of duplicates, by the plainest code."""
    rows: dict[Split, list[bytes]] = {"train": [], "val": []}
    seen: set[bytes] = set()
    n_duplicates = 0
    for documents, of_val_file in zip(case.files, case.val_files, strict=True):
        for text in documents:
            if text is DAMAGED or not text.strip():
                continue
            raw = text.encode()
            n_duplicates += raw in seen
            if raw in seen and case.config.dedup == "exact":
                continue
            seen.add(raw)
            if any(case.val_files):
                rows["val" if of_val_file else "train"].append(raw)
            elif case.config.split_rule == "hash":
                rows[split_of(xxhash.xxh3_128_digest(raw), case.config)].append(raw)
            else:
                for split, half in split_document(raw, b"", "tail", case.config, val=False):
                    rows[split].append(half)
    return rows, n_duplicates


@given(case=corpora())
@settings(deadline=None, max_examples=50)
def test_the_data_hold_exactly_the_documents_however_the_work_is_cut(case: Given) -> None:
    with tempfile.TemporaryDirectory() as name, case.cut.applied():
        folder = Path(name)
        train, val = case.written(folder)
        rows, n_duplicates = expected_rows(case)
        if not (rows["train"] or any(case.val_files)):
            with pytest.raises(DataError, match="Nothing to train on: all text is val"):
                prepare(train, folder / "data", val, case.config)
            return
        data = prepare(train, folder / "data", val, case.config)
        tokenizer = data.tokenizer()
        verify_data(data)
        for split in SPLITS:
            assert texts_of(data, split) == rows[split]
            assert token_rows(data, split) == [
                [*tokenizer.encode(text.decode()), tokenizer.eot_id] for text in rows[split]
            ]
            assert data.meta["splits"][split] == {
                "documents": len(rows[split]),
                "bytes": sum(map(len, rows[split])),
                "tokens": len(data.tokens(split)),
            }
            by_source = [source[split] for source in data.meta["sources"]]
            for key, count in data.meta["splits"][split].items():
                assert sum(counts[key] for counts in by_source) == count
        in_files = [text for file in case.files for text in file]
        n_good = sum(text is not DAMAGED and bool(text.strip()) for text in in_files)
        dedup = case.config.dedup == "exact"
        assert data.meta["n_documents"] == n_good - (n_duplicates if dedup else 0)
        assert data.meta["n_duplicates"] == (n_duplicates if dedup else None)
        assert sum(data.meta["reasons"].values()) == in_files.count(DAMAGED)
        assert data.meta["n_forced_cuts"] == 0
        assert not (data.path / ".unfinished").exists()


@given(case=corpora())
@settings(deadline=None, max_examples=20)
def test_the_same_bytes_are_written_however_the_work_is_cut(case: Given) -> None:
    with tempfile.TemporaryDirectory() as name:
        train, val = case.written(Path(name))
        assume(expected_rows(case)[0]["train"])
        whole = prepare(train, Path(name, "whole"), val, case.config)
        with case.cut.applied():
            cut = prepare(train, Path(name, "cut"), val, case.config)
        # what a span skips is named by its place in the span; a span has its file's state again
        for meta in (cut.meta, whole.meta):
            del meta["meta_sha256"]
            meta["skipped"] = len(meta["skipped"])
            meta["made_from"]["sources"] = {str(state) for state in meta["made_from"]["sources"]}
        assert cut.meta == whole.meta
        for name in whole.meta["files"]:
            assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()


SMALL = Cut(
    chunk_bytes=256, batch_bytes=500, group_bytes=5_000, span_bytes=1 << 26,
    sorted_rows=1_000, block_rows=100, copy_bytes=100,
)  # fmt: skip


@pytest.mark.parametrize(
    "damage", ["no rows", "cut short", "a flipped bit", "no manifest", "nothing"]
)
@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_after_an_interrupt_only_what_is_missing_or_damaged_is_encoded_again(
    rule: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i}: " + "some words of it " * (i % 40) for i in range(60)]
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_bytes(json_lines(texts[i::3]))
    files = [tmp_path / f"{i}.jsonl" for i in range(3)]
    encoded: list[bytes] = []

    def noted(*arguments: Any, **named: Any) -> tuple[str, Any]:
        name, encode = make_encoder(*arguments, **named)

        def note(batch: list[bytes]) -> Any:
            encoded.extend(batch)
            return encode(batch)

        return name, note

    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_writer, "make_encoder", noted)
    with SMALL.applied():
        whole = prepare(files, tmp_path / "whole", split_rule=rule)
        n_encoded = len(encoded)
        with monkeypatch.context() as patch:
            patch.setattr("prepare.pipeline.merge", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare(files, tmp_path / "again", split_rule=rule)
        work = tmp_path / "again" / ".unfinished"
        shards = [Shard(work, path.stem) for path in sorted(work.glob(f"{'?' * 24}.json"))]
        assert len(shards) == 3
        shard = shards[1]
        ids = shard.ids_path("train")
        if damage == "no manifest":
            shard.manifest_path.unlink()
        elif damage == "no rows":
            shard.paths[-1].unlink()
        elif damage == "cut short":
            os.truncate(ids, ids.stat().st_size - 1)
        elif damage == "a flipped bit":
            raw = bytearray(ids.read_bytes())
            raw[len(raw) // 2] ^= 4
            ids.write_bytes(raw)
        assert [s.recover() for s in shards] == [True, damage == "nothing", True]
        encoded.clear()
        again = prepare(files, tmp_path / "again", split_rule=rule)
    assert (0 < len(encoded) < n_encoded) == (damage != "nothing")
    assert snapshot(again.path) == snapshot(whole.path)


def test_only_all_128_bits_make_documents_equal_and_halves_only_to_their_like(
    tmp_path: Path,
) -> None:
    hashes = [(1, 2), (1, 4), (0, 2), (1, 2), (1, 2), (0, 4), (1, 4)]
    first = [1, 1, 1, 0, 1, 0, 1]
    rows = np.zeros(len(hashes), ROW)
    rows["hash"], rows["first"] = hashes, first
    found = []
    for number, start, end in [(0, 0, 3), (1, 3, 3), (2, 3, 7)]:
        found.append(Shard(tmp_path, str(number)))
        found[-1].paths[-1].write_bytes(rows[start:end].tobytes())
    assert find_duplicates(found).tolist() == [False, False, False, False, True, False, True]


def test_a_long_document_is_never_in_memory(tmp_path: Path) -> None:
    n_bytes = 24 << 20
    with (tmp_path / "long.txt").open("wb") as file:
        for _ in range(n_bytes >> 16):
            file.write(b"a few words, " * 5041)
    cut = replace(SMALL, chunk_bytes=1 << 16, batch_bytes=1 << 16, copy_bytes=1 << 16)
    with cut.applied():
        tracemalloc.start()
        try:
            data = prepare([tmp_path / "long.txt"], tmp_path / "data", split_rule="tail")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert data.n_tokens("train") + data.n_tokens("val") == (n_bytes >> 16) * 5041 * 13 + 2
    # the table of a char vocabulary takes 4.5 MB
    assert peak < n_bytes / 2


def test_a_sample_that_was_saved_is_the_same(tmp_path: Path) -> None:
    sample = CorpusSample(n_documents=2, n_bytes=9, characters={"a", "\u6f22", "\n"})
    sample.lengths.append([3, 1, 1 << 40])
    sample.stats.skip("a", "why")
    sample.stats.encodings["cp1252"] += 1
    for i in range(9):
        item = SampleItem(i / 7 % 1, b"\n{}" * i, i, 99, i % 2 == 0, i % 3 == 0)
        sample.items.add(item)
    sample.items.threshold = 0.99
    sample.save(tmp_path / "sample")
    loaded = CorpusSample.load(tmp_path / "sample")
    assert loaded.items.items() == sample.items.items()
    assert loaded.items.threshold == sample.items.threshold
    assert replace(loaded, items=sample.items) == sample
