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


@dataclass(frozen=True, kw_only=True)
class TruncatedPrompt:
    """A conversation as the model sees it, and what had no room."""

    ids: list[int]
    n_turns: int  # of the conversation, the last one included
    n_dropped: int  # of them, the oldest, left out
    n_cut: int  # the first tokens of the last turn, left out
    system_dropped: bool

    def notices(self, *, dropped: bool = True) -> list[str]:
        """Return a sentence for each kind of text that had no room; of turns if ``dropped``."""
        oldest = "oldest turn" if self.n_dropped == 1 else f"oldest {self.n_dropped:,} turns"
        first = "first token" if self.n_cut == 1 else f"first {self.n_cut:,} tokens"
        left_out = {
            f"The {oldest}": dropped and self.n_dropped,
            "The system text": self.system_dropped,
            f"The {first} of the last turn": self.n_cut,
        }
        return [f"{what} had no room in the context." for what, was in left_out.items() if was]


def build_prompt(
    messages: Sequence[Message],
    *,
    template: Template,
    tokenizer: Tokenizer,
    block_size: int,
    max_new_tokens: int,
) -> TruncatedPrompt:
    """Return the ids of ``messages`` and of the beginning of the answer, at most as many as fit.

    Whole turns are left out, the oldest first. The last one stays: where it is too long, a system
    text that takes more than half of the room goes, and then the beginning of the turn's words.
    """
    room = block_size - min(max_new_tokens, block_size // 2)
    system, turns = split_turns(messages)
    *earlier, last = turns or [[]]
    head = _encode(system, template, tokenizer)
    prompt = tokenizer.encode(render(last, template))
    n_prompt = len(prompt)
    system_dropped = len(head) + n_prompt > room and len(head) > room // 2
    if system_dropped:
        head = []
    free = room - len(head)
    if n_prompt > free:
        # who speaks stays if it can
        speaker = tokenizer.encode(template.affixes[last[0].role][0].rstrip(" ")) if last else []
        if len(speaker) > free // 2:
            speaker = []
        prompt = speaker + prompt[n_prompt - (free - len(speaker)) :]
    n_cut = n_prompt - len(prompt)
    n_kept = 0
    for turn in reversed(earlier):  # the newest first: those long out of reach are not encoded
        ids = _encode(turn, template, tokenizer)
        if len(head) + len(ids) + len(prompt) > room:
            break
        prompt = ids + prompt
        n_kept += 1
    return TruncatedPrompt(
        ids=head + prompt,
        n_turns=len(turns),
        n_dropped=len(earlier) - n_kept,
        n_cut=n_cut,
        system_dropped=system_dropped,
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


def missing_notice(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return a notice that names the characters the vocabulary lacks, if there are any."""
    missing = ", ".join(map(repr, tokenizer.missing(text)))
    return [f"The vocabulary has no {missing}: left out of the prompt."] if missing else []
