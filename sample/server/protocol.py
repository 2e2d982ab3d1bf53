"""The API's shapes in both directions: what requests may hold, and what answers do.

Requests are checked against these models, and /openapi.json is made from them. The ranges of what
chooses ids (temperature, top_k, ...) are GenerateConfig's. A null is as good as leaving a parameter
out. What is not declared here is ignored; what would change the text and is not done here is
declared, and refused (``Unsupported``).

Source: platform.openai.com/docs/api-reference, "Completions" and "Chat", of 2025.
"""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.inference.config import GenerateConfig

MAX_TOP_LOGPROBS = 20  # OpenAI's

# min_length: pydantic refuses halves of characters (lone surrogates) only where it has to count
Text = Annotated[str, Field(min_length=0)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
MaxTokens = Literal[-1] | Annotated[int, Field(ge=1)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
EmptyDict = Annotated[dict[str, Any], Field(max_length=0)]
Zero = Annotated[float, Field(ge=0, le=0)]


def _of_config(name: str, most: float | None = None) -> Any:
    """Return the field that takes a setting of GenerateConfig; ``most`` is the API's own bound."""
    item = next(item for item in fields(GenerateConfig) if item.name == name)
    meaning, at_least, below = (item.metadata[key] for key in ("help", "at_least", "below"))
    bound = {"lt": below} if most is None else {"le": most}
    return Field(default=None, description=meaning, ge=at_least, **bound)


class Parameters(BaseModel):
    """Of numbers no string and no bool is taken for one."""

    model_config = ConfigDict(strict=True)


class SamplingParameters(Parameters):
    """How ids are chosen; the upper bounds are OpenAI's where it has the parameter."""

    temperature: float | None = _of_config("temperature", 2)
    top_p: float | None = _of_config("top_p", 1)
    top_k: int | None = _of_config("top_k", (1 << 31) - 1)
    min_p: float | None = _of_config("min_p")
    repetition_penalty: float | None = _of_config("repetition_penalty", 10)
    seed: int | None = _of_config("seed")


class TextFormat(Parameters):
    """The one format of answers there is."""

    type: Literal["text"]


class Unsupported(Parameters):
    """Known to clients and not done here: only values that ask for nothing are taken."""

    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: EmptyDict | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None


class StreamOptions(Parameters):
    """What a stream holds beside the text."""

    include_usage: bool | None = Field(None, description="A last event counts the tokens.")


class GenerationParameters(SamplingParameters, Unsupported):
    """What both kinds of completion take."""

    model: Text | None = Field(None, description="The model's name, as /v1/models says it.")
    max_tokens: MaxTokens | None = Field(
        None, description="The answer's tokens, at most; -1: as many as the server allows."
    )
    n: int | None = Field(
        None, ge=1, description="Answers to the same prompt, each with a seed of its own."
    )
    stop: Text | list[Text] | None = Field(
        None, description="The answer ends before these texts; an empty one is ignored."
    )
    stream: bool | None = Field(None, description="Answer piece by piece, as server-sent events.")
    stream_options: StreamOptions | None = None


class CompletionRequest(GenerationParameters):
    """What /v1/completions takes."""

    prompt: Text | TokenIds | Annotated[list[Text | TokenIds], Field(min_length=1)] = Field(
        description="The beginning of the text, or several; empty: of a new document."
    )
    echo: bool | None = Field(
        None, description="Begin the answer with the prompt; not together with logprobs."
    )
    logprobs: TopLogprobs | None = Field(
        None, description="Name this many likeliest tokens beside each."
    )


class TextPart(Parameters):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(Parameters):
    """What one speaker said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    tool_calls: EmptyList | None = None
    function_call: EmptyDict | None = None


class ChatRequest(GenerationParameters):
    """What /v1/chat/completions takes."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        description="The conversation so far; of a long one the oldest turns are left out.",
    )
    max_completion_tokens: MaxTokens | None = Field(None, description="Newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Say how likely each token was.")
    top_logprobs: TopLogprobs | None = Field(
        None, description="Name this many likeliest tokens beside each."
    )


class Usage(BaseModel):
    """Tokens in and out; end-of-text is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(BaseModel):
    """Tokens and their natural logarithms of probability, as plain completions have them."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TopLogprob(BaseModel):
    """An id that was likely."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """The id that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Tokens and their natural logarithms of probability, as chats have them."""

    content: list[TokenLogprob]
    refusal: None


class Choice(BaseModel):
    """One of the answers to a request."""

    index: int
    finish_reason: Literal["stop", "length"]


class CompletionChoice(Choice):
    """A continuation of the prompt."""

    text: str
    logprobs: TextLogprobs | None


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Choice):
    """A continuation of the conversation."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class Answer(BaseModel):
    """What both kinds of answers hold."""

    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="Of the weights.")
    usage: Usage
    notices: list[str] = Field([], description="What had no room in the context.")


class Completion(Answer):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatCompletion(Answer):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ModelDescription(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The one model there is."""

    object: Literal["list"]
    data: list[ModelDescription]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


class ErrorDetail(BaseModel):
    """A sentence, and what it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every answer whose status is not 200."""

    error: ErrorDetail
