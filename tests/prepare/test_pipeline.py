"""From archives to data/, in this process: what goes in comes out, whatever it was wrapped in."""

import base64
import gzip
import json
import lzma
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import zstandard

from common.errors import ConfigError, DataError
from common.tokenfile import SPLITS, DataFolder, open_data, verify_data
from common.tokenizer import END_OF_TEXT, SPECIAL_TOKENS
from prepare.config import PrepareConfig
from prepare.pipeline import Corpus, prepare_corpus
from prepare.sources import find_sources
from prepare.write import BATCH_BYTES
from tests.prepare.making import json_lines, prepare, snapshot, tar_of, texts_of, token_rows

EACH_TOKENIZER = ["char", "bpe", "gpt2"]


@pytest.fixture
def gpt2(shared: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="module")
def speeches(shared: Path) -> dict[str, bytes]:
    """Some speeches as they are, the Latin-1 ones among them."""
    found = {path.name: path.read_bytes() for path in (shared / "data/state_union").glob("*.txt")}
    in_latin_1 = [name for name in sorted(found) if b"\xef\xbf\xbd" in mended(found[name])]
    assert len(in_latin_1) > 1
    return {name: found[name] for name in [*in_latin_1[:4], *sorted(found)[:20]]}


def mended(raw: bytes) -> bytes:
    return raw.decode("utf-8", "replace").encode()


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
    in_order = [mended(speeches[name]) for i in range(3) for name in names[i::3]]
    (tmp_path / "openwebtext.tar.xz").write_bytes(lzma.compress(tar_of(inner), preset=0))
    lines = json_lines([text.decode() for text in in_order])
    (tmp_path / "dump.jsonl.zst").write_bytes(zstandard.compress(lines))
    settings = {"tokenizer": tokenizer, "vocab_size": "1000"}
    from_tar = prepare([tmp_path / "openwebtext.tar.xz"], tmp_path / "1", **settings)
    from_lines = prepare([tmp_path / "dump.jsonl.zst"], tmp_path / "2", **settings)
    assert joined(from_tar) == joined(from_lines) == in_order
    assert from_tar.meta["n_bad_bytes"] > 1
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
        lines = json_lines([mended(raw).decode() for raw in speeches.values()])
        source.write_bytes(tar_of({"part.jsonl.gz": gzip.compress(lines)}))
    else:
        tar = tar_of(speeches)
        source.write_bytes(tar if wrapping == "tar" else gzip.compress(tar))
    data = prepare([source], tmp_path / "data")
    assert sorted(joined(data)) == sorted(map(mended, speeches.values()))


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
        texts = [path.read_bytes().decode("utf-8", "replace") for path in sources]
    data = prepare(sources, tmp_path / "data", tokenizer="gpt2", split="hash", text_key="question")
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
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", tokenizer=tokenizer, split=rule)
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
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "c.bin").write_bytes(b"\0" * 9)
    data = prepare([folder], tmp_path / "data", split="hash", val_fraction=0.4)
    meta = data.meta
    texts = {split: texts_of(data, split) for split in SPLITS}
    assert meta["n_documents"] == 4
    assert sorted(texts["train"] + texts["val"]) == sorted(
        [b"one", b"two", b"three", mended(b"caf\xe9")]
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
    assert meta["skipped"] == [{"name": str(folder / "c.bin"), "reason": "binary, not text"}]
    assert meta["split"] == {"rule": "hash", "val_fraction": 0.4, "seed": 1337}
    assert meta["dtype"] == "uint16"


def test_documents_come_whole_and_in_order_through_many_batches(tmp_path: Path) -> None:
    texts = [f"{i} " * (600_000 if i % 7 == 0 else 5_000) for i in range(30)]
    assert sum(map(len, texts)) > BATCH_BYTES
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data")
    assert joined(data) == [text.encode() for text in texts]


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


@pytest.mark.parametrize("change", ["more documents", "another character"])
def test_a_source_that_changes_between_the_passes_is_an_error_and_leaves_no_data(
    change: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["one", "two"]))
    after = ["one", "two", "one"] if change == "more documents" else ["one", "tw\u00f6"]

    def new_progress(name: str) -> Any:
        if name == "encode":
            path.write_bytes(json_lines(after))
        return lambda n_bytes: None

    with pytest.raises(DataError, match="changed while they were read"):
        prepare_corpus(
            Corpus(find_sources([path])),
            PrepareConfig(tokenizer="char"),
            tmp_path / "data",
            new_progress,
        )
    assert snapshot(tmp_path / "data") == {}


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


def test_the_folder_written_to_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a story", encoding="utf-8")
    out = tmp_path / "data"
    prepare([tmp_path], out)
    assert (out / "meta.json").exists()
    assert [source.path.name for source in find_sources([tmp_path], out=out)] == ["a.txt"]


def test_standard_input_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a story", encoding="utf-8")
    (source,) = find_sources([Path("-"), Path("-")], stdin=tmp_path / "spool")
    assert (source.name, source.path) == ("standard input", tmp_path / "spool")
