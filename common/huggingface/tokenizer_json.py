"""Our vocabularies as tokenizer.json, which Hugging Face's tokenizers reads, and back.

    ranks -> vocab and merges: each token's bytes, one character a byte, and the pair it is made of

By ranks the adjacent pair with the lowest rank is merged first. What two tokens a token is merged
from never depends on what stands around it: no merge before that one crosses its borders, so those
within are the same as in the token alone. One merge for each token, in order of ranks, is therefore
exact. Of characters it is byte-pair encoding without a pair, which leaves out what has no id.
"""

import json
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, AnyStr

from common import tokenizer as ours
from common.errors import DataError
from common.huggingface.json_tokenizer import BYTES, CHARACTERS, FALLBACK, JsonTokenizer

TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
# SmolLM2's: each digit alone, then GPT-2's way with what is between digits.
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
GPT2_WORDS = BYTE_LEVEL | {"use_regex": True}


def merges_of(ranks: dict[AnyStr, int]) -> list[tuple[AnyStr, AnyStr]]:
    """Return the two tokens that each token is merged from, in order of ranks.

    Left out are single bytes, and tokens that no merges lead to: they are found as whole words.
    """
    merges, never = [], len(ranks) + max(ranks.values())
    for token, _ in sorted(ranks.items(), key=itemgetter(1)):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, never) for a, b in pairwise(parts)]
            at = pairs.index(min(pairs))
            if pairs[at] == never:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def tokenizer_json(tokenizer: ours.Tokenizer) -> dict[str, Any]:
    """Return what tokenizer.json holds for a vocabulary."""
    if isinstance(tokenizer, JsonTokenizer):
        return dict(json.loads(tokenizer.file_content))
    before: dict[str, Any] | None = None
    decoder: dict[str, Any] = {"type": "Fuse"}
    if isinstance(tokenizer, ours.CharTokenizer):
        vocab = tokenizer.id_of
    else:
        vocab = {t.decode("latin-1").translate(CHARACTERS): i for t, i in tokenizer.ranks.items()}
        before, decoder = _pre_tokenizer(tokenizer.pattern), GPT2_WORDS
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _added(tokenizer.special_tokens),
        "normalizer": None, "pre_tokenizer": before, "post_processor": None, "decoder": decoder,
        "model": {
            "type": "BPE", "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocab, "merges": [*map(list, merges_of(vocab))],
        },
    }  # fmt: skip


def _added(special: dict[str, int]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    in_order = sorted(special.items(), key=itemgetter(1))
    return [{"id": i, "content": name, "special": True, **flags} for name, i in in_order]


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == ours.GPT2_PATTERN:  # which byte level is known for
        return GPT2_WORDS
    if pattern == DIGITS_PATTERN:
        parts = [{"type": "Digits", "individual_digits": True}, GPT2_WORDS]
    else:
        # to Oniguruma {1,3}+ is no possessive; before | or the end a greedy one gives the same
        regex = {"Regex": pattern.replace("{1,3}+", "{1,3}")}
        split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        parts = [split, BYTE_LEVEL | {"use_regex": False}]
    return {"type": "Sequence", "pretokenizers": parts}


def read_tokenizer(path: Path, eot_id: int | None = None) -> ours.Tokenizer:
    """Return the vocabulary that a tokenizer.json is, the reverse of tokenizer_json.

    ``eot_id`` ends documents where it has no token of that name here. Special tokens that it lacks
    get the ids behind its last. Raises DataError where it is none, or has no ids for some texts.
    """
    try:
        said = json.loads(path.read_bytes())
        names = {token["id"]: token["content"] for token in said["added_tokens"]}
        end = ours.END_OF_TEXT if ours.END_OF_TEXT in names.values() else names.get(eot_id)
        if end is None:
            raise ValueError("it has no token with which documents end")
        text = json.dumps(said).replace(json.dumps(end), json.dumps(ours.END_OF_TEXT))
        return _read_said(json.loads(text))
    # tokenizers raises Exception itself
    except Exception as error:
        raise DataError(
            f"{path}: cannot be taken over ({error}). Imported are byte-pair vocabularies with an "
            "id for each byte, as GPT-2's, Qwen's and Llama's, and what sample export wrote."
        ) from error


def _read_said(said: dict[str, Any]) -> ours.Tokenizer:
    """Return byte pairs by ranks or characters of ours where that is all, else as it is."""
    special = {token["content"]: token["id"] for token in said["added_tokens"]}
    model = said["model"]
    if model["type"] != "BPE":
        raise ValueError(f"it is {model['type']}")
    vocab = {token: idx for token, idx in model["vocab"].items() if token not in special}
    characters = ours.CharTokenizer(tuple(sorted(vocab, key=vocab.__getitem__)))
    is_ours = (characters.id_of, characters.special_tokens) == (vocab, special)
    if is_ours and not (model["merges"] or said["pre_tokenizer"]):
        return characters
    is_byte_level = said["decoder"]["type"] == "ByteLevel"
    if not {*(CHARACTERS if is_byte_level else FALLBACK)} <= vocab.keys():
        raise ValueError("it has no ids for some bytes")
    end = max(*vocab.values(), *special.values()) + 1
    lacking = [token for token in ours.SPECIAL_TOKENS if token not in special]
    special |= {token: end + i for i, token in enumerate(lacking)}
    kept = {token["content"]: token for token in said["added_tokens"]}
    said["added_tokens"] = [kept.get(t["content"], t) | {"special": True} for t in _added(special)]
    imported = JsonTokenizer(json.dumps(said, ensure_ascii=False).encode(), special)
    if is_byte_level and (found := _by_ranks(imported, vocab)):
        return found
    if [imported.library.token_to_id(name) for name in special] != [*special.values()]:
        raise ValueError("its special tokens do not get their ids")
    return imported


def _by_ranks(imported: JsonTokenizer, vocab: dict[str, int]) -> ours.BytePairTokenizer | None:
    """Return byte pairs by ranks where those, written here, are what the library has of it."""
    said = json.loads(imported.library.to_str())  # with what its file leaves to be understood
    before, model = said["pre_tokenizer"], said["model"]
    patterns = [ours.GPT2_PATTERN, DIGITS_PATTERN]
    match before:
        case {"pretokenizers": [{"pattern": {"Regex": str(regex)}}, *_]}:
            patterns.append(regex)
    pattern = next((each for each in patterns if _pre_tokenizer(each) == before), None)
    if pattern is None or said["normalizer"]:
        return None
    ranks = {bytes(BYTES[c] for c in token): idx for token, idx in vocab.items()}
    made = ours.BytePairTokenizer("imported", pattern, ranks, imported.special_tokens)
    merges = tokenizer_json(made)["model"]["merges"]
    is_whole = model["ignore_merges"] or len(merges) == len(ranks) - 256
    return made if is_whole and merges == model["merges"] else None
