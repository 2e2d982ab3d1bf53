import random
import sys
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import HealthCheck, given, settings
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
from prepare.tokens.encode import UNICODE_17, Encode, make_encoder
from prepare.tokens.vocab_and_split import published_tokenizer, train_bpe

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = [  # one word each; what follows another is drawn
    "word", "\u0441\u043b\u043e\u0432\u043e", "\u03bb\u03cc\u03b3\u03bf\u03c2",
    "\u6f22\u5b57", "\u3072\u3089\u304c\u306a", "\ud55c\uae00", "\u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd", "\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "e\u0301\u0302\u0303", "\u01c5", "\u00b2\u00bd\u0664\u2167", "\ufb01\u1e9e",
]  # fmt: skip
EMOJI = ["\U0001f600", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f"]
SPACES = [" ", "\n", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u2003"]
SPACES += ["\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\r"]
ODD = ["'s", "'LL", "'ve", "don't", "I'D", "''", "12345", "\0", "\x7f", "\x9f", "\ufffd", "\uffff"]
ODD += ["\U0010ffff", "\ue000", "\u0378", "^", "...", "_", "\u00ad", *SPECIAL_TOKENS]
RUNS = [*"a \n^\xe91", "\u6f22", "\u0301", "'s", " \t", "ab", "\r\n", "\U0001f600", "\u3000"]
PIECES = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Co", "Cn"])),
    st.sampled_from([*SCRIPTS, *EMOJI, *SPACES, *ODD]),
    st.builds(str.__mul__, st.sampled_from(RUNS), st.integers(0, 3000)),
)
HOSTILE = st.lists(PIECES, max_size=8).map("".join)


def hostile_strings(n: int, seed: int) -> list[str]:
    """Return ``n`` strings of up to 30 pieces, drawn in a tenth of the time hypothesis takes."""
    drawing = random.Random(seed)
    kinds = [SCRIPTS, SCRIPTS, EMOJI, SPACES, SPACES, ODD]

    def piece() -> str:
        kind = drawing.randrange(9)
        if kind < len(kinds):
            return drawing.choice(kinds[kind])
        if kind == 6:
            return "".join([drawing.choice(RUNS)] * drawing.choice([1, 2, 5, 20, 80, 300]))
        code_points = (drawing.randrange(sys.maxunicode + 1) for _ in range(drawing.randrange(9)))
        return "".join(chr(c) for c in code_points if not 0xD800 <= c < 0xE000)

    return ["".join(piece() for _ in range(drawing.randrange(30))) for _ in range(n)]


@pytest.fixture(scope="module")
def learned() -> BytePairTokenizer:
    """A vocabulary learned from the source of this repository."""
    sources = sorted(REPOSITORY.glob("*/*.py"))
    return train_bpe([source.read_bytes() for source in sources], 1_500)


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> BytePairTokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
        return published_tokenizer("gpt2")


def judge_of(tokenizer: BytePairTokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "judge", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )


def test_the_pattern_is_gpt2s() -> None:
    assert pattern_of("gpt2") == pattern_of("r50k_base") == GPT2_PATTERN


def assert_equal_ids(encode: Encode, judge: tiktoken.Encoding, texts: list[str]) -> None:
    found = encode([text.encode() for text in texts])
    for text, ids, expected in zip(
        texts, found, judge.encode_ordinary_batch(texts, num_threads=1), strict=True
    ):
        assert ids.tolist() == expected, text


def gigatokens(tokenizer: BytePairTokenizer) -> Encode:
    """Return what encodes with gigatoken; it raises where it finds a difference itself."""
    name, encode = make_encoder(tokenizer)
    assert name == "gigatoken"
    return encode


@given(texts=st.lists(HOSTILE, min_size=1, max_size=20))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_gigatoken_gives_tiktokens_ids_with_a_learned_vocabulary(
    texts: list[str], learned: BytePairTokenizer
) -> None:
    assert_equal_ids(gigatokens(learned), judge_of(learned), texts)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["learned", "gpt2"])
def test_ten_thousand_hostile_strings_have_tiktokens_ids(
    name: str, fast: bool, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    library, encode = make_encoder(tokenizer, fast=fast)
    assert library == ("gigatoken" if fast else "tiktoken")
    assert_equal_ids(encode, judge_of(tokenizer), hostile_strings(10_000, seed=len(name)))


def test_hypothesis_finds_no_string_of_other_ids_with_gpt2s_vocabulary(
    gpt2: BytePairTokenizer,
) -> None:
    encode, judge = gigatokens(gpt2), judge_of(gpt2)  # once: 50,256 ranks take a while to load

    @given(texts=st.lists(HOSTILE, min_size=1, max_size=20))
    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
    def find(texts: list[str]) -> None:
        assert_equal_ids(encode, judge, texts)

    find()


def test_all_the_real_text_there_is_has_tiktokens_ids(
    gpt2: BytePairTokenizer, shared: Path
) -> None:
    paths = sorted(path for path in (shared / "data").rglob("*") if path.is_file())
    texts = [path.read_bytes().decode("utf-8", "replace") for path in paths]
    assert sum(map(len, texts)) > 5_000_000
    assert_equal_ids(gigatokens(gpt2), judge_of(gpt2), texts)


def pattern_of(name: str) -> str:
    """Return how a published vocabulary cuts out words, without fetching its ranks."""
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(tiktoken_ext.openai_public, loader, lambda *_, **__: {})
        return str(getattr(tiktoken_ext.openai_public, name)()["pat_str"])


def of_pattern(name: str, ranks: dict[bytes, int]) -> BytePairTokenizer:
    return BytePairTokenizer(name, pattern_of(name), ranks, special_ids_after(len(ranks)))


EACH_PATTERN = ["r50k_base", "cl100k_base", "o200k_base"]


@pytest.mark.parametrize("name", EACH_PATTERN)
def test_gigatoken_cuts_words_as_each_published_pattern_does(
    name: str, learned: BytePairTokenizer
) -> None:
    tokenizer = of_pattern(name, learned.ranks)
    assert_equal_ids(gigatokens(tokenizer), judge_of(tokenizer), hostile_strings(3_000, seed=3))


@pytest.mark.parametrize("name", EACH_PATTERN)
def test_every_character_is_a_letter_digit_or_blank_to_both(name: str) -> None:
    """Those of a newer Unicode than tiktoken's, and their neighbours, are left to tiktoken.

    The merges show where words end: the last byte of a character and what follows, for one.
    """
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"'s": 256}
    for pair in (bytes([byte]) + t for byte in range(128, 192) for t in (b"a", b"A", b"1", b"\n")):
        ranks[pair] = len(ranks)
    for pair in (t + bytes([byte]) for byte in range(192, 256) for t in (b"a", b"A", b" ")):
        ranks[pair] = len(ranks)
    tokenizer = of_pattern(name, ranks)
    # Beyond there are planes without a character, the tags, and planes for private use.
    assigned = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200), 0xF0000]
    judged = [chr(c) for c in assigned if not UNICODE_17.search(chr(c).encode())]
    assert len(judged) > 200_000
    around = "{0}a{0}A{0}1{0}'s{0}\n{0}\n\n {0}  {0}!"
    texts = ["".join(map(around.format, judged[i : i + 100])) for i in range(0, len(judged), 100)]
    assert_equal_ids(gigatokens(tokenizer), judge_of(tokenizer), texts)
    left_out = [around.format(chr(c)) for c in assigned if UNICODE_17.search(chr(c).encode())]
    assert_equal_ids(gigatokens(tokenizer), judge_of(tokenizer), left_out[::7])


@pytest.mark.parametrize("character", ["a", " ", "\n", "^", "\u00e9", "\u754c", "1", "\u0301"])
def test_gigatoken_gives_tiktokens_ids_on_runs_of_one_character(
    character: str, learned: BytePairTokenizer
) -> None:
    texts = [character * 100_000, character * 99_999 + "x"]
    assert_equal_ids(gigatokens(learned), judge_of(learned), texts)


def test_gigatoken_gives_tiktokens_ids_with_a_vocabulary_that_used_up_its_text() -> None:
    texts = [b"aaaaaaaaaaa bb", b"aaaa aaa", b"hello"]
    tokenizer = train_bpe(texts, 1000)
    texts_of_it = ["aaaaaaa", " bbb hello aaaaaaaaaaaaa", "hell no"]
    assert_equal_ids(gigatokens(tokenizer), judge_of(tokenizer), texts_of_it)


@pytest.mark.parametrize("fast", [True, False])
def test_special_tokens_in_the_text_are_ordinary_text(
    fast: bool, learned: BytePairTokenizer
) -> None:
    text = "".join(SPECIAL_TOKENS) + f" {END_OF_TEXT}"
    (ids,) = make_encoder(learned, fast=fast)[1]([text.encode()])
    assert set(ids.tolist()).isdisjoint(learned.special_tokens.values())
    assert learned.decode_bytes(ids.tolist()) == text.encode()


def test_a_vocabulary_that_gigatoken_cannot_take_is_left_to_tiktoken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Here no two tokens merge into b"quern", so no text ever yields it."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"quern": 256}
    tokenizer = BytePairTokenizer("odd", GPT2_PATTERN, ranks, special_ids_after(257))
    name, encode = make_encoder(tokenizer)
    assert name == "tiktoken"
    assert "gigatoken cannot take this vocabulary" in caplog.text
    assert encode([b"querns"])[0].tolist() == judge_of(tokenizer).encode_ordinary("querns")


def test_ranks_with_a_gap_are_left_to_tiktoken(caplog: pytest.LogCaptureFixture) -> None:
    """As p50k_base has them: its end-of-text stands between ordinary tokens."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"qu": 256, b"que": 258}
    tokenizer = BytePairTokenizer("odd", GPT2_PATTERN, ranks, special_ids_after(259))
    name, encode = make_encoder(tokenizer)
    assert name == "tiktoken"
    assert "gigatoken cannot take this vocabulary" in caplog.text
    assert encode([b"quern"])[0].tolist() == [258, ord("r"), ord("n")]


def test_slow_means_tiktoken(learned: BytePairTokenizer) -> None:
    name, encode = make_encoder(learned, fast=False)
    assert name == "tiktoken"
    assert_equal_ids(encode, judge_of(learned), ["one", "", "two words"])


def test_gigatoken_takes_a_million_blanks_on_which_tiktoken_gives_up(
    learned: BytePairTokenizer,
) -> None:
    text = " " * 1_200_000 + "x"
    with pytest.raises(DataError, match="tiktoken gave up"):
        learned.encode(text)
    (ids,) = make_encoder(learned)[1]([text.encode()])  # among those that are judged
    assert learned.decode_bytes(ids.tolist()) == text.encode()
    # Of a run all blanks but the last are one word: so the ids are those of its two parts.
    parts = [" " * 1_199_999, " x"]
    assert ids.tolist() == [i for part in parts for i in judge_of(learned).encode_ordinary(part)]


LONG_RUNS = [" ", "\t\n", "\u3000", "a", "\u6f22"]


@pytest.mark.parametrize("name", ["r50k_base", "o200k_base"])
@pytest.mark.parametrize("run", LONG_RUNS)
def test_no_run_of_a_million_is_too_long_for_tiktoken(
    run: str, name: str, learned: BytePairTokenizer
) -> None:
    text = "words before " + run * (2_400_000 // len(run.encode())) + "x and more" * 3
    tokenizer = of_pattern(name, learned.ranks)
    (ids,) = make_encoder(tokenizer, fast=False)[1]([text.encode()])
    assert learned.decode_bytes(ids.tolist()) == text.encode()
    end = "x and more" * 3
    judge = judge_of(tokenizer)
    first = judge.encode_ordinary("words before")
    assert ids[: len(first)].tolist() == first
    n_last = 5
    assert ids[-n_last:].tolist() == judge.encode_ordinary(run + end)[-n_last:]


def test_characters_get_their_place_in_the_vocabulary() -> None:
    name, encode = make_encoder(CharTokenizer(("\n", "a", "\u00e9", "\U0001f600")))
    assert name == "characters"
    ids = encode(["a\U0001f600\u00e9".encode(), b"", b"\na"])
    assert [row.tolist() for row in ids] == [[1, 3, 2], [], [0, 1]]


def test_a_character_that_was_not_there_at_first_is_an_error() -> None:
    _, encode = make_encoder(CharTokenizer(("a",)))
    with pytest.raises(DataError, match="changed while they were read"):
        encode([b"ab"])
