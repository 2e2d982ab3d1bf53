"""A request's body -> what the engine is to do, and the shape that the answer will have."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import UserError
from common.inference.config import GenerateConfig
from common.settings import SEEDS_END
from common.tokenizer import Tokenizer
from sample.server.bodies import (
    Prompt,
    chat_parameters,
    completion_parameters,
    encode_prompt,
    read_json,
)
from sample.server.config import ServeConfig
from sample.server.engine import Request
from sample.server.errors import RequestError, shown
from sample.server.parameters import check_object, generate_config
from sample.server.responses import Shape
from sample.text.template import Message, Template, trimmed
from sample.text.truncate import fit, missing_notice


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is served: facts of the network that requests are checked against."""

    name: str
    fingerprint: str  # of the weights
    created: int  # seconds since 1970
    tokenizer: Tokenizer
    block_size: int
    template: Template
    defaults: GenerateConfig
    limits: ServeConfig

    @property
    def max_n(self) -> int:
        """The most answers to one request: more would never find rows and places enough."""
        return self.limits.rows


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: a Request for each choice of the answer, and how to write it down."""

    requests: Sequence[Request]
    shape: Shape
    n_prompt_tokens: int
    stream: bool
    include_usage: bool
    trim: bool  # take blanks off both ends of an answer, as its template sets it off
    prefixes: Sequence[str]  # of each choice: the prompt, if it is to be echoed
    notices: Sequence[str] = ()  # what had no room in the context


def understand(body: bytes, model: Model, *, chat: bool) -> Asked:
    """Return what a body asks for.

    Raises: RequestError that says what cannot be done as it is.
    """
    declare = chat_parameters if chat else completion_parameters
    values = check_object(read_json(body), declare(model.limits.max_tokens, model.max_n))
    if values.get("model", model.name) != model.name:
        raise RequestError(
            f"model is {shown(values['model'])}: this server has {model.name}.",
            status=404, param="model", code="model_not_found",
        )  # fmt: skip
    try:
        return _ask_chat(values, model) if chat else _ask_completion(values, model)
    except UserError as error:  # settings that do not go together, a text that cannot be encoded
        raise RequestError(error.message) from error


def _ask_chat(values: Mapping[str, Any], model: Model) -> Asked:
    if "max_completion_tokens" in values:
        values = dict(values) | {"max_tokens": values["max_completion_tokens"]}
    logprobs, n_top = values.get("logprobs", False), values.get("top_logprobs", 0)
    if n_top and not logprobs:
        raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    config = _config(values, model)
    fitted = fit(
        [_trimmed(message, model.template) for message in values["messages"]],
        template=model.template,
        tokenizer=model.tokenizer,
        block_size=model.block_size,
        max_new_tokens=config.max_new_tokens,
    )
    n = values.get("n", 1)
    stops = (*values.get("stop", ()), *model.template.stops)
    return _asked(
        values,
        model,
        requests=_requests([fitted.ids], config, n, stops, n_top),
        shape=_shape(model, chat=True, logprobs=logprobs, n_top=n_top),
        trim=bool(model.template.opening),
        prefixes=[""] * n,
        notices=[
            *missing_notice(model.tokenizer, "".join(each.content for each in values["messages"])),
            *fitted_notices(fitted.n_dropped, fitted.n_cut, system=fitted.system_dropped),
        ],
    )


def _trimmed(message: Message, template: Template) -> Message:
    # answers were trimmed when they were sent; a client may have added blanks of its own
    if message.role != "assistant":
        return message
    return replace(message, content=trimmed(message.content, template))


def fitted_notices(n_dropped: int, n_cut: int, *, system: bool) -> list[str]:
    """Return sentences for what of a conversation had no room in the context."""
    notices = []
    if n_dropped:
        oldest = "oldest turn" if n_dropped == 1 else f"oldest {n_dropped:,} turns"
        notices.append(f"The {oldest} had no room in the context.")
    if system:
        notices.append("The system text had no room in the context.")
    if n_cut:
        first = "first token" if n_cut == 1 else f"first {n_cut:,} tokens"
        notices.append(f"The {first} of the last turn had no room in the context.")
    return notices


def _ask_completion(values: Mapping[str, Any], model: Model) -> Asked:
    n_top, echo, n = values.get("logprobs"), values.get("echo", False), values.get("n", 1)
    if echo and n_top is not None:
        raise RequestError("echo together with logprobs is not supported here.", param="echo")
    prompts: list[Prompt] = values["prompt"]
    if len(prompts) * n > model.max_n:
        raise RequestError(
            f"{len(prompts)} prompts times n = {n} are {len(prompts) * n} answers: "
            f"at most {model.max_n} at once.",
            param="n" if n > 1 else "prompt",
        )  # fmt: skip
    ids = [_encode(prompt, model) for prompt in prompts]
    texts = [model.tokenizer.decode_bytes(each).decode("utf-8", "replace") for each in ids]
    return _asked(
        values,
        model,
        requests=_requests(ids, _config(values, model), n, values.get("stop", ()), n_top or 0),
        shape=_shape(model, chat=False, logprobs=n_top is not None, n_top=n_top or 0),
        trim=False,
        prefixes=[text if echo else "" for text in texts for _ in range(n)],
        notices=missing_notice(
            model.tokenizer, "".join(each for each in prompts if isinstance(each, str))
        ),
    )


def _encode(prompt: Prompt, model: Model) -> list[int]:
    ids = encode_prompt(prompt, model.tokenizer)
    if len(ids) > model.block_size:
        raise RequestError(
            f"The prompt has {len(ids):,} tokens, and the context holds {model.block_size:,}: "
            "shorten it.",
            param="prompt", code="context_length_exceeded",
        )  # fmt: skip
    return ids


def _config(values: Mapping[str, Any], model: Model) -> GenerateConfig:
    return generate_config(values, model.defaults, seed=secrets.randbelow(SEEDS_END))


def _requests(
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    n: int,
    stops: Sequence[str],
    n_top: int,
) -> list[Request]:
    return [
        Request(
            prompt=prompt,
            config=replace(config, seed=(config.seed + i) % SEEDS_END),
            stops=tuple(stops),
            n_top=n_top,
        )
        for prompt in prompts
        for i in range(n)
    ]


def _shape(model: Model, *, chat: bool, logprobs: bool, n_top: int) -> Shape:
    return Shape(
        chat=chat,
        model=model.name,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        logprobs=logprobs,
        n_top=n_top,
    )


def _asked(
    values: Mapping[str, Any], model: Model, *, requests: Sequence[Request], **rest: Any
) -> Asked:
    n = values.get("n", 1)
    return Asked(
        requests=requests,
        # a prompt that several choices share is counted once
        n_prompt_tokens=sum(len(request.prompt) for request in requests[::n]),
        stream=values.get("stream", False),
        include_usage=values.get("stream_options", False),
        **rest,
    )
