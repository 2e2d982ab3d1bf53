"""What is found in a training text is what a search of it from end to end finds."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from common.dataset import DataFolder
from common.files import write_json
from common.suffix_array import SA_META_NAME
from common.tokenizer import Tokenizer, special_ids_after
from common.tracing import MIN_IDS, Passage, TracedData, Tracer, open_tracer
from prepare.output import index
from prepare.output.index import write_index
from tests.prepare.making import json_lines, prepare, tar_of, write_data
from tests.prepare.readers.test_documents import written
from tests.tiny import byte_tokenizer

BYTES = byte_tokenizer()
EOT, USER = BYTES.eot_id, BYTES.special_tokens["<|user|>"]
WIDE = replace(BYTES, special_tokens=special_ids_after(70_000))  # ids of four bytes
N_ANSWERS = 1_000


def no_progress(name: str, size: int) -> Any:
    return lambda n_bytes: None


def indexed(
    folder: Path,
    documents: list[list[int]],
    tokenizer: Tokenizer = BYTES,
    part_bytes: int = 1 << 20,
) -> DataFolder:
    rows = [[*row, tokenizer.eot_id] for row in documents]
    data = write_data(folder, {"train": rows, "val": []}, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "PART_BYTES", part_bytes)
        assert write_index(data, no_progress)
    return data


def some_documents(rng: random.Random, n: int) -> list[list[int]]:
    """Return documents of few ids, so that much occurs again, some of it from another one."""
    documents: list[list[int]] = []
    for _ in range(n):
        row: list[int] = []
        while len(row) < 150:
            if documents and rng.random() < 0.3:
                other = rng.choice(documents)
                start = rng.randrange(len(other))
                row += other[start : start + rng.randint(1, 40)]
            else:
                row += rng.choices(range(97, 101), k=rng.randint(1, 20))
        documents.append(row + [USER] * (rng.random() < 0.2) + row[:9])
    return documents


def some_answer(rng: random.Random, documents: list[list[int]]) -> list[int]:
    """Return cuts of documents, some of their ids changed, and noise, as they come."""
    answer: list[int] = []
    while len(answer) < 80:
        document = rng.choice(documents)
        start = rng.randrange(len(document))
        cut = document[start : start + rng.choice([3, 8, 9, 30, 200])]
        if rng.random() < 0.4:
            cut[rng.randrange(len(cut))] = rng.choice([97, 120, 256, 257])
        answer += cut if rng.random() < 0.8 else rng.choices(range(90, 110), k=len(cut) // 2)
    return answer


def found_by_search(
    answer: list[int], documents: list[list[int]], special: set[int]
) -> list[tuple[int, int]]:
    """Return the maximal spans by comparing the answer with every place of the documents."""
    text = np.array([-1 if idx in special else idx for row in documents for idx in [*row, -1]])
    # lengths[j]: how far the answer from i on, and the text from j on, are the same
    lengths = np.zeros(len(text) + 1, int)
    ends = [0] * len(answer)
    for i in range(len(answer) - 1, -1, -1):
        lengths[:-1] = np.where(text == answer[i], lengths[1:] + 1, 0)
        ends[i] = i + int(lengths.max())
    before = [0, *ends]
    return [
        (i, end) for i, end in enumerate(ends) if end - i >= MIN_IDS and end > max(before[: i + 1])
    ]


@pytest.mark.parametrize(
    ("tokenizer", "part_bytes"),
    [(BYTES, 1 << 20), (BYTES, 700), (WIDE, 3_000)],
    ids=["at-once", "parts", "uint32"],
)
def test_spans_are_those_of_a_search_from_end_to_end(
    tokenizer: Tokenizer, part_bytes: int, tmp_path: Path
) -> None:
    rng = random.Random(part_bytes)
    documents = some_documents(rng, 12)
    data = indexed(tmp_path / "data", documents, tokenizer, part_bytes)
    tracer = Tracer([TracedData(data)])
    n_spans, special = 0, set(tokenizer.special_tokens.values())
    for _ in range(N_ANSWERS // 3 + 1):
        answer = some_answer(rng, documents)
        expected = found_by_search(answer, documents, special)
        assert list(tracer.spans(answer)) == expected
        n_spans += len(expected)
    assert n_spans > 300  # else nothing was compared


def test_each_span_is_counted_and_has_passages_of_its_documents(tmp_path: Path) -> None:
    rng = random.Random(1)
    documents = some_documents(rng, 12)
    data = indexed(tmp_path / "data", documents, part_bytes=700)
    tracer = Tracer([TracedData(data)])
    raw = [bytes(idx if idx < 256 else 10 for idx in row).decode("latin-1") for row in documents]
    for _ in range(30):
        answer = some_answer(rng, documents)
        spans = tracer.trace(answer)
        assert [s.first - s.last for s in spans] == sorted(s.first - s.last for s in spans)
        for span in spans:
            text = bytes(answer[span.first : span.last]).decode("latin-1")
            starts = [[i for i in range(len(row)) if row.startswith(text, i)] for row in raw]
            assert span.n_found == sum(map(len, starts))
            assert len(span.passages) == min(3, sum(map(bool, starts)))
            assert len({passage.name for passage in span.passages}) == len(span.passages)
            for passage in span.passages:
                number = int(passage.name.rpartition(" ")[2]) - 1
                whole = passage.before + passage.text + passage.after
                at = raw[number].find(whole)
                assert at >= 0
                assert passage.text == text
                assert at + len(passage.before) in starts[number]
                assert len(passage.before) == min(100, at + len(passage.before))
                assert at + len(whole) == min(len(raw[number]), at + len(whole[:-100]) + 100)


def test_a_character_of_several_ids_belongs_to_where_it_begins(tmp_path: Path) -> None:
    text = "\u00fc" * 60 + "\u4e16\u754c and so on \U0001f600" + "\u00e9" * 60
    data = indexed(tmp_path / "data", [list(text.encode())])
    raw = text.encode()
    first = raw.index("\u754c".encode()) - 1  # from the last byte of one character
    last = raw.index("\U0001f600".encode()) + 2  # to within another
    (span,) = Tracer([TracedData(data)]).trace([*raw[first:last], 0xFF])
    (passage,) = span.passages
    assert passage == Passage(
        passage.name, None, "\u00fc" * 49 + "\u4e16", "\u754c and so on \U0001f600",
        "\u00e9" * 49,
    )  # fmt: skip


def run_of(folder: Path, data: DataFolder, init_from: Path | None = None) -> Path:
    """Write a run's settings; return where its checkpoint would be."""
    folder.mkdir(parents=True)
    settings = {
        "format": 1,
        "init_from": str(init_from) if init_from else None,
        "data": {"path": str(data.path), "sha256": data.sha256},
    }
    write_json(folder / "config.json", settings)
    return folder / "step-00000001"


def test_a_run_is_traced_through_those_that_it_began_from(tmp_path: Path) -> None:
    one = indexed(tmp_path / "one", [list(b"the quern turns grain into flour")])
    two = indexed(tmp_path / "two", [list(b"one person turns it slowly")])
    base = run_of(tmp_path / "runs" / "base", one)
    chat = run_of(tmp_path / "runs" / "chat", two, base)
    notices: list[str] = []
    tracer = open_tracer(chat, notices)
    assert tracer is not None
    found = tracer.trace(list(b"the quern turns it slowly"))
    names = {
        bytes(b"the quern turns it slowly"[s.first : s.last]): [p.name for p in s.passages]
        for s in found
    }
    assert names == {
        b"the quern turns ": ["one, document 1"],
        b"n turns it slowly": ["two, document 1"],
    }
    assert notices == []


def test_what_cannot_be_traced_is_left_out_and_said(tmp_path: Path) -> None:
    data = indexed(tmp_path / "data", [list(b"the quern turns grain")])
    folder = run_of(tmp_path / "run", data)
    assert open_tracer(folder) is not None
    meta = json.loads((data.path / SA_META_NAME).read_text())

    def said() -> str:
        notices: list[str] = []
        assert open_tracer(folder, notices) is None
        (sentence,) = notices
        return sentence

    write_json(data.path / SA_META_NAME, meta | {"bin_sha256": "0" * 64})
    assert "the index of another train.bin, which was there before" in said()
    write_json(data.path / SA_META_NAME, meta | {"format": 2})
    assert "format 2, but this version reads 1. Make it: python -m prepare index" in said()
    write_json(data.path / SA_META_NAME, meta | {"bounds": [22, 0]})
    assert "cannot be read as an index's (its bounds are not in order). Make it" in said()
    (data.path / SA_META_NAME).write_text("{")
    assert "cannot be read as an index's" in said()
    (data.path / SA_META_NAME).unlink()
    assert said() == f"{data.path}: has no index. Make it: python -m prepare index {data.path}"
    write_json(data.path / SA_META_NAME, meta)
    (data.path / "train.sa").write_bytes(b"1234")
    assert "train.sa: 4 bytes, but train.sa.json promises 88 bytes. Make it" in said()
    settings = json.loads((folder.parent / "config.json").read_text())
    settings["data"]["sha256"] = "0" * 64
    write_json(folder.parent / "config.json", settings)
    assert "but 000000000000 was learned: the data changed since" in said()
    settings["data"]["path"] = str(tmp_path / "gone")
    write_json(folder.parent / "config.json", settings)
    assert "gone: no such folder" in said()


def test_passages_keep_their_names_where_another_data_set_takes_its_place(tmp_path: Path) -> None:
    source = written(tmp_path / "quern.txt", b"the quern turns grain into flour\n" * 9)
    other = written(tmp_path / "other.txt", b"other words, and many more of them\n" * 90)
    data = prepare([source], tmp_path / "data", tokenizer="char")
    assert write_index(data, no_progress)
    tracer = Tracer([TracedData(data)])
    ids = data.tokens("train")[:20].tolist()
    before = tracer.trace(ids)
    assert before[0].passages[0].name == str(source)
    prepare([other, source], tmp_path / "data", tokenizer="char")
    assert tracer.trace(ids) == before


def test_a_passage_names_the_member_of_the_archive_and_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"record {i}, {'abcdefghij'[i] * 20} and more of it" for i in range(10)]
    lines = zstandard.compress(b"\n" + json_lines(texts))
    records = json.dumps([{"text": "first"}, {"text": "a poem of the second"}]).encode()
    inner = tar_of(
        {
            "d/lines.jsonl.zst": lines,
            "d/b.txt": b"a text that is alone in its file",
            "d/c.json": records,
        }
    )
    written(tmp_path / "src" / "all.tar", tar_of({"in.tar": inner}))
    data = prepare([Path("src")], Path("data"), val_fraction=0)
    assert write_index(data, no_progress)
    tracer = Tracer([TracedData(data)])
    for text, name, line in (
        ("so record 7, hhhhh", "src/all.tar/in.tar/d/lines.jsonl", 9),
        ("a text that is new", "src/all.tar/in.tar/d/b.txt", None),
        ("a poem of the sea", "src/all.tar/in.tar/d/c.json, document 2", None),
    ):
        (span,) = tracer.trace(data.tokenizer().encode(text))
        assert [(passage.name, passage.line) for passage in span.passages] == [(name, line)]
