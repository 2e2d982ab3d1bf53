import random
from collections import Counter
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from common.dataset import SPLITS, Split
from prepare.config import PrepareConfig
from prepare.tokens.vocab_and_split import split_document, split_of, unit_hash
from tests.prepare.making import json_lines, prepare, texts_of


def side(text: str, config: PrepareConfig) -> Split:
    return split_of(xxhash.xxh3_128_digest(text.encode()), config)


TEXTS = [f"document number {i}, which is about {i * i}" for i in range(10_000)]


@pytest.mark.parametrize("val_fraction", [0.0, 0.01, 0.1, 0.5])
def test_the_share_of_val_is_near_what_is_asked(val_fraction: float) -> None:
    sides = Counter(side(text, PrepareConfig(val_fraction=val_fraction)) for text in TEXTS)
    # five standard deviations of 10,000 draws
    leeway = 5 * (val_fraction * (1 - val_fraction) * len(TEXTS)) ** 0.5
    assert abs(sides["val"] - val_fraction * len(TEXTS)) <= leeway


def test_the_split_stays_what_it_is_in_later_versions() -> None:
    digest = bytes.fromhex("d483a383bc596930ea0d8941912eac6d")  # printf quern | xxhsum -H2
    assert xxhash.xxh3_128_digest(b"quern") == digest
    assert unit_hash(digest, seed=1337) == 0xCA6BC2D8BFEAEF1C / 2**64  # by xxHash 0.8.4


def test_another_seed_draws_other_documents() -> None:
    configs = [PrepareConfig(seed=seed) for seed in (1, 2)]
    drawn = [{text for text in TEXTS if side(text, config) == "val"} for config in configs]
    assert 0 < len(drawn[0] & drawn[1]) < 0.2 * len(drawn[0])


@given(st.text(), st.floats(0, 1, exclude_max=True))
def test_the_tail_is_cut_between_characters_at_the_first_place_past_the_share(
    text: str, val_fraction: float
) -> None:
    raw = text.encode()
    parts = split_document(raw, b"", "tail", PrepareConfig(val_fraction=val_fraction), val=False)
    cut = len(dict(parts).get("train", b""))
    raw[:cut].decode(), raw[cut:].decode()
    wanted = int(len(raw) * (1 - val_fraction))
    assert wanted <= cut < wanted + 4


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("rule", ["hash", "tail", "files"])
def test_the_parts_of_a_document_are_it_again(rule: str, val: bool) -> None:
    config = PrepareConfig(val_fraction=0.3)
    for text in TEXTS[:200]:
        digest = xxhash.xxh3_128_digest(text.encode())
        parts = split_document(text.encode(), digest, rule, config, val=val)
        assert b"".join(part for _, part in parts) == text.encode()
        sides = [split for split, _ in parts]
        if rule == "tail":
            assert sides == ["train", "val"]
        else:
            of_file = "val" if val else "train"
            assert sides == [side(text, config) if rule == "hash" else of_file]


@pytest.mark.parametrize(("text", "side"), [(b"a", "val"), ("\u00e9".encode(), "train")])
def test_of_a_document_too_short_for_two_halves_the_whole_is_one(text: bytes, side: str) -> None:
    """By hand: int(1 * 0.9) is 0; int(2 * 0.9) is 1, inside of the one character."""
    assert split_document(text, b"", "tail", PrepareConfig(), val=False) == [(side, text)]


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
    assert val == {text.encode() for text in texts if side(text, PrepareConfig()) == "val"}


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
    data = prepare([tmp_path], tmp_path / "out", val_fraction=0, split_rule=rule)
    assert texts_of(data, "train") == [text.encode() for text in TEXTS[:20]]
    assert texts_of(data, "val") == []


def test_whole_files_are_val_and_the_rest_is_train(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(json_lines(["one", "two"]))
    (tmp_path / "in" / "b.jsonl").write_bytes(json_lines(["three", "four"]))
    (tmp_path / "held out.txt").write_text("five", encoding="utf-8")
    val_files = [tmp_path / "held out.txt", tmp_path / "in" / "b.jsonl"]
    data = prepare([tmp_path / "in"], tmp_path / "out", val_files, split_rule="hash")
    assert data.meta["split"]["rule"] == "files"
    assert texts_of(data, "train") == [b"one", b"two"]
    assert texts_of(data, "val") == [b"five", b"three", b"four"]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_all_of_a_corpus_may_be_validation(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only validation", encoding="utf-8")
    data = prepare([], tmp_path / "out", [tmp_path / "a.txt"], tokenizer=tokenizer)
    assert texts_of(data, "train") == []
    assert texts_of(data, "val") == [b"only validation"]
    assert "Nothing to train on: all text is val." in data.meta["warnings"][0]


def test_a_vocabulary_is_learned_from_train_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ababab " * 50, encoding="utf-8")
    (tmp_path / "b.txt").write_text("xyxyxy " * 50, encoding="utf-8")
    data = prepare(
        [tmp_path / "a.txt"], tmp_path / "out", [tmp_path / "b.txt"],
        tokenizer="bpe", vocab_size="300",
    )  # fmt: skip
    learned = [token for token in data.tokenizer().token_bytes[256:] if token]
    assert b"ab" in learned
    assert not any(b"x" in token for token in learned)
