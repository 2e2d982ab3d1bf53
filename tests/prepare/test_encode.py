import logging
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    CharTokenizer,
    special_ids_after,
)
from prepare.encode import JUDGE_FIRST, EncodersDisagreeError, _Judged, make_encoder
from prepare.vocabulary import learn_bpe, published_tokenizer
from tests.prepare.making import prepare, snapshot

REPOSITORY = Path(__file__).resolve().parents[2]
PIECES = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Co", "Cn"])),
    st.sampled_from([*SPECIAL_TOKENS, "don't", "I'LL", "12345", "\0", "\r\n"]),
    st.sampled_from(["\u65e5\u672c\u8a9e", "\u0645\u0631\u062d", "\U0001f469\u200d\U0001f467"]),
    st.builds(str.__mul__, st.sampled_from([*"a \n^\xe91", "'s", " \t"]), st.integers(0, 3000)),
)
HOSTILE = st.lists(PIECES, max_size=8).map("".join)


@pytest.fixture(scope="module")
def learned() -> BytePairTokenizer:
    """A vocabulary learned from the source of this repository."""
    sources = sorted(REPOSITORY.glob("*/*.py"))
    return learn_bpe([source.read_bytes() for source in sources], 1_500)


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> BytePairTokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
        return published_tokenizer("gpt2")


def judge_of(tokenizer: BytePairTokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "judge", pat_str=GPT2_PATTERN, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )


def assert_equal_ids(tokenizer: BytePairTokenizer, texts: list[str]) -> None:
    name, encode_batch = make_encoder(tokenizer)
    assert name == "gigatoken"
    ids, lengths = encode_batch([text.encode() for text in texts])
    judge = judge_of(tokenizer)
    expected = [judge.encode_ordinary(text) for text in texts]
    assert lengths.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [i for row in expected for i in row]


@given(texts=st.lists(HOSTILE, min_size=1, max_size=20))
@settings(deadline=None, max_examples=200)
def test_gigatoken_gives_tiktokens_ids_with_a_learned_vocabulary(
    texts: list[str], learned: BytePairTokenizer
) -> None:
    assert_equal_ids(learned, texts)


@given(texts=st.lists(HOSTILE, min_size=1, max_size=20))
@settings(deadline=None, max_examples=40)  # each loads the 50,256 ranks twice
def test_gigatoken_gives_tiktokens_ids_with_gpt2s_vocabulary(
    texts: list[str], gpt2: BytePairTokenizer
) -> None:
    assert_equal_ids(gpt2, texts)


@pytest.mark.parametrize("character", ["a", " ", "\n", "^", "é", "界", "1", "\u0301"])
def test_gigatoken_gives_tiktokens_ids_on_runs_of_one_character(
    character: str, learned: BytePairTokenizer
) -> None:
    assert_equal_ids(learned, [character * 100_000, character * 99_999 + "x"])


def test_gigatoken_gives_tiktokens_ids_with_a_vocabulary_that_used_up_its_text() -> None:
    texts = [b"aaaaaaaaaaa bb", b"aaaa aaa", b"hello"]
    assert_equal_ids(learn_bpe(texts, 1000), ["aaaaaaa", " bbb hello aaaaaaaaaaaaa", "hell no"])


@pytest.mark.parametrize("fast", [True, False])
def test_special_tokens_in_the_text_are_ordinary_text(
    fast: bool, learned: BytePairTokenizer
) -> None:
    text = "".join(SPECIAL_TOKENS) + f" {END_OF_TEXT}"
    ids, _ = make_encoder(learned, fast=fast)[1]([text.encode()])
    assert set(ids.tolist()).isdisjoint(learned.special_tokens.values())
    assert learned.decode_bytes(ids.tolist()) == text.encode()


def test_a_vocabulary_that_gigatoken_cannot_take_is_left_to_tiktoken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Here no two tokens merge into b"quern", so no text ever yields it."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"quern": 256}
    tokenizer = BytePairTokenizer("odd", GPT2_PATTERN, ranks, special_ids_after(257))
    name, encode_batch = make_encoder(tokenizer)
    assert name == "tiktoken"
    assert "gigatoken cannot take this vocabulary" in caplog.text
    assert encode_batch([b"querns"])[0].tolist() == judge_of(tokenizer).encode_ordinary("querns")


def test_slow_means_tiktoken(learned: BytePairTokenizer) -> None:
    name, encode_batch = make_encoder(learned, fast=False)
    assert name == "tiktoken"
    texts = ["one", "", "two words"]
    ids, lengths = encode_batch([text.encode() for text in texts])
    rows = [judge_of(learned).encode_ordinary(text) for text in texts]
    assert ids.tolist() == list(chain.from_iterable(rows))
    assert lengths.tolist() == [len(row) for row in rows]


def test_characters_get_their_place_in_the_vocabulary() -> None:
    name, encode_batch = make_encoder(CharTokenizer(("\n", "a", "é", "😀")))
    assert name == "characters"
    ids, lengths = encode_batch(["a😀é".encode(), b"", b"\na"])
    assert ids.tolist() == [1, 3, 2, 0, 1]
    assert lengths.tolist() == [3, 0, 2]


def test_a_character_that_was_not_there_at_first_is_an_error() -> None:
    _, encode_batch = make_encoder(CharTokenizer(("a",)))
    with pytest.raises(DataError, match="changed while they were read"):
        encode_batch([b"ab"])


class FakeEncoder:
    """Has gigatoken's interface and tiktoken's ids, but those of texts with 'wrong' in them."""

    def __init__(self, tokenizer: BytePairTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_batch(self, texts: list[bytes]) -> SimpleNamespace:
        rows = [
            self._tokenizer.encode(text.decode())[:: -1 if b"wrong" in text else 1]
            for text in texts
        ]
        offsets = np.cumsum([0, *map(len, rows)])
        content = np.array(list(chain.from_iterable(rows)), np.uint32)
        return SimpleNamespace(
            layout=SimpleNamespace(
                offsets=SimpleNamespace(data=offsets), content=SimpleNamespace(data=content)
            )
        )


def test_a_difference_in_the_first_documents_is_always_found(learned: BytePairTokenizer) -> None:
    judged = _Judged(FakeEncoder(learned), learned)
    judged([b"right"] * (JUDGE_FIRST - 1))
    with pytest.raises(EncodersDisagreeError):
        judged([b"wrong words"])


def test_a_share_of_the_later_documents_is_judged_too(learned: BytePairTokenizer) -> None:
    judged = _Judged(FakeEncoder(learned), learned)
    judged([b"right"] * JUDGE_FIRST)
    with pytest.raises(EncodersDisagreeError):  # one in 200: some of 3,000 for all but certain
        judged([b"wrong words %d" % i for i in range(3_000)])


def test_after_a_difference_tiktoken_encodes_everything_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import gigatoken

    class FakeTokenizer:
        @staticmethod
        def from_tiktoken(path: Path, pretokenizer: str) -> FakeEncoder:
            lines = path.read_bytes().splitlines()
            assert len(lines) == 300
            assert pretokenizer == "gpt2"
            return FakeEncoder(tokenizer)

    (tmp_path / "in").mkdir()
    for i in range(20):
        text = f"what is right and what is {'wrong' if i == 17 else 'left'}, number {i}. " * 9
        (tmp_path / "in" / f"{i}.txt").write_text(text, encoding="utf-8")
    right = prepare([tmp_path / "in"], tmp_path / "right", tokenizer="bpe", vocab_size="300")
    assert right.meta["encoder"] == "gigatoken"
    loaded = right.tokenizer()
    assert isinstance(loaded, BytePairTokenizer)
    tokenizer = loaded
    monkeypatch.setattr(gigatoken, "Tokenizer", FakeTokenizer)
    with caplog.at_level(logging.WARNING):
        judged = prepare([tmp_path / "in"], tmp_path / "judged", tokenizer="bpe", vocab_size="300")
    assert judged.meta["encoder"] == "tiktoken"
    assert "gigatoken gave other ids than tiktoken" in caplog.text
    assert judged.meta["files"] == right.meta["files"]
    assert snapshot(judged.path).keys() == snapshot(right.path).keys()
