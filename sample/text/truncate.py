"""messages -> the ids that the model sees: whole turns, as many of the last as the context holds.

A turn is what the person wrote and its answer. The system text, if there is one, stays before them.
The answer has room for max_new_tokens, but at most half of the context: beyond that the context
slides while it is generated (common/inference/decoder.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from common.tokenizer import Tokenizer
from sample.text.template import Message, Template, render, render_message


@dataclass(frozen=True)
class Fitted:
    """A conversation as the model sees it, and what had no room."""

    ids: list[int]
    n_turns: int  # of the conversation, the last one included
    n_dropped: int  # of them, the oldest, left out
    n_prompt: int  # tokens of the last turn, the beginning of the answer included
    n_cut: int  # of them, the first, left out
    system_dropped: bool


def room_for_prompt(block_size: int, max_new_tokens: int) -> int:
    """Return how many tokens may precede an answer."""
    return block_size - min(max_new_tokens, block_size // 2)


def fit(
    messages: Sequence[Message],
    *,
    template: Template,
    tokenizer: Tokenizer,
    block_size: int,
    max_new_tokens: int,
) -> Fitted:
    """Return the ids of ``messages`` and of the beginning of the answer, at most as many as fit.

    Whole turns are left out, the oldest first. The last one stays: where it is too long, a system
    text that takes more than half of the room goes, and then the beginning of the turn's words. An
    empty list of ids stands for the beginning of a document.
    """
    room = room_for_prompt(block_size, max_new_tokens)
    system, turns = split_turns(messages)
    *earlier, last = turns or [[]]
    head = _encode(system, template, tokenizer)
    prompt = tokenizer.encode(render(last, template))
    n_prompt, n_cut = len(prompt), 0
    system_dropped = len(head) + n_prompt > room and len(head) > room // 2
    if system_dropped:
        head = []
    if len(head) + n_prompt > room:
        prompt = _shortened(last, template, tokenizer, room - len(head))
        n_cut = n_prompt - len(prompt)
    kept: list[list[int]] = []
    free = room - len(head) - len(prompt)
    for turn in reversed(earlier):  # the newest first: those long out of reach are not encoded
        ids = _encode(turn, template, tokenizer)
        if len(ids) > free:
            break
        kept.insert(0, ids)
        free -= len(ids)
    between = [idx for ids in kept for idx in ids]
    return Fitted(
        [*head, *between, *prompt],
        len(turns),
        len(earlier) - len(kept),
        n_prompt,
        n_cut,
        system_dropped,
    )


def split_turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Return the system messages at the beginning, and the turns: a user's message begins each."""
    system = list(takewhile(lambda message: message.role == "system", messages))
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def _encode(messages: Sequence[Message], template: Template, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("".join(render_message(each, template) for each in messages))


def _shortened(
    turn: Sequence[Message], template: Template, tokenizer: Tokenizer, room: int
) -> list[int]:
    """Return the last turn's ids without the beginning of its words; who speaks stays if it can."""
    speaker = tokenizer.encode(template.around[turn[0].role][0].rstrip(" ")) if turn else []
    if len(speaker) > room // 2:
        speaker = []
    ids = tokenizer.encode(render(turn, template))
    return speaker + ids[len(ids) - (room - len(speaker)) :]


def missing_notice(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return a notice that names the characters the vocabulary lacks, if there are any."""
    missing = tokenizer.missing(text)
    if not missing:
        return []
    return [f"The vocabulary has no {', '.join(map(repr, missing))}: left out of the prompt."]
