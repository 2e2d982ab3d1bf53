import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from common.dataset import SPLITS, verify_data
from prepare import corpus
from prepare.corpus import JSONL_NAME, TAR_NAME, write_corpus
from tests.prepare.making import prepare, snapshot, texts_of


def read_by_others(folder: Path) -> list[tuple[str, str]]:
    """Return the corpus's names and texts, by way of Python's tarfile and of zstandard alone."""
    documents = []
    with tarfile.open(folder / TAR_NAME, "r:xz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            documents.append((member.name, file.read().decode("utf-8")))
    raw = (folder / JSONL_NAME).read_bytes()
    lines = zstandard.ZstdDecompressor().stream_reader(raw).readall()
    records = [json.loads(line) for line in lines.split(b"\n") if line]
    return documents + [(record["name"], record["text"]) for record in records]


@pytest.mark.parametrize(
    ("max_characters", "enough_bytes"),
    [
        pytest.param(1_000_000, 1_000_000, id="an eighth"),
        pytest.param(corpus.MAX_CHARACTERS, 5_000_000, id="whole", marks=pytest.mark.slow),
    ],
)
def test_the_corpus_is_text_that_differs_the_same_each_time_and_prepare_reads_all_of_it(
    max_characters: int, enough_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_CHARACTERS", max_characters)
    written = [write_corpus(tmp_path / name) for name in ("1", "2")]
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    assert set(snapshot(tmp_path / "1")) == {TAR_NAME, JSONL_NAME}
    documents = read_by_others(tmp_path / "1")
    names, texts = ({document[i] for document in documents} for i in (0, 1))
    assert len(names) == len(texts) == len(documents)
    n_bytes = sum(len(text.encode()) for text in texts)
    assert written == [(len(documents), n_bytes)] * 2
    assert n_bytes >= enough_bytes
    data = prepare([tmp_path / "1"], tmp_path / "data", tokenizer="bpe", split_rule="hash")
    assert data.meta["skipped"] == []
    assert data.meta["n_bad_bytes"] == data.meta["n_with_nul"] == data.meta["n_empty"] == 0
    assert {text.decode() for split in SPLITS for text in texts_of(data, split)} == texts
    verify_data(data)
