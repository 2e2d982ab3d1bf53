"""A request's body -> what the engine is to generate, and how its answers are written."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.inference.config import GenerateConfig
from common.settings import SEEDS_END
from common.tokenizer import Tokenizer
from sample.server.config import ServeConfig
from sample.server.engine import Request
from sample.server.errors import APIError, shown
from sample.server.protocol import ChatMessage, ChatRequest, CompletionRequest, SamplingParameters
from sample.server.responses import ResponseBuilder
from sample.text.detokenizer import Detokenizer
from sample.text.template import Message, Role, Template
from sample.text.truncate import build_prompt, missing_notice

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


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


@dataclass(frozen=True)
class GenerationRequest:
    """One HTTP request: a Request to the engine for each of its answers, and their form."""

    rows: Sequence[Request]
    builder: ResponseBuilder
    stream: bool


@dataclass(frozen=True)
class _Prompts:
    """Several prompts, and what had no room in them, or in the vocabulary."""

    ids: Sequence[list[int]]
    notices: Sequence[str]
    detokenizer_options: Mapping[str, Any]


def parse_request(body: CompletionRequest | ChatRequest, model: ServedModel) -> GenerationRequest:
    """Return what ``body`` stands for.

    Raises: APIError that names the parameter that cannot be served.
    """
    if body.model not in (None, model.name):
        sentence = f"model is {shown(body.model)}: this server has {model.name}."
        raise APIError(sentence, status=404, param="model", code="model_not_found")
    config, n, echo = _config(body, model), body.n or 1, False
    if isinstance(body, ChatRequest):
        prompts = _chat_prompt(body, config, model)
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    else:
        prompts, top_logprobs, echo = _prompts(body, model), body.logprobs, bool(body.echo)
    n_answers, most = len(prompts.ids) * n, model.limits.rows + model.limits.queue
    if n_answers > most:  # they would never all find a place
        raise APIError(
            f"{len(prompts.ids)} prompts times n = {n} are {n_answers} answers: "
            f"at most {most} at once.",
            param="n" if n > 1 else "prompt",
        )
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    rows = [
        Request(
            prompt=ids,
            config=replace(config, seed=(config.seed + i) % SEEDS_END),
            detokenizer=Detokenizer(
                model.tokenizer,
                config.max_new_tokens,
                [stop for stop in stops if stop],
                **prompts.detokenizer_options,
            ),
            top_logprobs=top_logprobs or 0,
        )
        for ids in prompts.ids
        for i in range(n)
    ]
    builder = ResponseBuilder(
        chat=isinstance(body, ChatRequest),
        model=model.name,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        n_prompt_tokens=sum(map(len, prompts.ids)),  # once, however many answers share a prompt
        top_logprobs=top_logprobs,
        notices=prompts.notices,
        prefixes=[_decoded(row.prompt, model) if echo else "" for row in rows],
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    return GenerationRequest(rows, builder, bool(body.stream))


def _config(body: CompletionRequest | ChatRequest, model: ServedModel) -> GenerateConfig:
    limit, max_tokens = model.limits.max_tokens, body.max_tokens
    if isinstance(body, ChatRequest):
        max_tokens = body.max_completion_tokens or max_tokens
    if max_tokens is None:
        max_tokens = model.defaults.max_new_tokens
    given = body.model_dump(include=set(SamplingParameters.model_fields), exclude_none=True)
    return replace(
        model.defaults,
        max_new_tokens=limit if max_tokens < 0 else min(max_tokens, limit),
        **({"seed": secrets.randbelow(SEEDS_END)} | given),
    )


def _chat_prompt(body: ChatRequest, config: GenerateConfig, model: ServedModel) -> _Prompts:
    if body.top_logprobs and not body.logprobs:
        raise APIError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    messages = [Message(ROLES[each.role], _content(each)) for each in body.messages]
    prompt = build_prompt(
        messages,
        template=model.template,
        tokenizer=model.tokenizer,
        block_size=model.block_size,
        max_new_tokens=config.max_new_tokens,
    )
    missing = missing_notice(model.tokenizer, "".join(each.content for each in messages))
    strips, continues = model.template.strips_answers, messages[-1].role == "assistant"
    options = {
        "template_stops": model.template.stops,
        "strip_start": strips and not continues,
        "strip_end": strips,
    }
    return _Prompts([prompt.ids], [*missing, *prompt.notices()], options)


def _content(message: ChatMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _prompts(body: CompletionRequest, model: ServedModel) -> _Prompts:
    if body.echo and body.logprobs is not None:
        raise APIError("echo together with logprobs is not supported here.", param="echo")
    given = body.prompt
    one = isinstance(given, str) or isinstance(given[0], int)
    prompts: list[str | list[int]] = [given] if one else given  # type: ignore[list-item, assignment]
    texts = "".join(prompt for prompt in prompts if isinstance(prompt, str))
    ids = [_encode(prompt, model) for prompt in prompts]
    return _Prompts(ids, missing_notice(model.tokenizer, texts), {})


def _encode(prompt: str | list[int], model: ServedModel) -> list[int]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    for idx in ids:
        if idx >= tokenizer.vocab_size or not tokenizer.token_bytes[idx]:
            wanted = f"made of ids below {tokenizer.vocab_size:,} that stand for text"
            raise APIError(f"prompt is {shown(idx)}: it must be {wanted}.", param="prompt")
    if len(ids) > model.block_size:
        sentence = f"The prompt has {len(ids):,} tokens, and the context holds {model.block_size:,}"
        raise APIError(f"{sentence}: shorten it.", param="prompt", code="context_length_exceeded")
    return ids


def _decoded(ids: Sequence[int], model: ServedModel) -> str:
    return model.tokenizer.decode_bytes(list(ids)).decode("utf-8", "replace")
