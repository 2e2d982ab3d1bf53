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
from typing import Any

from common.errors import DataError
from common.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    SPECIAL_TOKENS,
    BytePairTokenizer,
    CharTokenizer,
    Tokenizer,
)

TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _byte_characters() -> list[str]:
    """Return the visible character that stands for each byte.

    Source: Radford et al. 2019, released code, encoder.py, bytes_to_unicode.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return [chr(b if b in visible else 256 + others.index(b)) for b in range(256)]


CHARACTERS = _byte_characters()
BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
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


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what tokenizer.json holds for a vocabulary."""
    model: dict[str, Any] = {"type": "BPE", "fuse_unk": False, "byte_fallback": False}
    before: dict[str, Any] | None = None
    decoder: dict[str, Any] = {"type": "Fuse"}
    if isinstance(tokenizer, CharTokenizer):
        model |= {"vocab": tokenizer.id_of, "merges": [], "ignore_merges": False}
    else:
        vocab = {_visible(token): rank for token, rank in tokenizer.ranks.items()}
        merges = [[_visible(a), _visible(b)] for a, b in merges_of(tokenizer.ranks)]
        model |= {"vocab": vocab, "merges": merges, "ignore_merges": True}
        before, decoder = _pre_tokenizer(tokenizer.pattern), BYTE_LEVEL | {"use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": name, "special": True, **flags}
        for name, i in sorted(tokenizer.special_tokens.items(), key=itemgetter(1))
    ]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": before, "post_processor": None, "decoder": decoder,
        "model": model,
    }  # fmt: skip


def _visible(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    if pattern == GPT2_PATTERN:  # which byte level is known for
        return BYTE_LEVEL | {"use_regex": True}
    # to Oniguruma {1,3}+ is no possessive; before | or the end a greedy one gives the same
    split: dict[str, Any] = {
        "type": "Split",
        "pattern": {"Regex": pattern.replace("{1,3}+", "{1,3}")},
    }
    split |= {"behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the vocabulary that a tokenizer.json is, the reverse of tokenizer_json.

    Raises DataError where it is another kind than byte pairs by ranks, or characters as they are
    exported here. Special tokens that it lacks get the ids behind its last.
    """
    try:
        said = json.loads(path.read_bytes())
        model, before = said["model"], said["pre_tokenizer"]
        special = {token["content"]: token["id"] for token in said["added_tokens"]}
        if said["normalizer"] or model["type"] != "BPE":
            raise ValueError("it changes texts, or is no byte-pair encoding")
        vocab = {token: i for token, i in model["vocab"].items() if token not in special}
        tokens = sorted(vocab, key=vocab.__getitem__)
        if before is None and not model["merges"] and set(map(len, tokens)) == {1}:
            characters = CharTokenizer(tuple(tokens))
            if characters.id_of != vocab or characters.special_tokens != special:
                raise ValueError("its characters have other ids than ours would")
            return characters
        ranks = {bytes(BYTES[c] for c in token): i for token, i in vocab.items()}
        pattern = _pattern(before)
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
        expected = [(_visible(a), _visible(b)) for a, b in merges_of(ranks)]
        is_whole = len(merges) == len(ranks) - 256 or model.get("ignore_merges")
        if (
            merges != expected
            or not is_whole
            or any(bytes([byte]) not in ranks for byte in BYTES.values())
        ):
            raise ValueError("its merges are not those by ranks")
        if END_OF_TEXT not in special:
            raise ValueError(f"it has no {END_OF_TEXT}, with which documents end here")
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be taken over ({error}). Imported are byte-level byte pairs that are "
            "merged in the order of their ids, as GPT-2's, and what sample export wrote."
        ) from error
    end = max(*vocab.values(), *special.values()) + 1
    lacking = [token for token in SPECIAL_TOKENS if token not in special]
    special |= {token: end + i for i, token in enumerate(lacking)}
    return BytePairTokenizer("imported", pattern, ranks, special)


def _pattern(before: dict[str, Any]) -> str:
    """Return the pattern of a pre-tokenizer that _pre_tokenizer may have written."""
    parts = before.get("pretokenizers", [before])
    byte_level = parts[-1]
    if byte_level["type"] != "ByteLevel" or byte_level["add_prefix_space"] or len(parts) > 2:
        raise ValueError("its words are found in another way")
    if len(parts) == 1 and byte_level.get("use_regex", True):
        return GPT2_PATTERN
    split = parts[0]
    if split["type"] != "Split" or split["behavior"] != "Isolated" or byte_level["use_regex"]:
        raise ValueError("its words are found in another way")
    return str(split["pattern"]["Regex"])
