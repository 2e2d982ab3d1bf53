"""Vocabularies in the shape of SmolLM2's, Qwen3's and TinyLlama's: the ids of AutoTokenizer."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from common.errors import DataError
from common.huggingface.json_tokenizer import FALLBACK, JsonTokenizer
from common.huggingface.tokenizer_json import read_tokenizer, tokenizer_json
from common.tokenizer import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    describe_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from tests.common.huggingface.hostile import hostile_strings
from tests.tiny import words

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = words(2_000) + " ".join(str(i) for i in range(300)) + " don't we'll  \n\n  def f(x):\r\n"


def learned(pre_tokenizer: Any) -> dict[str, Any]:
    """Return vocab and merges that were learned by byte level, as GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([TEXT], trainer)
    model: dict[str, Any] = json.loads(made.to_str())["model"]
    return model


def added(names: list[str], start: int, *, special: bool = True) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": start + i, "content": n, "special": special, **flags} for i, n in enumerate(names)
    ]


def said(model: dict[str, Any], tokens: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer"))
    return {
        "version": "1.0", **nothing, "post_processor": None, "added_tokens": tokens,
        "model": model, **parts,
    }  # fmt: skip


def as_smollm2() -> dict[str, Any]:
    """Special tokens come first, each digit is alone, merges are in order of ids."""
    names = [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<repo_name>"]
    digits = {"type": "Digits", "individual_digits": True}
    sequence = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    model = learned(pre_tokenizers.Sequence(sequence))
    model["vocab"] = {n: i for i, n in enumerate(names)} | {
        token: i + len(names) for token, i in model["vocab"].items()
    }
    before = {"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL | {"use_regex": True}]}
    decoder = {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}
    return said(model, added(names, 0), pre_tokenizer=before, decoder=decoder)


def as_qwen3() -> dict[str, Any]:
    """Texts are normalised; of the added tokens some are not special."""
    model = learned(pre_tokenizers.ByteLevel(False))
    n = len(model["vocab"])
    tokens = added([END_OF_TEXT, "<|im_start|>", "<|im_end|>"], n)
    tokens += added(["<tool_call>", "<think>"], n + 3, special=False)
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated"}
    parts = [split | {"invert": False}, BYTE_LEVEL | {"use_regex": False}]
    return said(
        model, tokens, normalizer={"type": "NFC"}, decoder=BYTE_LEVEL | {"use_regex": False},
        pre_tokenizer={"type": "Sequence", "pretokenizers": parts},
        post_processor=BYTE_LEVEL | {"use_regex": False},
    )  # fmt: skip


def as_tinyllama() -> dict[str, Any]:
    """SentencePiece's: blanks are letters, what has no token is spelt in bytes, </s> ends."""
    made = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    made.train_from_iterator([line.replace(" ", "\u2581") for line in TEXT.split("\n")], trainer)
    model = json.loads(made.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *FALLBACK, *model["vocab"]]
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "byte_fallback": True}
    model |= {"unk_token": "<unk>", "fuse_unk": True}
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    first = {"type": "Prepend", "prepend": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    return said(
        model, added(["<unk>", "<s>", "</s>"], 0), post_processor=template,
        normalizer={"type": "Sequence", "normalizers": [first, blanks]},
        decoder={"type": "Sequence", "decoders": decoders},
    )  # fmt: skip


KINDS: list[tuple[Callable[[], dict[str, Any]], int, type]] = [
    (as_smollm2, 0, BytePairTokenizer), (as_qwen3, 402, JsonTokenizer),
    (as_tinyllama, 2, JsonTokenizer),
]  # fmt: skip


def auto_tokenizer(said: dict[str, Any], folder: Path) -> Any:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(said), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), "utf-8"
    )
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(("make", "eos_id", "kind"), KINDS)
def test_imported_and_exported_again_it_has_the_ids_of_auto_tokenizer(
    make: Callable[[], dict[str, Any]], eos_id: int, kind: type, tmp_path: Path
) -> None:
    original = make()
    theirs = auto_tokenizer(original, tmp_path / "theirs")
    ours = read_tokenizer(tmp_path / "theirs" / "tokenizer.json", eos_id)
    assert isinstance(ours, kind)
    again = auto_tokenizer(tokenizer_json(ours), tmp_path / "again")
    assert read_tokenizer(tmp_path / "again" / "tokenizer.json") == ours
    special_ids = again.convert_tokens_to_ids([*ours.special_tokens])
    assert special_ids == [*ours.special_tokens.values()]  # past bug: SmolLM2's came last
    save_tokenizer(ours, tmp_path)
    saved = load_tokenizer(tmp_path, json.loads(json.dumps(describe_tokenizer(ours))))
    assert saved == ours
    end = len(theirs)
    assert ours.vocab_size == len(again) == end + 5 - (END_OF_TEXT in ours.special_tokens)
    special = {*ours.special_tokens.values()}
    tokens = {token["content"] for token in original["added_tokens"]} | {END_OF_TEXT, "<|end|>"}
    for text in [*hostile_strings(0, 2_000), TEXT, "".join(tokens), ""]:
        ids = saved.encode(text)
        assert not special & {*ids}
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        if make is not as_qwen3 or "<th" not in text:  # of which theirs makes a token always
            assert theirs(text, **plain).input_ids == ids
        assert again(text, **plain).input_ids == ids
        decoded = saved.decode_bytes(ids).decode("utf-8")
        expected = theirs.backend_tokenizer.normalizer
        text = expected.normalize_str(text) if expected else text
        assert decoded == (text.replace("\u2581", " ") if make is as_tinyllama else text)
    assert saved.encode("a\ud800b") == saved.encode("a\ufffdb")


def test_an_end_of_another_name_is_the_end_of_text_here(tmp_path: Path) -> None:
    auto_tokenizer(as_tinyllama(), tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer.json"
    ours = read_tokenizer(path, 2)
    assert ours.eot_id == 2
    assert {*SPECIAL_TOKENS} < ours.special_tokens.keys()
    again = auto_tokenizer(tokenizer_json(ours), tmp_path / "again")
    assert again.convert_tokens_to_ids([END_OF_TEXT, "<s>"]) == [2, 1]
    assert isinstance(ours, JsonTokenizer)
    assert replace(ours).token_bytes[2] == b""
    for end in (None, 7):
        with pytest.raises(ValueError, match="no token with which documents end"):
            read_tokenizer(path, end)


def test_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    auto_tokenizer(as_tinyllama(), folder := tmp_path / "theirs")
    description = describe_tokenizer(read_tokenizer(folder / "tokenizer.json", 2))
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json that can be read"):
        load_tokenizer(folder, description)
