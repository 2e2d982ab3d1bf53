"""A request's body -> what the engine is to generate, and what writes its answers down."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from common.models.config import GenerateConfig
from common.settings import SEEDS_END
from common.tokenizer import Tokenizer
from sample.server.config import ServeConfig
from sample.server.engine import Job
from sample.server.protocol import APIError, ChatRequest, CompletionRequest, Json, shown
from sample.server.responses import ResponseStream
from sample.text.detokenizer import Detokenizer
from sample.text.prompt import Message, Template, build_prompt, missing_notice
from sample.text.sources import TrainingText

# Tokens of prompts that are named with their logprobs in one answer: 90 MB until they are sent, and
# others wait up to a second while they are written down.
MAX_SCORED = 1 << 18


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What requests are checked against, and answers say."""

    name: str
    fingerprint: str  # of the weights
    created: int  # seconds since 1970
    tokenizer: Tokenizer
    block_size: int
    template: Template
    defaults: GenerateConfig
    limits: ServeConfig
    info: Json  # what the page says of it
    training_text: TrainingText

    def trace(self, text: str) -> Json | None:
        """Return, as JSON, where a text stands in the training text, or None without its index."""
        sources = self.training_text.find(text)
        return None if sources is None else asdict(sources)


def parse_request(
    body: CompletionRequest | ChatRequest, model: ServedModel
) -> tuple[list[Job], ResponseStream]:
    """Return a job for each answer, and what writes them; raise APIError that names why not."""
    config, n = _config(body, model), body.n or 1
    if isinstance(body, ChatRequest):
        ids, notices, options = _chat_prompt(body, config, model)
        prompts, echo = [ids], False
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    else:
        prompts, notices = _prompts(body, model)
        options, echo, top_logprobs = {"names_end": True}, bool(body.echo), body.logprobs
    scores_prompt = echo and (top_logprobs is not None or body.max_tokens == 0)
    n_scored = scores_prompt * n * sum(map(len, prompts)) * (1 + (top_logprobs or 0))
    _check_size(len(prompts), n, n_scored, model.limits)
    if body.model not in (None, model.name):  # there is but one: no other text could be meant
        notices = [f"{model.name} answers: there is no {shown(body.model)} here.", *notices]
    if body.sources and (notice := model.training_text.notice):
        notices = [*notices, notice]
    decode = model.tokenizer.decode_bytes
    texts = [decode(ids).decode("utf-8", "replace") if echo else "" for ids in prompts]
    answers = ResponseStream(
        chat=isinstance(body, ChatRequest),
        model=model.name,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        n_prompt_tokens=sum(map(len, prompts)),  # once, however many answers share a prompt
        top_logprobs=top_logprobs,
        notices=notices,
        prefixes=[text for text in texts for _ in range(n)],
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        trace=model.trace if body.sources else None,
    )
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    stops = [stop for stop in stops if stop]
    options |= {"stops": stops}
    jobs = [
        Job(
            prompt=ids,
            config=replace(config, seed=(config.seed + i) % SEEDS_END),
            detokenizer=Detokenizer(
                model.tokenizer, config.max_new_tokens, n_echoed=len(texts[number]), **options
            ),
            receive=partial(answers.push, number * n + i),
            top_logprobs=top_logprobs or 0,
            scores_prompt=scores_prompt,
            generates=body.max_tokens != 0,
        )
        for number, ids in enumerate(prompts)
        for i in range(n)
    ]
    return jobs, answers


def _check_size(n_prompts: int, n: int, n_scored: int, limits: ServeConfig) -> None:
    n_answers, most = n_prompts * n, limits.rows + limits.queue
    if n_answers > most:  # they would never all find a place
        sentence = f"{n_prompts} prompts times n = {n} are {n_answers} answers"
        raise APIError(f"{sentence}: at most {most} at once.", param="n" if n > 1 else "prompt")
    if n_scored > MAX_SCORED:
        sentence = f"echo and logprobs name {n_scored:,} tokens of prompts"
        raise APIError(f"{sentence}: at most {MAX_SCORED:,} at once.", param="echo")


def _config(body: CompletionRequest | ChatRequest, model: ServedModel) -> GenerateConfig:
    newer_name = body.max_completion_tokens if isinstance(body, ChatRequest) else None
    max_tokens = newer_name or body.max_tokens or model.defaults.max_new_tokens
    limit = model.limits.max_tokens
    given = body.model_dump(include=set(vars(model.defaults)), exclude_none=True)
    return replace(
        model.defaults,
        max_new_tokens=limit if max_tokens < 0 else min(max_tokens, limit),
        **({"seed": secrets.randbelow(SEEDS_END)} | given),
    )


def _chat_prompt(
    body: ChatRequest, config: GenerateConfig, model: ServedModel
) -> tuple[list[int], list[str], Json]:
    """Return the prompt's ids, what had no room, and what the template asks of a Detokenizer."""
    if body.top_logprobs and not body.logprobs:
        raise APIError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    messages = []
    for each in body.messages:
        parts = each.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        # developer: OpenAI's newer name for it
        messages.append(Message("system" if each.role == "developer" else each.role, text))
    template = model.template
    prompt = build_prompt(
        messages,
        template=template,
        tokenizer=model.tokenizer,
        block_size=model.block_size,
        max_new_tokens=config.max_new_tokens,
    )
    missing = missing_notice(model.tokenizer, "".join(each.content for each in messages))
    options = template.detokenizer_options(continues=messages[-1].role == "assistant")
    return prompt.ids, [*missing, *prompt.notices()], options


def _prompts(body: CompletionRequest, model: ServedModel) -> tuple[list[list[int]], list[str]]:
    if body.max_tokens == 0 and not body.echo:
        raise APIError("max_tokens is 0: without echo nothing is asked for.", param="max_tokens")
    given = body.prompt
    one = isinstance(given, str) or isinstance(given[0], int)
    prompts: list[str | list[int]] = [given] if one else given  # type: ignore[list-item, assignment]
    texts = "".join(prompt for prompt in prompts if isinstance(prompt, str))
    return [_encode(prompt, model) for prompt in prompts], missing_notice(model.tokenizer, texts)


def check_ids(ids: Sequence[int], tokenizer: Tokenizer, param: str) -> None:
    """Raise APIError for an id that no network has read: all without text but end-of-text."""
    for idx in ids:
        is_text = idx < tokenizer.vocab_size and tokenizer.token_bytes[idx]
        if not is_text and idx != tokenizer.eot_id:
            wanted = f"made of ids below {tokenizer.vocab_size:,} that stand for text or its end"
            raise APIError(f"{param} is {shown(idx)}: it must be {wanted}.", param=param)


def _encode(prompt: str | list[int], model: ServedModel) -> list[int]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    check_ids(ids, tokenizer, "prompt")
    if len(ids) > model.block_size:
        sentence = f"The prompt has {len(ids):,} tokens, and the context holds {model.block_size:,}"
        raise APIError(f"{sentence}: shorten it.", param="prompt", code="context_length_exceeded")
    return ids
