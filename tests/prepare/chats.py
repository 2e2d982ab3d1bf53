"""Conversations: the ids and masks that they must become, by hand, and those in a folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.dataset import SPLITS, DataFolder, open_data
from common.tokenizer import Tokenizer
from prepare.config import ChatsConfig
from prepare.pipeline import prepare_corpus
from prepare.readers.conversations import read_conversations
from prepare.sources.discover import find_sources
from prepare.sources.source import SourceList
from tests.processes import REPOSITORY

BPE, CHAR = (str(REPOSITORY / "tests/fixtures" / name) for name in ("small-bpe", "small-char"))
Turn = tuple[str, str]  # role, text
Rows = list[tuple[list[int], list[int]]]  # the ids and the mask of each document


def prepare_chats(sources: list[Path] | SourceList, out: Path, **settings: Any) -> DataFolder:
    """Prepare conversations in this process, with the bytes of small-bpe and 1,024 ids each."""
    defaults: dict[str, Any] = {"tokenizer": BPE, "context": 1_024}
    prepare_corpus(
        sources if isinstance(sources, SourceList) else find_sources(sources, out=out),
        ChatsConfig(**defaults | settings),
        out,
        lambda name, size: lambda n_bytes: None,
        read=read_conversations,
    )
    return open_data(out)


def lines_of(records: Iterable[Any]) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode("ascii")


def messages(turns: Iterable[Turn]) -> dict[str, Any]:
    """Return a conversation as most data sets have it."""
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def by_hand(
    tokenizer: Tokenizer, turns: Iterable[Turn], *, learned: int = 0, bits: int = 0
) -> tuple[list[int], list[int]]:
    """Return ids and mask of a conversation; answers are learned from message ``learned`` on."""
    ids, mask = [], []
    for number, (role, text) in enumerate(turns):
        content = tokenizer.encode(text.strip())
        ids += [tokenizer.special_tokens[f"<|{role}|>"], *content]
        ids.append(tokenizer.special_tokens["<|end|>"])
        is_learned = int(role == "assistant" and number >= learned)
        mask += [bits] + [bits | is_learned] * (len(content) + 1)
    return ids, mask


def with_end(tokenizer: Tokenizer, row: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """Return a document: with the end-of-text id, which is not learned."""
    return [*row[0], tokenizer.eot_id], [*row[1], 0]


def documents_in(data: DataFolder) -> Rows:
    """Return the documents of both splits, cut at the end-of-text ids alone."""
    found: Rows = []
    eot_id = data.tokenizer().eot_id
    for split in SPLITS:
        ids, mask = data.tokens(split).tolist(), data.mask(split).tolist()
        assert len(ids) == len(mask)
        start = 0
        for end, i in enumerate(ids, start=1):
            if i == eot_id:
                found.append((ids[start:end], mask[start:end]))
                start = end
        assert start == len(ids)
    return found


def said_in(data: DataFolder) -> list[list[Turn]]:
    """Return who says what in each document, a learned answer's role as ASSISTANT."""
    tokenizer = data.tokenizer()
    names = {i: name.strip("<|>") for name, i in tokenizer.special_tokens.items()}
    found = []
    for ids, mask in documents_in(data):
        turns: list[Turn] = []
        start = 0
        for end, i in enumerate(ids):
            if names.get(i) == "end":
                role, text = names[ids[start]], tokenizer.decode_bytes(ids[start + 1 : end])
                bits = set(mask[start + 1 : end + 1])
                assert len(bits) == 1
                turns.append((role.upper() if bits.pop() & 1 else role, text.decode()))
                start = end + 1
        found.append(turns)
    return found
