import base64
import json
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from common.errors import DataError
from common.tokenizer import (
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
    read_ranks,
    save_tokenizer,
    special_ids_after,
)

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b" th": 257, b" the": 258}
BYTE_PAIRS = BytePairTokenizer("bpe", GPT2_PATTERN, RANKS, special_ids_after(259))
CHARACTERS = CharTokenizer(("\n", '"', "a", "b", "\u2028", "é", "😀"))
each_kind = pytest.mark.parametrize("tokenizer", [BYTE_PAIRS, CHARACTERS], ids=["bpe", "char"])


def test_pairs_are_merged_in_order_of_rank() -> None:
    assert BYTE_PAIRS.encode("the the") == [256, ord("e"), 258]
    assert BYTE_PAIRS.encode("thththe") == [256, 256, 256, ord("e")]


def test_characters_are_numbered_in_their_order() -> None:
    assert CHARACTERS.encode("ab\n😀") == [2, 3, 0, 6]


@given(st.text())
@settings(deadline=None)
def test_byte_pairs_give_back_any_text(text: str) -> None:
    assert BYTE_PAIRS.decode_bytes(BYTE_PAIRS.encode(text)) == text.encode()
    assert BYTE_PAIRS.missing(text) == []


@given(st.text("".join(CHARACTERS.characters)))
def test_characters_give_back_any_text_of_theirs(text: str) -> None:
    assert CHARACTERS.decode_bytes(CHARACTERS.encode(text)) == text.encode()
    assert CHARACTERS.missing(text) == []


def test_characters_outside_the_vocabulary_are_named_and_left_out() -> None:
    assert CHARACTERS.missing("zabzy") == ["z", "y"]
    assert CHARACTERS.encode("zabzy") == CHARACTERS.encode("ab")


@each_kind
def test_special_tokens_have_the_last_ids_and_no_text(tokenizer: Tokenizer) -> None:
    n_ordinary = 259 if tokenizer is BYTE_PAIRS else 7
    ids = [tokenizer.special_tokens[token] for token in SPECIAL_TOKENS]
    assert ids == [n_ordinary + i for i in range(5)]
    assert tokenizer.vocab_size == n_ordinary + 5
    assert tokenizer.eot_id == n_ordinary
    assert tokenizer.decode_bytes(ids) == b""


@each_kind
def test_text_never_gives_a_special_id(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert set(ids).isdisjoint(tokenizer.special_tokens.values())


def test_a_gap_between_ranks_decodes_to_nothing() -> None:
    tokenizer = BytePairTokenizer("x", GPT2_PATTERN, RANKS | {b"xy": 300}, special_ids_after(301))
    assert tokenizer.vocab_size == 306
    assert tokenizer.decode_bytes([299, 300]) == b"xy"


@each_kind
def test_a_saved_tokenizer_is_read_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    description = json.loads(json.dumps(describe_tokenizer(tokenizer)))
    assert load_tokenizer(tmp_path, description) == tokenizer


def test_tiktoken_reads_the_vocabulary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy of the file elsewhere
    save_tokenizer(BYTE_PAIRS, tmp_path)
    assert load_tiktoken_bpe(str(tmp_path / "vocab.tiktoken")) == RANKS


def test_the_list_of_characters_is_json(tmp_path: Path) -> None:
    save_tokenizer(CHARACTERS, tmp_path)
    content = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert content == list(CHARACTERS.characters)


def test_the_pattern_cuts_as_tiktokens_gpt2() -> None:
    """By the older, equal form of the pattern, from GPT-2's own encoder.py."""
    older = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    text = "I'll  say: 12 times\n\n\t it's   'Quern', ünd so...  weiter 日本 5x\r\n  "
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(older, text)


def line_of(token: bytes, rank: int) -> bytes:
    return base64.b64encode(token) + b" %d\n" % rank


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BYTE_PAIRS.file_content + b"no base64! 5\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"eHk=\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"eHk= five\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"eHk= -1\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"eHk= 99999999999\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"YQ== 500\n", "line 260: not tiktoken's format"),
        (BYTE_PAIRS.file_content + b"eHk= 5\n", "several tokens have the same rank"),
        (b"".join(line_of(bytes([b]), b) for b in range(250)), "6 of the 256 single bytes"),
        (b"", "256 of the 256 single bytes"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_an_error_that_says_where(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}.*{message}"):
        read_ranks(path)


@pytest.mark.parametrize("content", ["{}", '["ab"]', "[1]", '["a"', '""'])
def test_a_file_that_is_no_list_of_characters_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"^{tmp_path}/vocab.json: .*list"):
        load_tokenizer(tmp_path, describe_tokenizer(CHARACTERS))


@each_kind
def test_a_missing_vocabulary_is_an_error_that_names_it(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path / tokenizer.file_name}: cannot be read"):
        load_tokenizer(tmp_path, describe_tokenizer(tokenizer))


def test_another_vocabulary_than_described_is_an_error(tmp_path: Path) -> None:
    save_tokenizer(CharTokenizer(("a", "b")), tmp_path)
    with pytest.raises(DataError, match="gives 7 ids, but the folder's description promises 12"):
        load_tokenizer(tmp_path, describe_tokenizer(CHARACTERS))


def test_a_text_that_tiktoken_gives_up_on_is_an_error_not_a_panic() -> None:
    with pytest.raises(DataError, match="tiktoken gave up on a text of 1,200,001 characters"):
        BYTE_PAIRS.encode(" " * 1_200_000 + "x")
