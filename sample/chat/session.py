"""A conversation that goes on: its turns so far, its settings, and the answer being written.

The seed of an answer is the setting plus how many were asked for before it: the same prompt again,
and /retry, give another one, and the same prompts to a new chat the same ones.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.inference.config import GenerateConfig
from common.inference.decoder import Decoder
from common.settings import SEEDS_END
from sample.chat.transcript import Transcript
from sample.text.detokenizer import Reading
from sample.text.template import RAW, Message, Template, Trimming, well_formed
from sample.text.truncate import Fitted, fit, missing_notice, split_turns


@dataclass(frozen=True)
class Answered:
    """What writing the last answer took."""

    fitted: Fitted
    n_new: int  # tokens
    dt_s: float  # from the prompt to the last of them


class Chat:
    """The turns so far, and what answers them; notices, a line each, go to ``say``."""

    def __init__(
        self,
        decoder: Decoder,
        config: GenerateConfig,
        *,
        template: Template = RAW,
        run: str = "",
        say: Callable[[str], None] = lambda notice: None,
        transcript: Transcript | None = None,
    ) -> None:
        """Answer with the first row of ``decoder``; ``run`` is only for the record."""
        self.decoder = decoder
        self.config = config
        self.template = template
        self.run = run
        self.say = say
        self.transcript = transcript  # is given each turn when it is over
        self.messages: list[Message] = []
        self.answered: Answered | None = None
        self.file: Path | None = None  # where it was saved last
        self.shows_stats = False
        self.n_asked = 0
        self._stop_asked = False
        self._said_dropped = False

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer to ``text`` as it is written; then both are kept as a turn.

        Where the template only continues a text, its beginning comes first. An answer that is
        stopped or closed is kept as far as it came, and marked.
        """
        text = well_formed(text)
        for notice in missing_notice(self.decoder.tokenizer, text):
            self.say(notice)
        fitted = fit(
            [*self.messages, Message("user", text)],
            template=self.template,
            tokenizer=self.decoder.tokenizer,
            block_size=self.decoder.block_size,
            max_new_tokens=self.config.max_new_tokens,
        )
        self._say_what_was_left_out(fitted)
        self._stop_asked = False
        return self._answer(text, fitted)

    def stop(self) -> None:
        """End the answer that is being written after its next token; safe in a signal handler."""
        self._stop_asked = True

    def _answer(self, text: str, fitted: Fitted) -> Generator[str]:
        reading = Reading(self.decoder.tokenizer, self.config.max_new_tokens, self.template.stops)
        answer, start = "", time.perf_counter()

        def end(*, stopped: bool) -> None:
            turn = [Message("user", text), Message("assistant", answer, stopped)]
            self.messages += turn
            self.answered = Answered(fitted, reading.n_tokens, time.perf_counter() - start)
            if self.transcript is not None:
                self.transcript.add(turn)

        try:
            if not self.template.opening:
                yield text
            trimming = Trimming(trim=bool(self.template.opening))
            for piece in self._pieces(fitted.ids, reading):
                if shown := trimming.push(piece):
                    answer += shown
                    yield shown
        except UserError:  # the network cannot answer: nothing to keep
            raise
        except BaseException:  # closed, or the program ends
            end(stopped=True)
            raise
        end(stopped=self._stop_asked)

    def _pieces(self, prompt: list[int], reading: Reading) -> Iterator[str]:
        config = replace(self.config, seed=(self.config.seed + self.n_asked) % SEEDS_END)
        self.n_asked += 1
        self.decoder.admit(0, prompt, config)
        try:
            while not self._stop_asked:
                piece = reading.take(self.decoder.step()[0])
                if piece.text:
                    yield piece.text
                if piece.is_last:
                    return
        finally:
            self.decoder.release(0)

    def _say_what_was_left_out(self, fitted: Fitted) -> None:
        n_seen = fitted.n_prompt - fitted.n_cut
        if fitted.system_dropped:
            self.say("The context has no room for the system text beside the prompt: left out.")
        if fitted.n_cut:
            self.say(
                f"The prompt has {fitted.n_prompt:,} tokens, and {n_seen:,} fit into the context "
                f"beside the reply; cut off at its beginning: {fitted.n_cut:,}."
            )
        if fitted.n_dropped and not self._said_dropped:
            self._said_dropped = True
            self.say(
                "The context has no room for the whole conversation: the model sees the last "
                f"turns alone, now {fitted.n_turns - fitted.n_dropped} of {fitted.n_turns} (from "
                "here on, /stats tells)."
            )

    @property
    def system(self) -> str:
        """What stands before the turns."""
        return "\n".join(message.content for message in split_turns(self.messages)[0])

    def set_system(self, text: str) -> None:
        """Replace what stands before the turns; nothing where ``text`` is empty."""
        text = well_formed(text)
        _, turns = split_turns(self.messages)
        first = [Message("system", text)] if text else []
        self.messages = first + [message for turn in turns for message in turn]

    def replace_messages(self, messages: list[Message]) -> None:
        """Go on with another conversation."""
        self.messages = list(messages)
        self.answered = None
        self._said_dropped = False

    def undo(self) -> str | None:
        """Take back the last turn; return its prompt, or None where there is no turn."""
        system, turns = split_turns(self.messages)
        if not turns:
            return None
        self.messages = system + [message for turn in turns[:-1] for message in turn]
        return turns[-1][0].content

    def stats(self) -> str:
        """Return how fast the last answer came, and what of the context it took."""
        if self.answered is None:
            return "No answer yet."
        fitted, n_new, dt_s = self.answered.fitted, self.answered.n_new, self.answered.dt_s
        block_size = self.decoder.block_size
        n_used = min(len(fitted.ids) + n_new, block_size)
        return (
            f"{n_new:,} tokens in {dt_s:.2f} s, {n_new / max(dt_s, 1e-9):,.0f} tokens/s. Context: "
            f"{n_used:,} of {block_size:,} tokens, {fitted.n_turns - fitted.n_dropped:,} of "
            f"{fitted.n_turns:,} turns."
        )
