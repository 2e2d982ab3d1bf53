"""A request's body -> what the engine is to do, and how its answers are written."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.inference.config import GenerateConfig
from common.settings import SEEDS_END
from sample.server.config import ServedModel
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
from sample.text.template import Message, Role
from sample.text.truncate import build_prompt, missing_notice

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


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
        sentence = f"model is {shown(body.model)}: this server has {model.name}."
        raise APIError(sentence, status=404, param="model", code="model_not_found")
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
    missing = missing_notice(model.tokenizer, "".join(each.content for each in messages))
    builder = ResponseBuilder(
        chat=True,
        model=model,
        n_prompt_tokens=len(prompt.ids),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        notices=[*missing, *prompt.notices()],
        prefixes=[""] * (body.n or 1),
        include_usage=_includes_usage(body),
    )
    strips = model.template.strips_answers
    continues = messages[-1].role == "assistant"
    options = {"template_stops": model.template.stops, "strip_start": strips and not continues,
               "strip_end": strips}  # fmt: skip
    return _generation(body, config, [prompt.ids], builder, options)


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
    ids = [_encode(prompt, model) for prompt in prompts]
    texts = "".join(prompt for prompt in prompts if isinstance(prompt, str))
    echoed = [model.tokenizer.decode_bytes(each).decode("utf-8", "replace") for each in ids]
    builder = ResponseBuilder(
        chat=False,
        model=model,
        n_prompt_tokens=sum(map(len, ids)),  # counted once, however many answers share it
        top_logprobs=body.logprobs,
        notices=missing_notice(model.tokenizer, texts),
        prefixes=[text if body.echo else "" for text in echoed for _ in range(body.n or 1)],
        include_usage=_includes_usage(body),
    )
    return _generation(body, _config(body, body.max_tokens, model), ids, builder, {})


def _encode(prompt: str | list[int], model: ServedModel) -> list[int]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    for idx in ids:
        if idx >= tokenizer.vocab_size or not tokenizer.token_bytes[idx]:
            wanted = f"made of ids below {tokenizer.vocab_size:,} that stand for text"
            raise APIError(f"prompt is {shown(idx)}: it must be {wanted}.", param="prompt")
    if len(ids) > model.block_size:
        sentence = (
            f"The prompt has {len(ids):,} tokens, and the context holds {model.block_size:,}: "
            "shorten it."
        )
        raise APIError(sentence, param="prompt", code="context_length_exceeded")
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
    config: GenerateConfig,
    prompts: Sequence[list[int]],
    builder: ResponseBuilder,
    detokenizer_options: Mapping[str, Any],
) -> GenerationRequest:
    n, model = body.n or 1, builder.model
    if len(prompts) * n > model.limits.rows:
        raise APIError(
            f"{len(prompts)} prompts times n = {n} are {len(prompts) * n} answers: "
            f"at most {model.limits.rows} at once.",
            param="n" if n > 1 else "prompt",
        )
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    samples = [
        Request(
            prompt=prompt,
            config=replace(config, seed=(config.seed + i) % SEEDS_END),
            detokenizer=Detokenizer(
                model.tokenizer,
                config.max_new_tokens,
                [stop for stop in stops if stop],
                **detokenizer_options,
            ),
            top_logprobs=builder.top_logprobs or 0,
        )
        for prompt in prompts
        for i in range(n)
    ]
    return GenerationRequest(samples, builder, stream=bool(body.stream))


def _includes_usage(body: GenerationParameters) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)
