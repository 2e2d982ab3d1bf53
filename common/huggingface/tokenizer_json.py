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

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from common import tokenizer as ours
from common.huggingface.json_tokenizer import BYTES, CHARACTERS, FALLBACK, JsonTokenizer

TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
# SmolLM2's: each digit alone, then GPT-2's way with what is between digits.
DIGITS_PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"


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
    special = tokenizer.special_tokens
    if isinstance(tokenizer, ours.CharTokenizer):
        made = Tokenizer(models.BPE(tokenizer.id_of, [], ignore_merges=True))
        made.decoder = decoders.Fuse()
    else:
        vocab = {t.decode("latin-1").translate(CHARACTERS): i for t, i in tokenizer.ranks.items()}
        # special tokens among others or behind gaps have their ids by being in the vocabulary too
        made = Tokenizer(models.BPE(vocab | special, merges_of(vocab), ignore_merges=True))
        made.pre_tokenizer, made.decoder = _words(tokenizer.pattern), decoders.ByteLevel()
    made.add_special_tokens(sorted(special, key=special.__getitem__))
    return dict(json.loads(made.to_str()))


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return what cuts texts into words as ``pattern`` does."""
    by_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern == ours.GPT2_PATTERN:
        return by_gpt2
    if pattern == DIGITS_PATTERN:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_gpt2])
    # to Oniguruma {1,3}+ is no possessive; before | or the end a greedy one gives the same
    split = pre_tokenizers.Split(Regex(pattern.replace("{1,3}+", "{1,3}")), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_alone])


def read_tokenizer(path: Path, eot_id: int | None = None) -> ours.Tokenizer:
    """Return the vocabulary that a tokenizer.json is, the reverse of tokenizer_json.

    Byte pairs by ranks or characters of ours where that is all, else what runs it as it is.
    ``eot_id`` ends documents where it has no token of that name here. Special tokens that it lacks
    get the ids behind its last. Raises ValueError, or what the library raises, where it is none, or
    has no ids for some texts.
    """
    said = json.loads(path.read_bytes())
    names = {token["id"]: token["content"] for token in said["added_tokens"]}
    end = ours.END_OF_TEXT if ours.END_OF_TEXT in names.values() else names.get(eot_id)
    if end is None:
        raise ValueError("it has no token with which documents end")
    said = json.loads(json.dumps(said).replace(json.dumps(end), json.dumps(ours.END_OF_TEXT)))
    added = [token | {"special": True} for token in said["added_tokens"]]
    special = {token["content"]: token["id"] for token in added}
    vocab = {t: idx for t, idx in said["model"]["vocab"].items() if t not in special}
    characters = ours.CharTokenizer(tuple(sorted(vocab, key=vocab.__getitem__)))
    if characters.special_tokens == special and said["decoder"]["type"] == "Fuse":
        return characters
    is_byte_level = said["decoder"]["type"] == "ByteLevel"
    if not {*(CHARACTERS if is_byte_level else FALLBACK)} <= vocab.keys():
        raise ValueError("it has no ids for some bytes, as GPT-2's, Qwen's and Llama's have")
    library = Tokenizer.from_str(json.dumps(said | {"added_tokens": added}))
    lacking = [token for token in ours.SPECIAL_TOKENS if token not in special]
    special |= {t: i for i, t in enumerate(lacking, max(*vocab.values(), *special.values()) + 1)}
    library.add_special_tokens(lacking)
    if is_byte_level and (found := _by_ranks(library, vocab, special)):
        return found
    if [library.token_to_id(name) for name in special] != [*special.values()]:
        raise ValueError("its special tokens do not get their ids")
    return JsonTokenizer(library.to_str().encode(), special)


def _by_ranks(
    library: Tokenizer, vocab: dict[str, int], special: dict[str, int]
) -> ours.BytePairTokenizer | None:
    """Return byte pairs by ranks where those, written here, are what the library has of it."""
    said = json.loads(library.to_str())
    patterns = [ours.GPT2_PATTERN, DIGITS_PATTERN]
    match said["pre_tokenizer"]:
        case {"pretokenizers": [{"pattern": {"Regex": str(regex)}}, *_]}:
            patterns.append(regex)
    pattern = next((p for p in patterns if repr(_words(p)) == repr(library.pre_tokenizer)), None)
    merges, model = [*map(list, merges_of(vocab))], said["model"]
    is_whole = model["ignore_merges"] or len(merges) == len(vocab) - 256
    if pattern is None or said["normalizer"] or not is_whole or merges != model["merges"]:
        return None
    ranks = {bytes(BYTES[c] for c in token): idx for token, idx in vocab.items()}
    return ours.BytePairTokenizer("imported", pattern, ranks, special)
