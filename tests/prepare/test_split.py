import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tokenfile import SPLITS
from prepare.split import hash_fraction, split_of, tail_start
from tests.prepare.making import json_lines, prepare, texts_of

TEXTS = [f"document number {i}, which is about {i * i}" for i in range(10_000)]


@pytest.mark.parametrize("val_fraction", [0.0, 0.01, 0.1, 0.5])
def test_the_share_of_val_is_near_what_is_asked(val_fraction: float) -> None:
    sides = Counter(split_of(text.encode(), val_fraction, seed=1337) for text in TEXTS)
    # five standard deviations of 10,000 draws
    leeway = 5 * (val_fraction * (1 - val_fraction) * len(TEXTS)) ** 0.5
    assert abs(sides["val"] - val_fraction * len(TEXTS)) <= leeway


def test_the_split_stays_what_it_was_in_earlier_versions() -> None:
    # hashlib.blake2b(b"quern", digest_size=8, salt=(1337).to_bytes(16, "little")).hexdigest()
    digest = bytes.fromhex("2f7103c91455c9ea")
    assert hash_fraction(b"quern", 1337) == int.from_bytes(digest, "little") / 2**64


def test_another_seed_draws_other_documents() -> None:
    drawn = [{t for t in TEXTS if split_of(t.encode(), 0.1, seed) == "val"} for seed in (1, 2)]
    assert 0 < len(drawn[0] & drawn[1]) < 0.2 * len(drawn[0])


@given(st.text(), st.floats(0, 1, exclude_max=True))
def test_the_tail_is_cut_between_characters_at_the_first_place_past_the_share(
    text: str, val_fraction: float
) -> None:
    raw = text.encode()
    cut = tail_start(raw, val_fraction)
    raw[:cut].decode(), raw[cut:].decode()
    wanted = int(len(raw) * (1 - val_fraction))
    assert wanted <= cut < wanted + 4


def test_the_split_is_the_same_for_any_order_and_layout_and_duplicates_never_straddle(
    tmp_path: Path,
) -> None:
    texts = TEXTS[:1200] + TEXTS[:300]
    shuffled = random.Random(0).sample(texts, len(texts))
    (tmp_path / "one.jsonl").write_bytes(json_lines(texts))
    for i in range(5):
        file = tmp_path / "folder" / str(i) / "part.jsonl"
        file.parent.mkdir(parents=True)
        file.write_bytes(json_lines(shuffled[i::5]))
    one = prepare([tmp_path / "one.jsonl"], tmp_path / "data 1")
    other = prepare([tmp_path / "folder"], tmp_path / "data 2")
    assert one.meta["split"]["rule"] == other.meta["split"]["rule"] == "hash"
    for split in SPLITS:
        assert sorted(texts_of(one, split)) == sorted(texts_of(other, split))
    train, val = (set(texts_of(one, split)) for split in SPLITS)
    assert train.isdisjoint(val)
    assert train | val == {text.encode() for text in texts}
    assert val == {t.encode() for t in texts if split_of(t.encode(), 0.1, 1337) == "val"}


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize(("n_documents", "rule"), [(999, "tail"), (1_000, "hash")])
def test_auto_goes_from_tail_to_hash_at_a_thousand_documents(
    n_documents: int, rule: str, tokenizer: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS[:n_documents]))
    data = prepare([tmp_path], tmp_path / "out", tokenizer=tokenizer)
    assert data.meta["split"]["rule"] == rule
    n_rows = sum(len(texts_of(data, split)) for split in SPLITS)
    assert n_rows == (2 * n_documents if rule == "tail" else n_documents)


def test_the_tail_of_each_document_goes_to_val(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789" * 10, encoding="utf-8")
    (tmp_path / "b.txt").write_text("ä" * 100, encoding="utf-8")  # two bytes each
    data = prepare([tmp_path], tmp_path / "out", val_fraction=0.25)
    assert texts_of(data, "train") == [b"0123456789" * 7 + b"01234", "ä".encode() * 75]
    assert texts_of(data, "val") == [b"56789" + b"0123456789" * 2, "ä".encode() * 25]


@pytest.mark.parametrize("rule", ["hash", "tail"])
def test_no_validation_is_possible(rule: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS[:20]))
    data = prepare([tmp_path], tmp_path / "out", val_fraction=0, split=rule)
    assert texts_of(data, "train") == [text.encode() for text in TEXTS[:20]]
    assert texts_of(data, "val") == []
