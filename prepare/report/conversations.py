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
from prepare.tokens.conversations import Turn, write_turns

Array = npt.NDArray[Any]


class Written(NamedTuple):
    """A message as it stands in the files."""

    role: Role
    ids: Array  # of its text
    bits: int  # LEARNED, REJECTED
    is_cut: bool  # learned, but not that it ends


def messages_of(ids: Array, mask: Array, tokenizer: Tokenizer, *, is_pair: bool) -> list[Written]:
    """Return the messages of a document; raise ValueError where it is not written as one is.

    That is: where the same messages, written again, have other ids, or others of them are learned.
    """
    roles = {role_id(tokenizer, role): role for role in ROLES}
    ends = np.flatnonzero(ids == end_id(tokenizer)).tolist()
    spans = [(start + 1, end) for start, end in pairwise([-1, *ends])]
    turns = [Turn(roles.get(int(ids[a]), "user"), ids[a + 1 : b], 0) for a, b in spans]
    n = len(turns) // 2 if is_pair else len(turns)  # of a pair the second half is rejected
    good, bad = (
        write_turns(tokenizer, half, (len(half) - 1) * is_pair) for half in (turns[:n], turns[n:])
    )
    expected = np.concatenate([good.mask, bad.mask | np.uint8(REJECTED), np.zeros(1, np.uint8)])
    is_same = np.array_equal(np.concatenate([good.ids, bad.ids, [tokenizer.eot_id]]), ids)
    said = [turn.role for turn in turns if turn.role != "system"]
    takes_turns = said and said == ["user", "assistant"] * (len(said) // 2)
    n_special = sum(np.count_nonzero(ids == i) for i in tokenizer.special_tokens.values())
    if not (is_same and takes_turns and n_special == 2 * len(turns) + 1):
        raise ValueError("its ids are not those of messages that take turns")
    uncut = mask.copy()
    uncut[ends] |= expected[ends] & LEARNED  # an answer that was cut off has no end to learn
    if not np.array_equal(uncut, expected):
        raise ValueError("its mask says that others than its answers are learned")
    return [
        Written(turn.role, turn.ids, int(mask[b - 1]), bool(mask[b] != expected[b]))
        for turn, (_, b) in zip(turns, spans, strict=True)
    ]


def text_of(message: Written, tokenizer: Tokenizer) -> str:
    """Return what is said; an answer that was cut off may end in half a character."""
    return tokenizer.decode_bytes(message.ids.tolist()).decode("utf-8", "replace")


def documents(data: DataFolder, split: Split) -> Iterator[list[Written]]:
    """Yield the messages of each document; raise DataError where one is not as it must be."""
    tokenizer, ids, mask = data.tokenizer(), data.tokens(split), data.mask(split)
    path = data.path / f"{split}.mask"
    if path.stat().st_size != len(ids):
        raise DataError(
            f"{path}: {path.stat().st_size:,} bytes, but {split}.bin holds {len(ids):,} ids, and "
            "each has one. Prepare the data again."
        )
    is_pair = bool(data.meta["chats"]["pairs"])
    for number, (start, end) in enumerate(pairwise(data.document_bounds(split).tolist())):
        copies = np.array(ids[start:end]), np.array(mask[start:end])  # faster than memmaps
        try:
            yield messages_of(*copies, tokenizer, is_pair=is_pair)
        except ValueError as error:
            sentence = f"{path}, document {number:,}: {error}. Prepare the data again."
            raise DataError(sentence) from error


def verify_masks(data: DataFolder) -> None:
    """Read all conversations; raise DataError that names the first whose mask is wrong."""
    for split in SPLITS if data.has_masks else ():
        for _ in documents(data, split):
            pass


def first_conversations(data: DataFolder, n_documents: int) -> Iterator[str]:
    """Yield the first conversations as text, train's before val's; of each SHOWN_CHARACTERS."""
    tokenizer = data.tokenizer()
    for split in SPLITS:
        shown = zip(range(n_documents), documents(data, split), strict=False)
        for i, messages in shown:
            lines = [f"--- {split} conversation {i}: {len(messages):,} messages ---"]
            for message in messages:
                is_rejected, is_learned = message.bits & REJECTED, message.bits & LEARNED
                said = ", rejected" * bool(is_rejected) + ", learned" * is_learned
                lines.append(f"[{message.role}{said}{', cut off' * message.is_cut}]")
                text = text_of(message, tokenizer)
                more = f" [... {len(text) - SHOWN_CHARACTERS:,} more characters]"
                lines.append(text[:SHOWN_CHARACTERS] + more * (len(text) > SHOWN_CHARACTERS))
            yield "\n".join(lines)
        n_documents = max(0, n_documents - int(data.meta["splits"][split]["documents"]))


def export_conversations(data: DataFolder, out: Path) -> list[Path]:
    """Write ``split.jsonl``: messages, or of pairs prompt, chosen and rejected, as TRL has them."""
    tokenizer = data.tokenizer()
    paths = {split: out / f"{split}.jsonl" for split in SPLITS}
    with writing(out):
        for split, path in paths.items():
            with atomic_write(path) as file:
                for messages in documents(data, split):
                    line = json.dumps(_record(messages, tokenizer), ensure_ascii=False)
                    file.write(line.encode("utf-8") + b"\n")
    return list(paths.values())


def _record(messages: list[Written], tokenizer: Tokenizer) -> dict[str, Any]:
    said = [{"role": each.role, "content": text_of(each, tokenizer)} for each in messages]
    if not messages[-1].bits & REJECTED:
        return {"messages": said}
    prompt, chosen = said[: len(said) // 2 - 1], said[len(said) // 2 - 1 : len(said) // 2]
    return {"prompt": prompt, "chosen": chosen, "rejected": said[-1:]}
