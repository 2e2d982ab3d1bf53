"""A request's body -> what the engine is to do, and how its answers are written."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.inference.config import GenerateConfig
from common.settings import SEEDS_END
from common.tokenizer import Tokenizer
from sample.server.config import ServeConfig
from sample.server.engine import Request
from sample.server.errors import APIError, shown
from sample.server.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    GenerationParameters,
    SamplingParameters,
)
from sample.server.responses import ResponseBuilder
from sample.text.detokenizer import Detokenizer
from sample.text.template import RAW, Message, Role, Template
from sample.text.truncate import build_prompt, missing_notice

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What is served: facts of the network that requests are checked against."""

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
    """What one HTTP request asks for: ``samples``, one for each answer, and how to answer."""

    samples: Sequence[Request]
    builder: ResponseBuilder
    stream: bool


def parse_request(body: CompletionRequest | ChatRequest, model: ServedModel) -> GenerationRequest:
    """Return what a body asks for.

    Raises: APIError that says what cannot be done as it is.
    """
    if body.model not in (None, model.name):
        raise APIError(
            f"model is {shown(body.model)}: this server has {model.name}.",
            status=404, param="model", code="model_not_found",
        )  # fmt: skip
    if isinstance(body, ChatRequest):
        return _parse_chat(body, model)
    return _parse_completion(body, model)


def _parse_chat(body: ChatRequest, model: ServedModel) -> GenerationRequest:
    if body.top_logprobs and not body.logprobs:
        raise APIError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    config = _config(body, body.max_completion_tokens or body.max_tokens, model)
    messages = [_message(each) for each in body.messages]
    prompt = build_prompt(
        messages,
        template=model.template,
        tokenizer=model.tokenizer,
        block_size=model.block_size,
        max_new_tokens=config.max_new_tokens,
    )
    return _generation(
        body,
        model,
        config,
        prompts=[prompt.ids],
        chat=True,
        template=model.template,
        continues=messages[-1].role == "assistant",
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        notices=[
            *missing_notice(model.tokenizer, "".join(each.content for each in messages)),
            *prompt.notices(),
        ],
    )


def _message(message: ChatMessage) -> Message:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Message(ROLES[message.role], text)


def _parse_completion(body: CompletionRequest, model: ServedModel) -> GenerationRequest:
    if body.echo and body.logprobs is not None:
        raise APIError("echo together with logprobs is not supported here.", param="echo")
    given = body.prompt
    one = isinstance(given, str) or isinstance(given[0], int)
    prompts: list[str | list[int]] = [given] if one else given  # type: ignore[list-item, assignment]
    return _generation(
        body,
        model,
        _config(body, body.max_tokens, model),
        prompts=[_encode(prompt, model) for prompt in prompts],
        chat=False,
        top_logprobs=body.logprobs,
        echo=bool(body.echo),
        notices=missing_notice(
            model.tokenizer, "".join(each for each in prompts if isinstance(each, str))
        ),
    )


def _encode(prompt: str | list[int], model: ServedModel) -> list[int]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    for idx in ids:
        if idx >= tokenizer.vocab_size or not tokenizer.token_bytes[idx]:
            raise APIError(
                f"prompt is {shown(idx)}: it must be made of ids below "
                f"{tokenizer.vocab_size:,} that stand for text.",
                param="prompt", code="invalid_value",
            )  # fmt: skip
    if len(ids) > model.block_size:
        raise APIError(
            f"The prompt has {len(ids):,} tokens, and the context holds {model.block_size:,}: "
            "shorten it.",
            param="prompt", code="context_length_exceeded",
        )  # fmt: skip
    return ids


def _config(body: SamplingParameters, max_tokens: int | None, model: ServedModel) -> GenerateConfig:
    limit = model.limits.max_tokens
    if max_tokens is None:
        max_tokens = model.defaults.max_new_tokens
    given = body.model_dump(include=set(SamplingParameters.model_fields), exclude_none=True)
    return replace(
        model.defaults,
        max_new_tokens=limit if max_tokens < 0 else min(max_tokens, limit),
        **({"seed": secrets.randbelow(SEEDS_END)} | given),
    )


def _generation(
    body: GenerationParameters,
    model: ServedModel,
    config: GenerateConfig,
    *,
    prompts: Sequence[list[int]],
    chat: bool,
    top_logprobs: int | None,
    notices: Sequence[str],
    template: Template = RAW,
    continues: bool = False,
    echo: bool = False,
) -> GenerationRequest:
    n, limit = body.n or 1, model.limits.rows
    if len(prompts) * n > limit:
        raise APIError(
            f"{len(prompts)} prompts times n = {n} are {len(prompts) * n} answers: "
            f"at most {limit} at once.",
            param="n" if n > 1 else "prompt", code="invalid_value",
        )  # fmt: skip
    given = [body.stop] if isinstance(body.stop, str) else body.stop or []
    stops = [stop for stop in given if stop]
    samples = [
        Request(
            prompt=prompt,
            config=replace(config, seed=(config.seed + i) % SEEDS_END),
            detokenizer=Detokenizer(
                model.tokenizer,
                config.max_new_tokens,
                stops,
                template_stops=template.stops,
                strip_start=template.strips_answers and not continues,
                strip_end=template.strips_answers,
            ),
            top_logprobs=top_logprobs or 0,
        )
        for prompt in prompts
        for i in range(n)
    ]
    builder = ResponseBuilder(
        chat=chat,
        model=model.name,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        # a prompt that several answers share is counted once
        n_prompt_tokens=sum(map(len, prompts)),
        prefixes=[_echoed(each.prompt, model.tokenizer) if echo else "" for each in samples],
        top_logprobs=top_logprobs,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        notices=notices,
    )
    return GenerationRequest(samples, builder, bool(body.stream))


def _echoed(prompt: Sequence[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode_bytes(list(prompt)).decode("utf-8", "replace")
