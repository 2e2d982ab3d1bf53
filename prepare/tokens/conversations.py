"""A conversation -> the ids and the mask of one document, or of several where it is too long.

    <|system|> S <|end|> <|user|> Q <|end|> <|assistant|> A <|end|> ...  at most --context ids

Source of what is learned: common/chat_format.py. Texts are encoded as any text is; the special ids
are put between them here.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.chat_format import LEARNED, REJECTED, Role, end_id, role_id
from common.dataset import token_dtype
from common.tokenizer import CharTokenizer, Tokenizer
from prepare.conversation import unpack

TokenIds = npt.NDArray[np.unsignedinteger[Any]]
Mask = npt.NDArray[np.uint8]
N_MARKS = 2  # ids of a message beside its text: who speaks, and the end


class Turn(NamedTuple):
    """A message, encoded."""

    role: Role
    ids: TokenIds
    n_bytes: int  # of its text
    is_cut: bool = False

    @property
    def n_ids(self) -> int:
        """Ids that it takes."""
        return len(self.ids) + N_MARKS


class Part(NamedTuple):
    """A conversation, or as much of it as fits, without the end-of-text id."""

    ids: TokenIds
    mask: Mask
    n_bytes: int  # of its texts


class ConversationEncoder:
    """Encodes conversations of one vocabulary into parts of at most ``context`` ids."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._counts = Counter[str]()

    def __call__(
        self,
        conversations: list[bytes],
        encode: Callable[[list[bytes]], list[TokenIds]],
        counts: Counter[str],
    ) -> list[list[Part]]:
        """Return the parts of each packed conversation; ``counts`` says what became of them."""
        self._counts = counts
        unpacked = [unpack(each) for each in conversations]
        texts = [
            self._known(text)
            for turns, rejected in unpacked
            for text in [text for _, text in turns] + ([] if rejected is None else [rejected])
        ]
        ids = zip(encode(texts), map(len, texts), strict=True)
        rows = []
        for said, rejected in unpacked:
            turns = [Turn(role, *next(ids)) for role, _ in said]
            counts["n_answers"] += sum(turn.role == "assistant" for turn in turns)
            system, turns = (turns[:1], turns[1:]) if turns[0].role == "system" else ([], turns)
            if rejected is None:
                rows.append(self._parts(system, turns))
            else:
                rows.append(self._pair(system, turns, Turn("assistant", *next(ids))))
        return rows

    def _known(self, text: bytes) -> bytes:
        """Leave out the characters that a vocabulary of characters lacks, and count them."""
        if isinstance(self._tokenizer, CharTokenizer):
            characters = text.decode("utf-8")
            if missing := self._tokenizer.missing(characters):
                n_by_character = {c: characters.count(c) for c in missing}
                self._counts.update({f"missing/{c}": n for c, n in n_by_character.items()})
                table = str.maketrans(dict.fromkeys(missing))
                return characters.translate(table).strip().encode("utf-8")
        return text

    def _parts(self, system: list[Turn], turns: list[Turn]) -> list[Part]:
        """Cut between an answer and the next question; the system text begins each part."""
        room = self._context - sum(turn.n_ids for turn in system)
        parts: list[list[Turn]] = [[]]
        n_left = room
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            fitting = self._fit(question, [answer], room)
            if fitting is None:
                n_left = 0  # what follows does not follow what came before
                continue
            n_ids = question.n_ids + fitting[0].n_ids
            if n_ids > n_left:
                parts.append([])
                n_left = room
            parts[-1] += [question, *fitting]
            n_left -= n_ids
        parts = [part for part in parts if part]
        self._counts["n_cut"] += len(parts) > 1
        return [write_turns(self._tokenizer, system + part, 0) for part in parts]

    def _fit(self, question: Turn, answers: list[Turn], room: int) -> list[Turn] | None:
        """Return answers cut to what ``room`` leaves for them, or None where that is nothing."""
        if not (len(question.ids) and all(len(answer.ids) for answer in answers)):
            self._counts["n_unwritable"] += 1
            return None
        n_left = room - question.n_ids - N_MARKS
        if n_left < 1:
            self._counts["n_no_room"] += 1
            return None
        self._counts["n_answers_cut"] += sum(len(answer.ids) > n_left for answer in answers)
        return [self._cut(answer, n_left) for answer in answers]

    def _cut(self, answer: Turn, n_ids: int) -> Turn:
        if len(answer.ids) <= n_ids:
            return answer
        ids = answer.ids[:n_ids]
        n_bytes = len(self._tokenizer.decode_bytes(ids.tolist()))
        return Turn("assistant", ids, n_bytes, is_cut=True)

    def _pair(self, system: list[Turn], turns: list[Turn], rejected: Turn) -> list[Part]:
        """Return one part: the conversation with the chosen answer, then with the rejected one."""
        *before, question, chosen = turns
        room = self._context - sum(turn.n_ids for turn in system)
        fitting = self._fit(question, [chosen, rejected], room)
        if fitting is None:
            return []
        n_last = question.n_ids + max(answer.n_ids for answer in fitting)
        n_turns = len(before)
        while before and n_last + sum(turn.n_ids for turn in before) > room:
            before = before[2:]
        self._counts["n_cut"] += len(before) < n_turns
        prompt = [*system, *before, question]
        good, bad = (
            write_turns(self._tokenizer, [*prompt, answer], len(prompt)) for answer in fitting
        )
        ids = np.concatenate([good.ids, bad.ids])
        mask = np.concatenate([good.mask, bad.mask | np.uint8(REJECTED)])
        return [Part(ids, mask, good.n_bytes + bad.n_bytes)]


def write_turns(tokenizer: Tokenizer, turns: list[Turn], n_given: int) -> Part:
    """Write turns in a row; answers among the first ``n_given`` are not learned."""
    ids = np.empty(sum(turn.n_ids for turn in turns), token_dtype(tokenizer.vocab_size))
    mask = np.zeros(len(ids), np.uint8)
    start = 0
    for number, turn in enumerate(turns):
        end = start + turn.n_ids
        ids[start] = role_id(tokenizer, turn.role)
        ids[start + 1 : end - 1] = turn.ids
        ids[end - 1] = end_id(tokenizer)
        if turn.role == "assistant" and number >= n_given:
            mask[start + 1 : end - turn.is_cut] = LEARNED
        start = end
    return Part(ids, mask, sum(turn.n_bytes for turn in turns))
