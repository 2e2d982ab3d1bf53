from pathlib import Path

import pytest
import tiktoken

from common.errors import DataError
from common.tokenizer import END_OF_TEXT, GPT2_PATTERN
from prepare.tokens.vocabulary import file_tokenizer, published_tokenizer, train_bpe
from tests.prepare.making import prepare

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = [path.read_bytes() for path in sorted(REPOSITORY.glob("*/*.py"))]


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
    assert file_tokenizer(data.path / "vocab.tiktoken") == data.tokenizer()


def test_a_bare_vocabulary_file_gets_gpt2s_pattern_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learned = train_bpe(SOURCES[:9], 400)
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(learned.file_content())
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
    path.write_bytes(learned.file_content())
    assert file_tokenizer(path).ranks == learned.ranks
    with pytest.raises(DataError, match=r"train.bin, line 1: not tiktoken's format"):
        file_tokenizer(data.path / "train.bin")
