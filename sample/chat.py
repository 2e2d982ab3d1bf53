"""The conversation: what the model sees of it, and the loop of a terminal.

A base model continues text, so the conversation is one text: each turn what the person wrote and
what the model made of it, a newline between turns. Whole turns are dropped, the oldest first, where
the context has no room for them and the reply.
"""

from collections.abc import Iterator
from dataclasses import replace

from common.config import GenerateConfig
from common.generate import generate
from common.model import GPT
from common.tokenizer import Tokenizer
from sample.stream import stream_text


class Conversation:
    """The turns so far, as ids."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, config: GenerateConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.turns: list[list[int]] = []
        self.n_asked = 0

    def fit(self, prompt: list[int]) -> tuple[list[int], list[str]]:
        """Drop what the context has no room for; return the prompt that fits, and the notices.

        The reply's room is max_new_tokens, but at most half of the context.
        """
        block_size = self.model.config.block_size
        room = block_size - min(self.config.max_new_tokens, block_size // 2)
        notices = []
        if len(prompt) > room:
            notices.append(
                f"The prompt has {len(prompt):,} tokens, and {room:,} fit into the context beside "
                f"the reply: the first {len(prompt) - room:,} were cut off."
            )
            prompt = prompt[-room:]
        n_turns = len(self.turns)
        while self.turns and sum(map(len, self.turns)) + len(prompt) > room:
            del self.turns[0]
        if len(self.turns) < n_turns:
            notices.append(
                f"The context has no room for the whole conversation: of its {n_turns} turns the "
                f"last {len(self.turns)} stay."
            )
        return prompt, notices

    def reply(self, text: str) -> tuple[list[str], Iterator[str]]:
        """Return the notices for a prompt, and the reply's text as it is generated."""
        prompt, notices = self.fit(self.tokenizer.encode(text))
        return missing_notice(self.tokenizer, text) + notices, self._generate(prompt)

    def _generate(self, prompt: list[int]) -> Iterator[str]:
        # another seed each turn: the same prompt twice should not give the same reply twice
        config = replace(self.config, seed=self.config.seed + self.n_asked)
        self.n_asked += 1
        context = [idx for turn in self.turns for idx in turn] + prompt
        reply: list[int] = []

        def noted() -> Iterator[int]:
            for idx in generate(self.model, context, config, self.tokenizer):
                reply.append(idx)
                yield idx

        yield from stream_text(noted(), self.tokenizer)
        self.turns.append([*prompt, *reply, *self.tokenizer.encode("\n")])


def missing_notice(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return a notice that names the characters the vocabulary lacks, if there are any."""
    missing = tokenizer.missing(text)
    if not missing:
        return []
    return [f"The vocabulary has no {', '.join(map(repr, missing))}: left out of the prompt."]


def banner(run: str, step: int, n_tokens: int, val_loss: float | None) -> str:
    """Return what a person should know of the model before talking to it."""
    return (
        f"{run}: step {step:,}, {n_tokens:,} tokens read, {loss_words(val_loss)}.\n"
        "This is a base model: it does not answer, it continues the text that you begin.\n"
        "Ctrl-D leaves."
    )


def loss_words(val_loss: float | None) -> str:
    """Return the validation loss of a checkpoint in words."""
    return "val loss not measured" if val_loss is None else f"val loss {val_loss:.4f}"
