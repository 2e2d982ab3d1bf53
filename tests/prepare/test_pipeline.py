"""From archives to data/, in this process: what goes in comes out, whatever it was wrapped in."""

import base64
import gzip
import json
import logging
import lzma
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import zstandard

from common.dataset import SPLITS, DataFolder, open_data, verify_data
from common.errors import ConfigError, DataError
from common.tokenizer import END_OF_TEXT, SPECIAL_TOKENS
from prepare.config import PrepareConfig
from prepare.output.shard_writer import BATCH_BYTES
from prepare.pipeline import prepare_corpus
from prepare.readers.documents import PREFETCH_BYTES
from prepare.sources import made_from
from prepare.sources.discover import find_sources
from prepare.tokens.vocab_and_split import MIN_DOCUMENTS, train_bpe
from tests.prepare.making import json_lines, prepare, snapshot, tar_of, texts_of, token_rows

EACH_TOKENIZER = ["char", "bpe", "gpt2"]


@pytest.fixture
def gpt2(shared: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def speeches(shared: Path) -> dict[str, bytes]:
    """Some speeches as they are: in UTF-8, in cp1252, and in Big5, from an office in Taiwan."""
    found = {path.name: path.read_bytes() for path in (shared / "data/state_union").glob("*.txt")}
    not_utf8 = [name for name in sorted(found) if codec_of(found[name]) != "utf-8"]
    return {name: found[name] for name in [*not_utf8[:4], *sorted(found)[:20]]}


def codec_of(raw: bytes) -> str:
    try:
        raw.decode()
        return "utf-8"
    except UnicodeDecodeError:
        return "big5hkscs" if b"\xa1X" in raw else "cp1252"  # an em dash, as no other text has one


def as_text(raw: bytes) -> bytes:
    """Return what a plain file is read as."""
    return raw.decode(codec_of(raw)).replace("\r\n", "\n").encode()


def joined(data: DataFolder) -> list[bytes]:
    """Return the documents of a tail split with their two parts put together."""
    train, val = (texts_of(data, split) for split in SPLITS)
    return [head + tail for head, tail in zip(train, val, strict=True)]


def test_tinyshakespeare_in_characters_is_nanogpts(shared: Path, tmp_path: Path) -> None:
    text = (shared / "data/tinyshakespeare.txt").read_text(encoding="utf-8")
    (tmp_path / "tinyshakespeare.txt.xz").write_bytes(lzma.compress(text.encode(), preset=0))
    data = prepare([tmp_path / "tinyshakespeare.txt.xz"], tmp_path / "data")
    characters = json.loads((data.path / "vocab.json").read_bytes())
    assert characters == sorted(set(text))
    assert len(characters) == 65
    assert data.meta["tokenizer"]["special_tokens"] == {
        token: 65 + i for i, token in enumerate(SPECIAL_TOKENS)
    }
    cut = int(0.9 * len(text))  # as in nanoGPT's data/shakespeare_char/prepare.py
    for split, part, n_characters in [
        ("train", text[:cut], 1_003_854),
        ("val", text[cut:], 111_540),
    ]:
        ids = np.memmap(data.path / f"{split}.bin", dtype=np.uint16, mode="r")
        assert len(ids) == n_characters + 1
        assert ids[-1] == 65
        assert "".join(characters[i] for i in ids[:-1]) == part


@pytest.mark.parametrize("tokenizer", EACH_TOKENIZER)
def test_openwebtexts_tar_and_json_lines_give_the_same_documents(
    tokenizer: str, speeches: dict[str, bytes], gpt2: tiktoken.Encoding, tmp_path: Path
) -> None:
    names = list(speeches)
    inner = {
        f"openwebtext/urlsf_subset0{i}-{i}_data.xz": lzma.compress(
            tar_of({name: speeches[name] for name in names[i::3]}), preset=0
        )
        for i in range(3)
    }
    in_order = [as_text(speeches[name]) for i in range(3) for name in names[i::3]]
    (tmp_path / "openwebtext.tar.xz").write_bytes(lzma.compress(tar_of(inner), preset=0))
    lines = json_lines([text.decode() for text in in_order])
    (tmp_path / "dump.jsonl.zst").write_bytes(zstandard.compress(lines))
    settings: dict[str, Any] = {"tokenizer": tokenizer, "vocab_size": "1000"}
    from_tar = prepare([tmp_path / "openwebtext.tar.xz"], tmp_path / "1", **settings)
    from_lines = prepare([tmp_path / "dump.jsonl.zst"], tmp_path / "2", **settings)
    assert joined(from_tar) == joined(from_lines) == in_order
    assert from_tar.meta["n_bad_bytes"] == 0
    assert from_tar.meta["encodings"] == Counter(
        codec for raw in speeches.values() if (codec := codec_of(raw)) != "utf-8"
    )
    assert len(from_tar.meta["encodings"]) == 2
    for name in ("train.bin", "val.bin", "train.idx", "val.idx"):
        assert (from_tar.path / name).read_bytes() == (from_lines.path / name).read_bytes()
    everything = b"".join(joined(from_tar))
    assert b"ustar" not in everything
    assert b"\0" not in everything
    verify_data(from_tar)


@pytest.mark.parametrize("wrapping", ["tar", "tar.gz", "xz of each", "jsonl.gz.tar"])
def test_other_nestings_give_the_same_documents(
    wrapping: str, speeches: dict[str, bytes], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    if wrapping == "xz of each":
        source.mkdir()
        for name, raw in speeches.items():
            (source / f"{name}.xz").write_bytes(lzma.compress(raw, preset=0))
    elif wrapping == "jsonl.gz.tar":
        lines = json_lines([as_text(raw).decode() for raw in speeches.values()])
        source.write_bytes(tar_of({"part.jsonl.gz": gzip.compress(lines)}))
    else:
        tar = tar_of(speeches)
        source.write_bytes(tar if wrapping == "tar" else gzip.compress(tar))
    data = prepare([source], tmp_path / "data")
    assert sorted(joined(data)) == sorted(map(as_text, speeches.values()))


@pytest.mark.parametrize("in_json", [False, True], ids=["texts", "json lines"])
def test_every_id_of_real_text_is_tiktokens(
    in_json: bool, shared: Path, gpt2: tiktoken.Encoding, tmp_path: Path
) -> None:
    if in_json:
        sources = [shared / "data/gsm8k_train.jsonl"]
        lines = sources[0].read_text(encoding="utf-8").split("\n")
        texts = [json.loads(line)["question"] for line in lines if line]
    else:
        sources = sorted((shared / "data").rglob("*.txt"))
        texts = [as_text(path.read_bytes()).decode() for path in sources]
    data = prepare(
        sources, tmp_path / "data", tokenizer="gpt2", split_rule="hash", text_key="question"
    )
    assert data.meta["encoder"] == "gigatoken"
    found = Counter(tuple(row) for split in SPLITS for row in token_rows(data, split))
    assert found == Counter((*gpt2.encode_ordinary(text), 50256) for text in texts)


@pytest.mark.parametrize("tokenizer", EACH_TOKENIZER)
@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_the_only_end_of_text_ids_are_those_after_documents(
    rule: str, tokenizer: str, gpt2: tiktoken.Encoding, tmp_path: Path
) -> None:
    texts = [f"{i}: {END_OF_TEXT} and {''.join(SPECIAL_TOKENS)} in text" * 3 for i in range(40)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", tokenizer=tokenizer, split_rule=rule)
    special_ids = set(data.meta["tokenizer"]["special_tokens"].values())
    for split in SPLITS:
        raw = np.memmap(data.path / f"{split}.bin", dtype=np.uint16, mode="r")
        n_documents = data.meta["splits"][split]["documents"]
        assert (raw == data.tokenizer().eot_id).sum() == n_documents == len(texts_of(data, split))
        assert set(raw.tolist()) & special_ids == {data.tokenizer().eot_id}
    found = joined(data) if rule == "tail" else texts_of(data, "train") + texts_of(data, "val")
    assert sorted(found) == sorted(text.encode() for text in texts)


def test_meta_json_counts_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(json_lines(["one", "", "two", "three"]))
    (folder / "b.txt").write_bytes("caf\u00e9, th\u00e9".encode() + b"\xff")
    (folder / "c.bin").write_bytes(b"\0" * 9)
    data = prepare([folder], tmp_path / "data", split_rule="hash", val_fraction=0.4)
    meta = data.meta
    texts = {split: texts_of(data, split) for split in SPLITS}
    assert meta["n_documents"] == 4
    assert sorted(texts["train"] + texts["val"]) == sorted(
        [b"one", b"two", b"three", "caf\u00e9, th\u00e9\ufffd".encode()]
    )
    for split in SPLITS:
        assert meta["splits"][split] == {
            "documents": len(texts[split]),
            "bytes": sum(map(len, texts[split])),
            "tokens": sum(len(text.decode()) + 1 for text in texts[split]),
        }
    assert [Path(source["name"]).name for source in meta["sources"]] == [
        "a.jsonl",
        "b.txt",
        "c.bin",
    ]
    counted = [sum(s[split]["documents"] for split in SPLITS) for s in meta["sources"]]
    assert counted == [3, 1, 0]
    assert (meta["n_empty"], meta["n_bad_bytes"], meta["n_with_nul"]) == (1, 1, 0)
    assert meta["reasons"] == {"binary, not text": 1}
    assert [entry["name"] for entry in meta["skipped"]] == [str(folder / "c.bin")]
    assert meta["split"] == {"rule": "hash", "val_fraction": 0.4, "seed": 1337}
    assert meta["dtype"] == "uint16"


def test_documents_come_whole_and_in_order_through_many_batches(tmp_path: Path) -> None:
    texts = [f"{i} " * (600_000 if i % 7 == 0 else 5_000) for i in range(30)]
    assert sum(map(len, texts)) > BATCH_BYTES
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data")
    assert joined(data) == [text.encode() for text in texts]


@pytest.mark.parametrize("n_documents", [30, MIN_DOCUMENTS - 1, MIN_DOCUMENTS, 3_000])
@pytest.mark.parametrize("tokenizer", ["gpt2", "char"])
def test_a_source_read_ahead_of_its_vocabulary_gives_the_same_bytes(
    n_documents: int,
    tokenizer: str,
    tmp_path: Path,
    gpt2: tiktoken.Encoding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By one process and by several, whether the documents are split by hash or by tail."""
    texts = [f"{i} text " * (400_000 // n_documents) for i in range(n_documents)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    assert (tmp_path / "a.jsonl").stat().st_size > 2 * PREFETCH_BYTES
    helped = prepare([tmp_path / "a.jsonl"], tmp_path / "helped", tokenizer=tokenizer)
    monkeypatch.setattr("prepare.readers.prefetch.can_fork", lambda: False)
    alone = prepare([tmp_path / "a.jsonl"], tmp_path / "alone", tokenizer=tokenizer)
    assert snapshot(helped.path) == snapshot(alone.path)
    assert helped.meta["split"]["rule"] == ("hash" if n_documents >= MIN_DOCUMENTS else "tail")
    found = joined(helped) if n_documents < MIN_DOCUMENTS else None
    assert found is None or found == [text.encode() for text in texts]


def test_the_same_sources_give_the_same_bytes(speeches: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(speeches))
    for name in ("1", "2"):
        prepare([tmp_path / "a.tar"], tmp_path / name, tokenizer="bpe", vocab_size="700")
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_a_vocabulary_made_before_serves_another_corpus(tmp_path: Path) -> None:
    """Also one of more documents than are looked at to choose the split."""
    (tmp_path / "a.txt").write_text("one two three four " * 99, encoding="utf-8")
    first = prepare([tmp_path / "a.txt"], tmp_path / "1", tokenizer="bpe", vocab_size="270")
    texts = [f"number {i}" for i in range(1_500)]
    (tmp_path / "b.jsonl").write_bytes(json_lines(texts))
    vocabulary = str(first.path / "vocab.tiktoken")
    second = prepare([tmp_path / "b.jsonl"], tmp_path / "2", tokenizer=vocabulary)
    assert second.tokenizer() == first.tokenizer()
    assert second.vocabulary_sha256 == first.vocabulary_sha256
    found = [text for split in SPLITS for text in texts_of(second, split)]
    assert sorted(found) == sorted(text.encode() for text in texts)


def test_more_than_65536_ids_are_written_in_four_bytes(tmp_path: Path) -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(pair) for pair in product(range(256), repeat=2)][: 65_532 - 256]
    vocabulary = tmp_path / "large.tiktoken"
    vocabulary.write_bytes(
        b"".join(b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    )
    (tmp_path / "a.txt").write_text("some text " * 20, encoding="utf-8")
    data = prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer=str(vocabulary))
    assert data.meta["dtype"] == "uint32"
    assert np.memmap(data.path / "train.bin", dtype="<u4", mode="r")[-1] == 65_532
    assert joined(data) == [b"some text " * 20]
    verify_data(data)


def prepare_watched(path: Path, out: Path, watch: Callable[[str, int], Any]) -> None:
    """Prepare a file, ``watch`` being called with the name of each pass, and bytes as they go."""

    def new_progress(name: str, size: int) -> Callable[[int], None]:
        watch(name, 0)
        return lambda n_bytes: watch(name, n_bytes)

    prepare_corpus(find_sources([path]), PrepareConfig(tokenizer="char"), out, new_progress)


@pytest.mark.parametrize("when", ["before sample", "in sample", "before encode", "in encode"])
@pytest.mark.parametrize("change", ["more documents", "another character", "gone"])
def test_a_source_that_changes_while_it_is_read_is_an_error_and_leaves_no_data(
    change: str, when: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one of them", "two of them"]))
    after = ["one of them", "tw\u00f6 of them"] + ["a third one"] * (change == "more documents")

    def watch(name: str, n_bytes: int) -> None:
        if when == f"{'in' if n_bytes else 'before'} {name}":
            path.unlink(missing_ok=True)
            if change != "gone":
                path.write_bytes(json_lines(after))

    said = "cannot be read" if change == "gone" else "changed while it was read"
    with pytest.raises(DataError, match=rf"^{path}: {said}"):
        prepare_watched(path, tmp_path / "data", watch)
    left = {name for name in snapshot(tmp_path / "data") if not name.startswith(".unfinished/")}
    assert left == set()
    path.write_bytes(json_lines(after))
    assert joined(prepare([path], tmp_path / "data")) == [text.encode() for text in after]
    assert not (tmp_path / "data" / ".unfinished").exists()


def test_a_wrong_vocabulary_size_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "cut short.xz").write_bytes(lzma.compress(b"text")[:20])
    with pytest.raises(ConfigError, match="--vocab-size is '4k'"):
        prepare([tmp_path / "cut short.xz"], tmp_path / "data", tokenizer="bpe", vocab_size="4k")


def test_a_new_data_set_replaces_the_old_one(tmp_path: Path) -> None:
    for name, text in [("a.txt", "the old text"), ("b.txt", "the new one")]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        data = prepare([tmp_path / name], tmp_path / "data")
    assert joined(data) == [b"the new one"]
    verify_data(data)
    assert set(snapshot(data.path)) == {*data.meta["files"], "meta.json"}


def test_names_that_cannot_be_taken_are_an_error_and_leave_nothing_unfinished(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    (tmp_path / "data" / "val.bin").mkdir(parents=True)
    with pytest.raises(DataError, match="data: cannot be written"):
        prepare([tmp_path / "a.txt"], tmp_path / "data")
    assert not [name for name in snapshot(tmp_path / "data") if name.endswith(".tmp")]
    with pytest.raises(DataError, match=r"meta\.json: missing"):
        open_data(tmp_path / "data")


def test_a_vocabulary_of_an_earlier_data_set_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a story of some words " * 40, encoding="utf-8")
    prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer="char")
    prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer="bpe")
    assert not (tmp_path / "data" / "vocab.json").exists()
    assert (tmp_path / "data" / "vocab.tiktoken").exists()


def written_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "bpe", "dedup": "exact"}])
def test_nothing_is_done_where_nothing_changed(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.txt").write_text(f"text {i} " * 30, encoding="utf-8")
    first = prepare([tmp_path / "in"], tmp_path / "data", **settings)
    before = written_at(first.path)
    caplog.set_level(logging.INFO)
    again = prepare([tmp_path / "in"], tmp_path / "data", **settings)
    assert f"{first.path}: made of these sources, with these options: nothing to do" in caplog.text
    assert written_at(again.path) == before
    assert again.meta == first.meta


def changed_option(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"val_fraction": 0.25}


def changed_source(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "in" / "1.txt").write_text("another text", encoding="utf-8")
    return {}


def touched_source(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    os.utime(folder / "in" / "1.txt", ns=(0, 0))
    return {}


def new_source(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "in" / "3.txt").write_text("one more", encoding="utf-8")
    return {}


def gone_source(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "in" / "1.txt").unlink()
    return {}


def changed_tiktoken(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(made_from, "versions", lambda: made_from_versions() | {"tiktoken": "99.0"})
    return {}


def changed_python(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(made_from, "versions", lambda: made_from_versions() | {"python": "3.99"})
    return {}


def changed_recipe(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(made_from, "OUTPUT_VERSION", 99)
    return {}


def changed_ranks(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    ranks = train_bpe([b"quite another text"], 265)
    (folder / "ranks.tiktoken").write_bytes(ranks.file_content)
    return {}


def damaged_data(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    os.truncate(folder / "data" / "train.bin", 2)
    return {}


made_from_versions = made_from.versions


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_option, r"--val-fraction was 0\.1, and is 0\.25"),
        (changed_source, r"1 of the sources changed \(.*/in/1\.txt\)"),
        (touched_source, r"1 of the sources changed \(.*/in/1\.txt\)"),
        (new_source, r"1 of the sources changed \(.*/in/3\.txt\)"),
        (gone_source, r"1 of the sources changed \(one is gone\)"),
        (changed_tiktoken, r"tiktoken was \d.*, and is 99\.0"),
        (changed_recipe, "this version of prepare writes other files"),
        (changed_ranks, r"--tokenizer .*/ranks\.tiktoken is another file than it was"),
        (changed_python, None),
        (damaged_data, None),
    ],
)
def test_what_changed_is_made_again_and_the_reason_is_said(
    change: Callable[[Path, pytest.MonkeyPatch], dict[str, Any]],
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.txt").write_text(f"text {i} " * 30, encoding="utf-8")
    learned = train_bpe([b"text of which to learn " * 9], 265)
    (tmp_path / "ranks.tiktoken").write_bytes(learned.file_content)
    settings: dict[str, Any] = {"tokenizer": str(tmp_path / "ranks.tiktoken")}
    before = prepare([tmp_path / "in"], tmp_path / "data", **settings)
    written = written_at(before.path)
    settings |= change(tmp_path, monkeypatch)
    caplog.set_level(logging.INFO)
    again = prepare([tmp_path / "in"], tmp_path / "data", **settings)
    fresh = prepare([tmp_path / "in"], tmp_path / "fresh", **settings)
    assert again.meta["files"] == fresh.meta["files"]
    verify_data(again)
    if change is changed_python:
        assert written_at(again.path) == written
    elif reason is not None:
        assert re.search(f"data: made again: {reason}", caplog.text)
    assert (written_at(again.path) == written) == (change is changed_python)


def test_a_prepare_while_another_writes_there_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text", encoding="utf-8")
    refused = []

    def watch(name: str, n_bytes: int) -> None:
        if n_bytes:
            with pytest.raises(DataError, match="data: another prepare is writing there") as error:
                prepare([path], tmp_path / "data", tokenizer="bpe")
            refused.append(error.value)

    prepare_watched(path, tmp_path / "data", watch)
    assert len(refused) == 2
    data = open_data(tmp_path / "data")
    verify_data(data)
    assert data.tokenizer().kind == "char"


@pytest.mark.parametrize("dedup", ["none", "exact"])
def test_equal_documents_are_left_out_and_counted_where_asked(dedup: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one", "two", "one"]))
    (tmp_path / "b.txt").write_text("two", encoding="utf-8")
    (tmp_path / "c.txt").write_text("three", encoding="utf-8")
    data = prepare([tmp_path], tmp_path / "data", dedup=dedup, split_rule="hash", val_fraction=0)
    assert data.meta["n_duplicates"] == (None if dedup == "none" else 2)
    kept = [b"one", b"two", b"one", b"two", b"three"]
    assert texts_of(data, "train") == (kept if dedup == "none" else [b"one", b"two", b"three"])
    counted = [source["train"]["documents"] for source in data.meta["sources"]]
    assert counted == ([3, 1, 1] if dedup == "none" else [2, 0, 1])
    assert data.meta["n_documents"] == sum(counted)


def test_of_equal_documents_in_train_and_val_files_the_first_in_order_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one", "two"]))
    (tmp_path / "b.jsonl").write_bytes(json_lines(["three", "two"]))
    data = prepare([tmp_path], tmp_path / "data", [tmp_path / "a.jsonl"], dedup="exact")
    assert texts_of(data, "val") == [b"one", b"two"]
    assert texts_of(data, "train") == [b"three"]


@pytest.mark.parametrize("with_gigatoken", [True, False])
def test_a_million_blanks_go_through(
    with_gigatoken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ranks.tiktoken").write_bytes(train_bpe([b"some words"], 260).file_content)
    if not with_gigatoken:
        monkeypatch.setitem(sys.modules, "gigatoken", None)
    text = b"words " * 99 + b" " * 1_200_000 + b"x"
    (tmp_path / "a.txt").write_bytes(text)
    vocabulary = "bpe" if with_gigatoken else str(tmp_path / "ranks.tiktoken")
    data = prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer=vocabulary)
    assert data.meta["encoder"] == ("gigatoken" if with_gigatoken else "tiktoken")
    assert joined(data) == [text]
