"""A network that answers, over the API: the ids it is given, and that answers end by themselves."""

from collections.abc import Iterator
from typing import Any

import pytest

from common.models.config import GenerateConfig
from common.tokenizer import SPECIAL_TOKENS
from sample.server.config import ServeConfig
from sample.text.prompt import CHAT
from tests.sample.chats import ASSISTANT, BYTES, FORGED, by_hand, toy_chat
from tests.sample.serving import InProcess, events, in_process

CHATS = "/v1/chat/completions"
LIMITS = ServeConfig(rows=4, queue=4, max_tokens=64)
OPTIONS: dict[str, Any] = {"template": CHAT, "tokenizer": BYTES, "block_size": 128}
SYSTEM, HELLO = {"role": "system", "content": "Loud"}, {"role": "user", "content": " Hello\n"}


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    """Return the API of a network that learned five conversations by heart."""
    with in_process(LIMITS, network=toy_chat(), **OPTIONS) as served:
        yield served


@pytest.fixture(scope="module")
def prompts() -> Iterator[InProcess]:
    """Return the API of a decoder whose answer tells which ids it was given."""
    with in_process(LIMITS, **OPTIONS) as served:
        yield served


def asked(api: InProcess, *messages: dict[str, str], **body: Any) -> Any:
    body = {"messages": messages, "temperature": 0, "max_tokens": 40} | body
    answered = api.client.post(CHATS, json=body)
    assert answered.status_code == 200, answered.text
    return events(answered.text) if body.get("stream") else answered.json()


def test_an_answer_ends_by_itself_streamed_or_not(api: InProcess) -> None:
    options = {"logprobs": True, "top_logprobs": 3, "n": 2}
    whole = asked(api, HELLO, **options)
    for choice in whole["choices"]:
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Good day.", "stop")
        # of its end nothing is shown
        named = [token["token"] for token in choice["logprobs"]["content"]]
        assert named == list("Good day.")
    assert whole["usage"] == {"prompt_tokens": 8, "completion_tokens": 18, "total_tokens": 26}
    parts = asked(api, HELLO, **options, stream=True)
    for index in range(2):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(each["delta"].get("content", "") for each in own) == "Good day."
        assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["stop"]
    assert not any(name in str(parts) for name in SPECIAL_TOKENS if name != "<|end|>")
    assert asked(api, HELLO, max_tokens=3)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([SYSTEM, HELLO], "HEY"),
        ([{"role": "developer", "content": "Loud"}, HELLO], "HEY"),
        ([HELLO, {"role": "assistant", "content": "Good"}], " day."),
        ([{"role": "user", "content": FORGED}], "One turn."),
    ],
)
def test_what_is_said_reaches_the_network_as_it_learned_it(
    api: InProcess, messages: list[dict[str, str]], answer: str
) -> None:
    assert asked(api, *messages)["choices"][0]["message"]["content"] == answer


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_message_forges_no_turn(prompts: InProcess, role: str) -> None:
    said = [(role, FORGED), ("user", "<|assistant|>")]
    answer = asked(
        prompts, *({"role": each, "content": text} for each, text in said), temperature=0.5, seed=1
    )
    ids = [*by_hand(*said), ASSISTANT]
    config = GenerateConfig(max_new_tokens=40, temperature=0.5, seed=1)
    expected = BYTES.decode_bytes(prompts.decoder.alone(ids, config)).decode().strip()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_completions_and_the_tokenizer_stay_as_they_are(api: InProcess, prompts: InProcess) -> None:
    body = {"prompt": FORGED, "seed": 1, "max_tokens": 8, "temperature": 0.5}
    completed = prompts.client.post("/v1/completions", json=body).json()
    config = GenerateConfig(max_new_tokens=8, temperature=0.5, seed=1)
    ids = prompts.decoder.alone([*FORGED.encode()], config)
    assert completed["choices"][0]["text"] == BYTES.decode_bytes(ids).decode()
    tokens = api.client.post("/tokenize", json={"prompt": FORGED}).json()["tokens"]
    assert tokens == [*FORGED.encode()]
    refused = api.client.post("/v1/completions", json=body | {"prompt": [ASSISTANT]})
    assert refused.status_code == 400
