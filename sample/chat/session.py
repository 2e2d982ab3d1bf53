"""A chat: text in -> prompt -> ids -> generate -> text out, and the turns so far.

    text -> build_prompt (text/prompt.py) -> ids -> generate (common/inference/decoder.py)
         -> tokens -> Detokenizer (text/detokenizer.py) -> text

The seed of an answer is the setting plus how many were asked for before: the same prompt again has
another answer, the same prompts to a new chat the same ones.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from common.inference.decoder import Decoder, generate
from common.models.config import GenerateConfig
from common.settings import SEEDS_END
from sample.text.detokenizer import Detokenizer, TextDelta
from sample.text.prompt import RAW, Message, Template, TruncatedPrompt, build_prompt, missing_notice
from sample.text.sources import TrainingText


class Chat:
    """The turns so far, and what answers them; notices, a line each, go to ``notify``."""

    def __init__(
        self,
        decoder: Decoder,
        config: GenerateConfig,
        *,
        template: Template = RAW,
        notify: Callable[[str], None] = lambda notice: None,
        training_text: TrainingText | None = None,
    ) -> None:
        self.decoder, self.config, self.template, self.notify = decoder, config, template, notify
        self.training_text = training_text
        self.messages: list[Message] = []  # of a system, if there is one, then user, assistant ...
        self.file: Path | None = None  # where they were saved last, or loaded from
        # the last answer's prompt, tokens and seconds
        self.stats: tuple[TruncatedPrompt, int, float] | None = None
        self._n_replies = 0
        self._stop_requested = False

    @property
    def system(self) -> list[Message]:
        """The system text, where there is one: it is the first message."""
        return [message for message in self.messages[:1] if message.role == "system"]

    def reply(self, text: str, history: list[Message] | None = None) -> Generator[str]:
        """Yield the answer to ``text`` as it is written; then both are kept as a turn.

        The turn follows ``history``, all messages so far by default. Where the template only
        continues a text, its beginning comes first. An answer that is stopped or closed is kept as
        far as it came, and marked. Raise UserError, and keep nothing, where the logits are no
        numbers.
        """
        user = Message("user", text)
        history = self.messages if history is None else history
        prompt = self._build_prompt([*history, user])
        config = replace(self.config, seed=(self.config.seed + self._n_replies) % SEEDS_END)
        self._n_replies += 1
        self._stop_requested = False
        options = self.template.detokenizer_options()
        detokenizer = Detokenizer(self.decoder.tokenizer, config.max_new_tokens, **options)
        answer, delta, failed, start_s = "", TextDelta(), False, time.perf_counter()
        try:
            if not self.template.generation_prompt:
                yield user.content
            for token in generate(self.decoder, prompt.ids, config):
                delta = detokenizer.push(token)
                if delta.text:
                    answer += delta.text
                    yield delta.text
                if delta.is_last or self._stop_requested:
                    break
        except UserError:
            failed = True
            raise
        finally:  # also where it is closed, or the program ends
            if not failed:
                stopped = not delta.is_last
                self.messages = [*history, user, Message("assistant", answer, stopped)]
                self.stats = prompt, delta.n_tokens, time.perf_counter() - start_s

    def stop(self) -> None:
        """End the answer that is being written after its next token; safe in a signal handler."""
        self._stop_requested = True

    def _build_prompt(self, messages: list[Message]) -> TruncatedPrompt:
        prompt = build_prompt(
            messages,
            template=self.template,
            tokenizer=self.decoder.tokenizer,
            block_size=self.decoder.block_size,
            max_new_tokens=self.config.max_new_tokens,
        )
        told = self.stats is not None and self.stats[0].n_dropped > 0  # /stats says it again
        missing = missing_notice(self.decoder.tokenizer, messages[-1].content)
        for notice in [*missing, *prompt.notices(dropped=not told)]:
            self.notify(notice)
        return prompt
