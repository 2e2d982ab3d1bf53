import heapq
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.tokenizer import END_OF_TEXT, GPT2_PATTERN, SPECIAL_TOKENS, BytePairTokenizer
from prepare.config import MAX_LEARNED_IDS, PrepareConfig
from prepare.tokens import vocab_and_split
from prepare.tokens.vocab_and_split import (
    auto_vocab_size,
    file_tokenizer,
    named_tokenizer,
    published_tokenizer,
    train_bpe,
)
from tests.prepare.making import prepare
from tests.processes import TIMEOUT_S, start_python

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = [path.read_bytes() for path in sorted(REPOSITORY.glob("*/*.py"))]
SINGLE_BYTES = [bytes([byte]) for byte in range(256)]


def tokens_of(tokenizer: BytePairTokenizer) -> list[bytes]:
    assert sorted(tokenizer.ranks.values()) == list(range(len(tokenizer.ranks)))
    return sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)


def learn_in_python(texts: list[bytes], vocab_size: int) -> list[bytes]:
    """Return the tokens of a vocabulary in order of rank: single bytes, then merged pairs.

    The most frequent pair is merged first; of equally frequent ones that of the smaller ids.
    """
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(w.encode("utf-8") for w in regex.findall(GPT2_PATTERN, text.decode("utf-8")))
    tokens = [bytes([byte]) for byte in range(256)]
    words = [list(word) for word in counts]
    weights = list(counts.values())
    pair_counts: Counter[tuple[int, int]] = Counter()
    words_with: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += weights[number]
            words_with[pair].add(number)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < vocab_size:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:  # an entry that later merges made stale
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        merged = len(tokens)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        changed: set[tuple[int, int]] = set()
        for number in words_with.pop(pair):
            word, weight = words[number], weights[number]
            for old in pairwise(word):
                pair_counts[old] -= weight
            words[number] = word = _merge(word, pair, merged)
            for new in pairwise(word):
                pair_counts[new] += weight
                words_with[new].add(number)
                changed.add(new)
        for new in changed:
            if merged in new:
                heapq.heappush(heap, (-pair_counts[new], new))
    return tokens


def _merge(word: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    out: list[int] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            out.append(merged)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def learn_slowly(texts: list[str], vocab_size: int) -> list[bytes]:
    """Count all pairs again before each merge: Sennrich et al. 2016, algorithm 1, to the letter."""
    words = Counter(w for text in texts for w in regex.findall(GPT2_PATTERN, text))
    spelled = [([*word.encode()], count) for word, count in words.items()]
    tokens = list(SINGLE_BYTES)
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for ids, count in spelled:
            for pair in pairwise(ids):
                counts[pair] += count
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids, _ in spelled:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == best:
                    ids[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens


@given(st.lists(st.text("abc \nä"), max_size=6))
@settings(deadline=None)
def test_learning_in_python_is_the_published_algorithm(texts: list[str]) -> None:
    raw = [text.encode() for text in texts]
    assert learn_in_python(raw, 280) == learn_slowly(texts, 280)


@pytest.mark.parametrize("vocab_size", [256, 257, 300, 1_000, 3_000])
def test_gigatoken_learns_what_python_learns(vocab_size: int) -> None:
    learned = tokens_of(train_bpe(SOURCES, vocab_size))
    assert len(learned) == vocab_size
    assert learned == learn_in_python(SOURCES, vocab_size)


@given(st.lists(st.text("ab", max_size=12), min_size=1, max_size=5))
@settings(deadline=None)
def test_a_text_that_runs_out_of_pairs_gives_a_smaller_vocabulary_without_duplicates(
    texts: list[str],
) -> None:
    tokenizer = train_bpe([text.encode() for text in texts], 400)
    tokens = tokens_of(tokenizer)
    in_python = list(dict.fromkeys(learn_in_python([text.encode() for text in texts], 400)))
    assert tokens[: len(in_python)] == in_python
    ids = set(tokenizer.ranks.values())
    assert ids.isdisjoint(tokenizer.special_tokens.values())
    assert tokenizer.vocab_size == len(tokens) + len(SPECIAL_TOKENS) <= 400 + len(SPECIAL_TOKENS)


def test_a_text_teaches_what_its_words_do() -> None:
    """A text is cut up where it is long, between words only."""
    whole = b"\n".join(SOURCES)
    words = [word.encode() for word in regex.findall(GPT2_PATTERN, whole.decode())]
    assert tokens_of(train_bpe([whole], 600)) == tokens_of(train_bpe(words, 600))


@pytest.mark.parametrize("unit", ["ab", " ", "\u6f22"])
def test_a_word_of_a_million_characters_takes_no_longer_than_others(unit: str) -> None:
    start = time.perf_counter()
    tokens = tokens_of(train_bpe([(unit * 1_000_000).encode()], 270))
    assert time.perf_counter() - start < 5  # as one word it would take a minute
    assert (unit * 2).encode() in tokens


def test_words_do_not_reach_across_documents() -> None:
    tokens = tokens_of(train_bpe([b"xy"] * 50 + [b"qa", b"bq"] * 50, 260))
    assert b"xy" in tokens
    assert not {b"yx", b"yq", b"ab"} & set(tokens)


def test_learning_prints_nothing() -> None:
    code = (
        "from prepare.tokens.vocab_and_split import train_bpe\n"
        "train_bpe([b'one two three'] * 9, 260)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert (process.stdout, process.stderr) == (b"", b"")


@pytest.mark.parametrize("value", ["4k", "", "-1", "255", "300.0", str(MAX_LEARNED_IDS + 1), "²"])
def test_a_vocabulary_size_out_of_range_is_an_error_that_says_the_range(value: str) -> None:
    with pytest.raises(ConfigError, match=r"must be auto, or a number from 256 .* to 65,531"):
        PrepareConfig(vocab_size=value)


@pytest.mark.parametrize("value", ["256", "65531"])
def test_a_vocabulary_size_in_range_is_taken(value: str) -> None:
    assert PrepareConfig(vocab_size=value).vocab_size == value


@pytest.mark.parametrize(
    ("n_train_bytes", "expected"),
    [(0, 512), (225_000, 512), (900_000, 1024), (7_000_000, 2048), (10**8, 8192), (10**13, 32_768)],
)
def test_the_size_learned_is_the_square_root_of_the_bytes(
    n_train_bytes: int, expected: int
) -> None:
    """Worked out by hand: log2 of the root of 7,000,000 is 11.37, so 2**11."""
    assert auto_vocab_size(n_train_bytes) == expected


def test_without_gigatoken_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(DataError, match=r"--tokenizer bpe needs the package gigatoken: .*pip"):
        train_bpe([b"text"], 256)


def test_the_largest_vocabulary_has_ids_of_two_bytes() -> None:
    assert MAX_LEARNED_IDS + len(SPECIAL_TOKENS) == 1 << 16


def test_a_published_vocabulary_keeps_its_end_of_text_id_and_gets_the_others_after(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken"))
    tokenizer = published_tokenizer("gpt2")
    assert tokenizer.special_tokens == {
        "<|endoftext|>": 50256, "<|user|>": 50257, "<|assistant|>": 50258,
        "<|system|>": 50259, "<|end|>": 50260,
    }  # fmt: skip
    assert tokenizer.vocab_size == 50261
    assert tokenizer.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"--tokenizer gpt9: not bpe, .* gpt2, .*r50k_base"):
        published_tokenizer("gpt9")


def test_the_vocabulary_of_a_data_folder_is_taken_with_its_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three " * 99, encoding="utf-8")
    data = prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer="bpe", vocab_size="270")
    assert named_tokenizer(str(data.path / "vocab.tiktoken")) == data.tokenizer()


def test_a_bare_vocabulary_file_gets_gpt2s_pattern_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learned = train_bpe(SOURCES[:9], 400)
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(learned.file_content)
    tokenizer = file_tokenizer(path)
    assert (tokenizer.name, tokenizer.ranks) == ("mine", learned.ranks)
    assert tokenizer.special_tokens == learned.special_tokens
    assert f"{path}: such a file does not say how text is cut" in caplog.text
    expected = tiktoken.Encoding(
        "x", pat_str=GPT2_PATTERN, mergeable_ranks=learned.ranks, special_tokens={}
    )
    assert tokenizer.encode("def f(x):") == expected.encode_ordinary("def f(x):")


def test_a_file_beside_another_vocabulary_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three " * 99, encoding="utf-8")
    data = prepare([tmp_path / "a.txt"], tmp_path / "data", vocab_size="300")
    learned = train_bpe(SOURCES[:9], 400)
    path = data.path / "mine.tiktoken"
    path.write_bytes(learned.file_content)
    assert file_tokenizer(path).ranks == learned.ranks
    with pytest.raises(DataError, match=r"train.bin, line 1: not tiktoken's format"):
        file_tokenizer(data.path / "train.bin")


HAN = [chr(0x4E00 + i) for i in range(6_000)]


@pytest.mark.parametrize(
    ("text", "n_learned_from"),
    [
        ("".join(random.Random(1).choices(HAN, k=1_000)), 4),
        ("\u6625\u7720\u4e0d\u89c9\u6653\uff0c\n" * 170, 4),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35" * 170, 4),
        ("0f3c" * 750, 4),
        ("\u043e\u0434\u0438\u0442\u0435\u043b\u044c\u0441\u0442\u0432\u043e " * 150, 30),
        ("words and https://example.org/with/a/path?of=some&length=of-it " * 50, 30),
        ("\ud55c\uad6d\uc5b4\ub294 \ub744\uc5b4 \uc501\ub2c8\ub2e4 " * 80, 30),
    ],
    ids=["Han", "a poem", "Thai", "hexadecimal", "Russian", "English", "Korean"],
)
def test_of_text_without_blanks_less_is_learned_from(
    text: str, n_learned_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text has some 3,000 bytes, and 10,000 without a blank are enough."""
    monkeypatch.setattr(vocab_and_split, "MAX_UNBROKEN_BYTES", 10_000)
    texts = [text.encode()] * 30
    assert len(list(vocab_and_split._until_too_unbroken(texts))) == n_learned_from


def learner_of(process: "subprocess.Popen[str]") -> str:
    """Wait for the process that learns; return its id."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for pid in listed.read_text(encoding="ascii").split():
            with suppress(OSError):
                if b"learn_bpe" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_a_vocabulary_is_learned_is_heard_at_once(
    number: signal.Signals, tmp_path: Path
) -> None:
    """SIGKILL ends the process that learns: what is no memory left, as a rule."""
    lines = ("".join(random.Random(i).choices(HAN, k=1_000)) for i in range(1_200))
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    with start_python(["-m", "prepare", "text", "a.txt", "--vocab-size", "60000"], tmp_path) as one:
        learner = learner_of(one)
        os.kill(int(learner) if number == signal.SIGKILL else one.pid, number)
        start = time.perf_counter()
        stdout, stderr = one.communicate(timeout=TIMEOUT_S)
    assert time.perf_counter() - start < 2
    assert stdout == ""
    assert one.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: 1}[number]
    with suppress(OSError):  # it is gone, or waits to be reaped by whom it was left to
        while ") Z " not in Path(f"/proc/{learner}/stat").read_text(encoding="ascii"):
            assert time.perf_counter() - start < 2
    if number == signal.SIGKILL:
        assert "learns the vocabulary ended with -9" in stderr.splitlines()[-1]
    else:
        assert stderr.strip() in ("", "Stopped.")


@pytest.mark.parametrize("name", ["tokenizer.json", "spm.model"])
def test_a_vocabulary_of_another_library_is_one_sentence(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(b'{"model": {}}')
    with pytest.raises(DataError, match=rf"{name}: a vocabulary of another library .* \.tiktoken"):
        published_tokenizer(str(tmp_path / name))
    assert caplog.text == ""
