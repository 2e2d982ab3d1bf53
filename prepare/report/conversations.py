"""Conversations read back from ids and mask: shown, checked against their format, exported."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.chat_format import LEARNED, REJECTED, ROLES, Role, end_id, role_id
from common.dataset import SPLITS, DataFolder, Split
from common.errors import DataError
from common.files import atomic_write
from common.tokenizer import Tokenizer
from prepare.report.export import writing
from prepare.report.inspection import SHOWN_CHARACTERS

Array = npt.NDArray[Any]


class Written(NamedTuple):
    """A message as it stands in the files."""

    role: Role
    text: str
    is_learned: bool
    is_cut: bool  # learned, but not that it ends
    is_rejected: bool


def written_messages(ids: Array, mask: Array, tokenizer: Tokenizer) -> list[Written]:
    """Return the messages of a document; raise ValueError where it is not written as one is."""
    roles = {role_id(tokenizer, role): role for role in ROLES}
    special = np.array([*tokenizer.special_tokens.values()])
    if not len(ids) or ids[-1] != tokenizer.eot_id or mask[-1]:
        raise ValueError("it does not end in the end-of-text id, not learned")
    places = np.flatnonzero(np.isin(ids, special)).tolist()
    marks = [int(ids[place]) for place in places]
    if len(places) % 2 == 0 or any(
        begin not in roles or end != end_id(tokenizer)
        for begin, end in zip(marks[:-1:2], marks[1::2], strict=True)
    ):
        raise ValueError("its special ids are not those of messages in a row")
    messages: list[Written] = []
    start = 0
    for begin, end in zip(places[:-1:2], places[1::2], strict=True):
        bits, role = mask[begin : end + 1], roles[int(ids[begin])]
        rejected, learned = bits & REJECTED, bits & LEARNED
        is_learned = len(bits) > 2 and bool(learned[1])
        if (
            begin != start
            or (bits & ~np.uint8(LEARNED | REJECTED)).any()
            or (rejected != rejected[0]).any()
            or (is_learned and role != "assistant")
            or learned[0]
            or (learned[1:-1] != is_learned).any()
            or learned[-1] > is_learned
        ):
            raise ValueError(f"the mask of its message {len(messages) + 1} is not as it must be")
        text = tokenizer.decode_bytes(ids[begin + 1 : end].tolist()).decode("utf-8", "replace")
        is_cut = is_learned and not learned[-1]
        messages.append(Written(role, text, is_learned, is_cut, bool(rejected[0])))
        start = end + 1
    if start != len(ids) - 1:
        raise ValueError("ids stand between its messages")
    return messages


def _check_document(messages: list[Written], *, pairs: bool) -> None:
    """Raise ValueError where others are learned than the answers: of a pair, the last of each."""
    halves = [[m for m in messages if m.is_rejected is half] for half in (False, True)]
    if [*halves[0], *halves[1]] != messages or bool(halves[1]) is not pairs:
        raise ValueError("what is marked as rejected is not the second half of a pair")
    for half in halves if pairs else halves[:1]:
        turns = [m.role for m in half if m.role != "system"]
        if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
            raise ValueError("its messages do not take turns")
        for number, message in enumerate(half, start=1):
            must = message.role == "assistant" and (not pairs or number == len(half))
            if message.is_learned is not must:
                raise ValueError("what is learned is not its answers")
    if pairs and [m[:2] for m in halves[0][:-1]] != [m[:2] for m in halves[1][:-1]]:
        raise ValueError("its two halves answer different questions")


def documents(data: DataFolder, split: Split) -> Iterator[list[Written]]:
    """Yield the messages of each document; raise DataError where one is not as it must be."""
    tokenizer, ids, mask = data.tokenizer(), data.tokens(split), data.mask(split)
    bounds = data.document_bounds(split)
    path = data.path / f"{split}.mask"
    if path.stat().st_size != len(ids):
        raise DataError(
            f"{path}: {path.stat().st_size:,} bytes, but {split}.bin holds {len(ids):,} ids, and "
            "each has one. Prepare the data again."
        )
    for number, (start, end) in enumerate(pairwise(bounds.tolist())):
        try:
            messages = written_messages(ids[start:end], mask[start:end], tokenizer)
            _check_document(messages, pairs=bool(data.meta["chats"]["pairs"]))
        except ValueError as error:
            raise DataError(
                f"{path}, document {number:,}: {error}. Prepare the data again."
            ) from error
        yield messages


def verify_masks(data: DataFolder) -> None:
    """Read all conversations; raise DataError that names the first whose mask is wrong."""
    for split in SPLITS if data.has_masks else ():
        for _ in documents(data, split):
            pass


def first_conversations(data: DataFolder, n_documents: int) -> Iterator[str]:
    """Yield the first conversations as text, train's before val's; of each SHOWN_CHARACTERS."""
    for split in SPLITS:
        lengths = np.diff(data.document_bounds(split))[:n_documents].tolist()
        for i, (n_tokens, messages) in enumerate(
            zip(lengths, documents(data, split), strict=False)
        ):
            lines = [f"--- {split} conversation {i}: {n_tokens:,} tokens ---"]
            for message in messages:
                of = (", learned" * message.is_learned) + (", cut off" * message.is_cut)
                lines.append(f"[{message.role}{', rejected' * message.is_rejected}{of}]")
                text = message.text
                more = f" [... {len(text) - SHOWN_CHARACTERS:,} more characters]"
                lines.append(text[:SHOWN_CHARACTERS] + more * (len(text) > SHOWN_CHARACTERS))
            yield "\n".join(lines)
        n_documents = max(0, n_documents - len(lengths))


def export_conversations(data: DataFolder, out: Path) -> list[Path]:
    """Write ``split.jsonl``: messages, or of pairs prompt, chosen and rejected, as TRL has them."""
    paths = {split: out / f"{split}.jsonl" for split in SPLITS}
    with writing(out):
        for split, path in paths.items():
            with atomic_write(path) as file:
                for messages in documents(data, split):
                    line = json.dumps(_record(messages), ensure_ascii=False)
                    file.write(line.encode("utf-8") + b"\n")
    return list(paths.values())


def _record(messages: list[Written]) -> dict[str, Any]:
    said = [{"role": message.role, "content": message.text} for message in messages]
    if not messages[-1].is_rejected:
        return {"messages": said}
    n_turns = len(said) // 2  # of each half
    prompt, chosen = said[: n_turns - 1], said[n_turns - 1 : n_turns]
    return {"prompt": prompt, "chosen": chosen, "rejected": said[-1:]}
