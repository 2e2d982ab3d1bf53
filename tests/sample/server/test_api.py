"""The HTTP interface in this process: shapes, ranges, who may ask, and what happens to places."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.models.config import GenerateConfig
from sample.server.app import MAX_BODY_BYTES, JsonRequest
from sample.server.config import ServeConfig
from sample.server.engine import FAULT, Job
from sample.server.protocol import APIError
from sample.server.responses import json_bytes
from sample.server.security import Access, host_name
from sample.text.detokenizer import Detokenizer
from sample.text.prompt import RAW, TURNS, Message, build_prompt
from tests.sample.conftest import ALPHABET
from tests.sample.serving import InProcess, assert_joined, events, in_process

SOON_S = 20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    with in_process() as served:
        yield served


def alone(api: InProcess, prompt: list[int], **config: Any) -> str:
    ids = api.decoder.alone(prompt, GenerateConfig(**{"max_new_tokens": 8} | config))
    return ALPHABET.decode_bytes(ids).decode()


def complete(api: InProcess, **body: Any) -> Any:
    answered = api.client.post(COMPLETIONS, json={"prompt": "abc", "seed": 1} | body)
    assert answered.status_code == 200, answered.text
    return events(answered.text) if body.get("stream") else answered.json()


def refused(api: InProcess, path: str, body: Any) -> dict[str, Any]:
    """Hold that a body is refused in OpenAI's shape; return the error."""
    content = json.dumps(body).encode()  # in ASCII: half a character can be sent so
    answered = api.client.post(path, content=content, headers=JSON)
    assert answered.status_code == 400, answered.text
    error: dict[str, Any] = answered.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")
    return error


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_completion_is_what_the_engine_says_of_the_prompt(api: InProcess) -> None:
    answer = complete(api)
    prompt = ALPHABET.encode("abc")
    assert answer["choices"] == [
        {"index": 0, "text": alone(api, prompt, seed=1), "logprobs": None,
         "finish_reason": "length"}
    ]  # fmt: skip
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert (answer["object"], answer["model"]) == ("text_completion", "fake")


def test_every_setting_of_generation_reaches_the_engine(api: InProcess) -> None:
    settings = {"temperature": 0.25, "top_p": 0.5, "top_k": 3, "seed": 9}
    answer = complete(api, max_tokens=20, **settings)
    expected = alone(api, ALPHABET.encode("abc"), max_new_tokens=20, **settings)
    assert answer["choices"][0]["text"] == expected


def test_choices_have_seeds_that_follow_and_prompts_come_in_order(api: InProcess) -> None:
    answer = complete(api, prompt=["a", [3, 4]], n=2)
    prompts = [ALPHABET.encode("a"), [3, 4]]
    assert [choice["text"] for choice in answer["choices"]] == [
        alone(api, prompt, seed=seed) for prompt in prompts for seed in (1, 2)
    ]
    assert answer["usage"]["prompt_tokens"] == 3


def test_more_prompts_than_rows_are_answered_in_order(api: InProcess) -> None:
    prompts = [character * 2 for character in "abcdefgh"]
    texts = [choice["text"] for choice in complete(api, prompt=prompts)["choices"]]
    assert texts == [alone(api, ALPHABET.encode(prompt), seed=1) for prompt in prompts]


def test_without_a_seed_answers_differ(api: InProcess) -> None:
    texts = {complete(api, seed=None)["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 4


def test_a_stream_says_what_the_whole_answer_does(api: InProcess) -> None:
    asked = {"n": 2, "logprobs": 2, "stop": ["gg"], "max_tokens": 30}
    whole = complete(api, **asked)
    parts = complete(api, **asked, stream=True, stream_options={"include_usage": True})
    assert parts.pop()["usage"] == whole["usage"]
    assert_joined(parts, whole)


def test_logprobs_of_a_completion(api: InProcess) -> None:
    choice = complete(api, logprobs=2, max_tokens=3)["choices"][0]
    assert choice["logprobs"] == {
        "tokens": list(choice["text"]),
        "token_logprobs": [0.0, -1.0, -2.0],
        # the one chosen is always among them
        "top_logprobs": [
            {"\n": 0.0, " ": -1.0, chosen: logprob}
            for chosen, logprob in zip(choice["text"], (0.0, -1.0, -2.0), strict=True)
        ],
        "text_offset": [0, 1, 2],
    }


def test_ids_beyond_the_vocabulary_are_not_named(api: InProcess) -> None:
    # the fake's likeliest are 0, 1, 2 ... whatever the vocabulary, as those of a padded network
    tops = complete(api, logprobs=20, max_tokens=1)["choices"][0]["logprobs"]["top_logprobs"]
    assert list(tops[0]) == [*"\n abcdefgh", *ALPHABET.special_tokens]


def test_logprobs_of_a_chat(api: InProcess) -> None:
    body = {"messages": HELLO, "seed": 2, "logprobs": True, "top_logprobs": 1, "max_tokens": 2}
    choice = api.client.post(CHAT, json=body).json()["choices"][0]
    top = [{"token": "\n", "bytes": [10], "logprob": 0.0}]
    said = [(each["token"], each["bytes"]) for each in choice["logprobs"]["content"]]
    assert [chr(own[0]) for _, own in said] == [text for text, _ in said]
    assert [each["logprob"] for each in choice["logprobs"]["content"]] == [0.0, -1.0]
    assert [each["top_logprobs"] for each in choice["logprobs"]["content"]] == [top, top]


def test_a_chat_is_written_down_by_the_template_and_trimmed(api: InProcess) -> None:
    conversation = [
        {"role": "system", "content": "be bad"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "d"},
    ]  # fmt: skip
    answer = api.client.post(CHAT, json={"messages": conversation, "seed": 4}).json()
    messages = [
        Message("system", "be bad"), Message("user", "ab"), Message("assistant", "c"),
        Message("user", "d"),
    ]  # fmt: skip
    fitted = build_prompt(
        messages, template=TURNS, tokenizer=ALPHABET, block_size=32, max_new_tokens=8
    )
    expected = alone(api, fitted.ids, seed=4)
    assert answer["choices"][0]["message"] == {
        "role": "assistant", "content": expected.strip(), "refusal": None,
    }  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == len(fitted.ids)


@pytest.mark.parametrize("seed", range(8))  # some begin with blanks
def test_an_answer_that_is_last_is_continued_with_its_first_blanks(
    api: InProcess, seed: int
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc "}]
    answer = api.client.post(CHAT, json={"messages": messages, "seed": seed}).json()
    expected = alone(api, ALPHABET.encode("User: a\nAssistant: bc"), seed=seed)
    assert answer["choices"][0]["message"]["content"] == expected.rstrip()


@pytest.mark.parametrize("seed", range(8))
def test_a_stop_text_is_looked_for_in_what_is_shown(api: InProcess, seed: int) -> None:
    body = {"messages": HELLO, "seed": seed, "max_tokens": 8}
    whole = api.client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    stopped = api.client.post(CHAT, json=body | {"stop": [" ", "\n"]}).json()
    assert stopped["choices"][0]["message"]["content"] == re.split("[ \n]", whole)[0]


def test_a_streamed_chat_begins_with_the_role_and_says_the_same(api: InProcess) -> None:
    for seed in range(12):  # some begin or end with blanks, or have some inside
        body = {"messages": HELLO, "seed": seed, "max_tokens": 12}
        whole = api.client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
        parts = events(api.client.post(CHAT, json=body | {"stream": True}).text)
        deltas = [part["choices"][0]["delta"] for part in parts]
        assert deltas[0]["role"] == "assistant"
        assert not any("role" in delta for delta in deltas[1:])
        assert "".join(delta.get("content", "") for delta in deltas) == whole
        assert parts[-1]["choices"][0]["finish_reason"] == "length"
        assert parts[0]["object"] == "chat.completion.chunk"


def test_turns_that_had_no_room_are_said(api: InProcess) -> None:
    messages = HELLO * 9
    answer = api.client.post(CHAT, json={"messages": messages}).json()
    assert answer["notices"][0].startswith("The oldest ")
    assert answer["notices"][0].endswith(" turns had no room in the context.")
    parts = events(api.client.post(CHAT, json={"messages": messages, "stream": True}).text)
    assert parts[0]["notices"] == answer["notices"]
    assert "notices" not in parts[1]


def test_characters_that_the_vocabulary_lacks_are_said(api: InProcess) -> None:
    answer = complete(api, prompt="ab\u00fcc")
    assert answer["choices"][0]["text"] == complete(api)["choices"][0]["text"]
    assert answer["notices"] == ["The vocabulary has no '\u00fc': left out of the prompt."]


def test_what_is_sent_is_ascii_as_some_clients_end_lines_at_u2028(api: InProcess) -> None:
    assert json_bytes({"text": "\u2028\u0085\U0001f600"}).isascii()
    body = {"prompt": "ab\u00fcc", "stream": True}
    answered = api.client.post(COMPLETIONS, json=body)
    assert answered.content.isascii()
    assert "\u00fc" in events(answered.text)[0]["notices"][0]
    assert answered.headers["x-accel-buffering"] == "no"


def test_echo_begins_with_the_prompt(api: InProcess) -> None:
    plain = complete(api)["choices"][0]["text"]
    assert complete(api, echo=True)["choices"][0]["text"] == "abc" + plain
    parts = complete(api, echo=True, stream=True)
    assert "".join(part["choices"][0]["text"] for part in parts) == "abc" + plain


def test_echo_alone_frees_its_row(api: InProcess) -> None:
    for _ in range(2 * api.decoder.n_rows):
        choice = complete(api, echo=True, max_tokens=0, logprobs=0)["choices"][0]
        assert (choice["text"], choice["logprobs"]["tokens"]) == ("abc", list("abc"))


def test_stop_texts_end_an_answer_before_them(api: InProcess) -> None:
    text = complete(api, max_tokens=40)["choices"][0]["text"]
    stop = text[7:9]
    choice = complete(api, max_tokens=40, stop=stop)["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


WRONG = [
    (COMPLETIONS, {}, "prompt", "prompt is missing."),
    (COMPLETIONS, {"prompt": 5}, "prompt", "is 5: it must be a valid string or be a valid list."),
    (COMPLETIONS, {"prompt": []}, "prompt", "prompt is a list of 0: it must"),
    (COMPLETIONS, {"prompt": ["a", None]}, "prompt[1]", "prompt[1] is None: it must be a valid"),
    (COMPLETIONS, {"prompt": [1, 99]}, "prompt", "prompt is 99: it must be made of ids below 15"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]", "is -1: it must be greater than or equal to 0"),
    (COMPLETIONS, {"prompt": [1, 11]}, "prompt", "ids below 15 that stand for text or its end"),
    (COMPLETIONS, {"prompt": "a" * 33}, "prompt", "has 33 tokens, and the context holds 32"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens", "without echo"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
    (COMPLETIONS, {"prompt": ["a"] * 5, "n": 2}, "n", "5 prompts times n = 2 are 10 answers"),
    (CHAT, {"messages": []}, "messages", "messages is a list of 0"),
    (CHAT, {"messages": "hello"}, "messages", "messages is 'hello'"),
    (CHAT, {"messages": ["hello"]}, "messages[0]", "messages[0] is 'hello': it must be a valid"),
    (CHAT, {"messages": [{"role": "x"}]}, "messages[0].role", "'system', 'developer', 'user' or"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "content is missing."),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0].type", "is 'image_url': it must be 'text'."),
    (CHAT, {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]},
     "messages[0].tool_calls", "is a list of 1: it must be left out, as it is not done here."),
    (CHAT, {"messages": [{"role": "user", "content": "a", "name": 5}]}, "messages[0].name",
     "it must be a valid string"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format.type",
     "is 'json_object': it must be 'text'."),
]  # fmt: skip
RANGES: list[tuple[str, Any]] = [
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", True),
    ("temperature", 10**400), ("temperature", -(10**400)), ("temperature", [[[]]]),
    ("top_p", -1), ("top_p", 1.01), ("top_k", -1), ("top_k", 1.5), ("top_k", 10**30),
    ("seed", -1), ("seed", 1 << 63), ("seed", "1"), ("seed", 0.5), ("n", 0), ("n", 9),
    ("max_tokens", 0), ("max_tokens", -2), ("max_tokens", False), ("stop", 5), ("stop", [5]),
    ("stream", "yes"), ("stream", 1), ("stream_options", []),
    ("stream_options", {"include_usage": 1}), ("model", 5), ("suffix", "x"), ("best_of", 2),
    ("best_of", True), ("logit_bias", {"5": 1}), ("frequency_penalty", 2.1),
    ("frequency_penalty", -2.1), ("presence_penalty", -1),
    ("response_format", {"type": "json_object"}), ("tools", [{}]),
    ("functions", [{}]), ("tool_choice", "required"), ("modalities", ["audio"]),
    ("grammar", "root ::= x"), ("json_schema", {"a": 1}), ("guided_choice", ["a"]),
    ("min_tokens", 3), ("ignore_eos", True), ("stop_token_ids", [5]), ("mirostat", 2),
    ("repeat_penalty", 1.1), ("typical_p", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "words"), WRONG)
def test_what_is_wrong_is_named(
    api: InProcess, path: str, body: Any, param: str, words: str
) -> None:
    error = refused(api, path, body)
    assert (error["param"], words in error["message"]) == (param, True), error


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(("name", "value"), RANGES, ids=lambda each: ascii(each)[:30])
def test_every_parameter_has_a_range(api: InProcess, path: str, name: str, value: Any) -> None:
    begun: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": HELLO}
    error = refused(api, path, begun | {name: value})
    assert error["param"].startswith(name), error
    assert len(error["message"]) < 400


def test_what_asks_for_nothing_is_taken(api: InProcess) -> None:
    neutral = {
        "user": "me", "metadata": {"a": 1}, "frequency_penalty": 0, "presence_penalty": 0.0,
        "logit_bias": {}, "best_of": 1, "suffix": None, "stop": None, "temperature": None,
        "max_tokens": 8.0, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none",
        "grammar": "", "min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "mirostat": 0,
        "repeat_penalty": 1.0,
    }  # fmt: skip
    assert complete(api, **neutral)["choices"] == complete(api)["choices"]


def test_what_is_not_known_is_ignored(api: InProcess) -> None:
    unknown = {"reasoning_effort": "high", "keep_alive": "5m", "cache_prompt": True, "x" * 999: []}
    assert complete(api, **unknown)["choices"] == complete(api)["choices"]
    message: dict[str, Any] = HELLO[0] | {"id": "m1", "refusal": None, "annotations": []}
    body = {"messages": [message], "seed": 1, "stream_options": {"continuous_usage_stats": True}}
    assert api.client.post(CHAT, json=body).status_code == 200


def test_max_tokens_beyond_the_limit_are_cut_to_it(api: InProcess) -> None:
    expected = alone(api, ALPHABET.encode("abc"), seed=1, max_new_tokens=64)
    for max_tokens in (65, 8192, -1):
        assert complete(api, max_tokens=max_tokens)["choices"][0]["text"] == expected


def test_many_stop_texts_are_heeded_and_empty_ones_ignored(api: InProcess) -> None:
    text = complete(api, max_tokens=40)["choices"][0]["text"]
    stops = ["", "xx", "yy", "zz", "ww", text[7:9]]
    assert complete(api, max_tokens=40, stop=stops)["choices"][0]["text"] == text[:7]
    assert complete(api, max_tokens=40, stop="")["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The body is empty: it must be a JSON object."),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "not JSON in UTF-8"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature is nan: it must be a finite number."),
        (
            b'{"prompt": "a", "temperature": -Infinity}',
            "temperature is -inf: it must be a finite number.",
        ),
        (
            b'{"prompt": "a", "temperature": 1e999}',
            "temperature is inf: it must be a finite number.",
        ),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "not JSON in UTF-8: maximum recursion depth exceeded"),
        (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", "prompt"),
        (b'{"prompt": "\\ud800"}', "a text of whole characters"),
        (b'{"prompt": "a", "stop": ["\\udfff"]}', "a text of whole characters"),
        (b"5", "The body is 5: it must be a JSON object."),
        (b'"' + b"x" * 5000 + b'"', "must be a JSON object"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_a_sentence(
    api: InProcess, body: bytes, words: str
) -> None:
    answered = api.client.post(COMPLETIONS, content=body, headers=JSON)
    assert answered.status_code == 400, answered.text
    assert words in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (COMPLETIONS, b"{" + b'"a":1,' * 150_000 + b'"prompt":"a"}', 200),
        (
            COMPLETIONS,
            b'{"prompt":["a"' + b",[0" * 300 + b"]" * 300 + b",{}" * 300_000 + b"]}",
            400,
        ),
        (CHAT, b'{"messages":[0' + b",1" * 500_000 + b"]}", 400),
        (CHAT, b'{"messages":[{"role":"user","content":[1' + b",1" * 500_000 + b"]}]}", 400),
    ],
)
def test_a_large_body_is_answered_soon_whatever_it_holds(
    api: InProcess, path: str, body: bytes, status: int
) -> None:
    start = time.monotonic()
    assert api.client.post(path, content=body, headers=JSON).status_code == status
    assert time.monotonic() - start < 5  # each others' requests wait for it


def test_a_text_half_way_through_a_character_is_said_without_failing_on_it(api: InProcess) -> None:
    body = b'{"prompt": "a", "model": "\\ud83d"}'
    answered = api.client.post(COMPLETIONS, content=body, headers=JSON)
    assert answered.status_code == 400
    assert answered.json()["error"]["param"] == "model"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(api: InProcess, *, chunked: bool) -> None:
    body = b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}'
    content = (body[i : i + 65_536] for i in range(0, len(body), 65_536)) if chunked else body
    answered = api.client.post(COMPLETIONS, content=content, headers=JSON)
    assert answered.status_code == 413
    assert answered.json()["error"]["message"] == "The body has more than 1,048,576 bytes."


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sample.server.app.BODY_TIMEOUT_S", 0.05)

    async def never() -> dict[str, Any]:
        await asyncio.sleep(SOON_S)
        raise AssertionError

    request = JsonRequest({"type": "http", "method": "POST", "headers": []}, never)
    with pytest.raises(APIError, match="did not come within") as raised:
        asyncio.run(request.body())
    assert raised.value.status_code == 408


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/api.py", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/chat/completions", 404),
        ("GET", COMPLETIONS, 405),
        ("OPTIONS", COMPLETIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/card", 405),
    ],
)
def test_what_is_not_there_is_said_in_the_same_shape(
    api: InProcess, method: str, path: str, status: int
) -> None:
    answered = api.client.request(method, path)
    assert answered.status_code == status
    assert answered.json()["error"]["message"].endswith(".")


def test_the_health_check_may_be_a_head_request(api: InProcess) -> None:
    assert api.client.head("/health").status_code == api.client.head("/").status_code == 200


def test_the_one_model_answers_whatever_name_is_asked_for_and_says_so(api: InProcess) -> None:
    answer = complete(api, model="gpt-4")
    assert answer["choices"] == complete(api)["choices"]
    assert answer["model"] == "fake"
    assert answer["notices"] == ["fake answers: there is no 'gpt-4' here."]
    error = api.client.get("/v1/models/gpt-4").json()["error"]
    assert error["message"] == "This server has only fake."
    assert error["code"] == "model_not_found"
    assert api.client.get("/v1/models").json()["data"][0]["id"] == "fake"
    assert api.client.get("/v1/models/fake").json()["object"] == "model"


def test_a_body_must_be_announced_as_json(api: InProcess) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answered = api.client.post(
            COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": kind}
        )
        assert answered.status_code == 415


def test_a_compressed_body_is_refused_in_a_sentence(api: InProcess) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"prompt": "a"}')
    answered = api.client.post(COMPLETIONS, content=body, headers=headers)
    assert answered.status_code == 415
    message = answered.json()["error"]["message"]
    assert message == "The body is compressed ('gzip'): send it as it is."
    headers["Content-Encoding"] = "identity"
    body = b'{"prompt": "a"}'
    assert api.client.post(COMPLETIONS, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/chat/completions", "//v1/completions", "/v1/responses"])
def test_a_path_beside_the_api_is_told_where_it_is(api: InProcess, path: str) -> None:
    answered = api.client.post("http://localhost" + path, json={"messages": HELLO})
    assert answered.status_code == 404
    hint = f"There is no {path} here: of OpenAI's API there are /v1/models, "
    assert answered.json()["error"]["message"].startswith(hint)


def test_a_trailing_slash_is_answered(api: InProcess) -> None:
    answered = api.client.post(COMPLETIONS + "/", json={"prompt": "abc", "seed": 1})
    assert answered.json()["choices"] == complete(api)["choices"]
    assert api.client.get("/v1/models/").json()["data"][0]["id"] == "fake"


def test_ids_and_texts_are_made_into_each_other(api: InProcess) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return api.client.post(path, json=body).json()

    end = api.client.get("/tokenizer_info").json()["eos_token"]
    for text, ids in (("abc", ALPHABET.encode("abc")), ("", []), (end, [ALPHABET.eot_id])):
        said = post("/tokenize", {"prompt": text, "add_special_tokens": False})
        assert said == {"tokens": ids, "count": len(ids)}
    assert post("/detokenize", {"tokens": ALPHABET.encode("abc")}) == {"prompt": "abc"}
    assert "left out" in post("/tokenize", {"prompt": "\u00fc"})["notices"][0]
    assert post("/detokenize", {"tokens": [99]})["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9000", "localhost.", "127.0.0.1:8000", "[::1]:8000", "[::1]"],
)
def test_the_own_names_are_answered(api: InProcess, host: str) -> None:
    assert api.client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8000", "", "127.0.0.2", "0.0.0.0",
     "10.0.0.1", "localhost@evil.example", "[::2]", "evil.example/localhost", "[::1].evil.example"],
)  # fmt: skip
def test_a_rebound_name_is_refused_everywhere(api: InProcess, host: str) -> None:
    for path in ("/", "/health", "/card", "/v1/models"):
        answered = api.client.get(path, headers={"Host": host})
        assert answered.status_code == 403
        assert answered.json()["error"]["code"] == "host_not_allowed"


def test_listening_on_all_addresses_any_number_is_right_and_no_other_name() -> None:
    access = Access(frozenset({"localhost", "box.lan"}), is_wildcard=True)
    with in_process(access=access) as api:
        for host, status in [("10.1.2.3:80", 200), ("[fe80::1]", 200), ("box.lan", 200),
                             ("evil.example", 403), ("1.2.3.4.5", 403)]:  # fmt: skip
            assert api.client.get("/health", headers={"Host": host}).status_code == status


def test_names_in_host_headers() -> None:
    hosts = ["A.b:80", "[::1]:80", "::1", "[fe80::1%eth0]:1", "a.", ":80", "[::1]x"]
    names = ["a.b", "::1", "", "fe80::1%eth0", "a", "", ""]
    assert [host_name(host) for host in hosts] == names


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost", 200),
        ("https://localhost", 200),
        ("http://localhost:9000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("localhost", 403),
        ("http://localhost.evil.example", 403),
        ("chrome-extension://abcdefghijklmnop", 403),
        ("tauri://localhost", 403),
        ("app://obsidian.md", 403),
    ],
)
def test_another_sites_page_cannot_ask(api: InProcess, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answered = api.client.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)
    assert answered.status_code == status
    assert not any(name.startswith("access-control-") for name in answered.headers)
    asked = headers | {"Access-Control-Request-Method": "POST"}
    for refused in (
        [] if status == 200 else [answered, api.client.options(COMPLETIONS, headers=asked)]
    ):
        error = refused.json()["error"]
        assert refused.status_code == 403
        assert repr(origin) in error["message"]
        assert "start the server with it as --allow-origin." in error["message"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "chrome-extension://abc", "tauri://localhost", "null"]
)
def test_pages_of_an_allowed_origin_may_ask_and_read(origin: str) -> None:
    with in_process(access=Access(key=b"right", origins=frozenset({origin}))) as api:
        asked = {"Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Private-Network": "true",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        for own, status, sent in ((origin, 200, 200), ("http://evil.example", 400, 403)):
            preflight = api.client.options(COMPLETIONS, headers=asked | {"Origin": own})
            assert preflight.status_code == status
            headers = {"Origin": own, "Authorization": "Bearer right"}
            answered = api.client.post(COMPLETIONS, json={"prompt": "a"}, headers=headers)
            assert answered.status_code == sent
            allowed = answered.headers.get("access-control-allow-origin")
            assert allowed == (own if own == origin else None)
        assert api.client.post(COMPLETIONS, json={}, headers={"Origin": origin}).status_code == 401


def test_every_answer_has_the_headers_that_keep_browsers_safe(api: InProcess) -> None:
    for path, status in [("/", 200), ("/card", 200), ("/nothing", 404), (COMPLETIONS, 405)]:
        answered = api.client.get(path)
        assert answered.status_code == status
        policy = answered.headers["content-security-policy"]
        directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
        assert directives.pop("default-src") == "'none'"
        assert directives.pop("frame-ancestors") == "'none'"
        assert directives.pop("require-trusted-types-for") == "'script'"
        assert directives.pop("trusted-types") == "'none'"
        assert set(directives.values()) <= {"'self'", "'none'"}
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert answered.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answered.headers
    assert api.client.get("/", headers={"Host": "evil"}).headers["x-content-type-options"]


def test_the_page_is_served_with_its_types(api: InProcess) -> None:
    for path, kind in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javas")]:
        answered = api.client.get(path)
        assert answered.status_code == 200
        assert answered.headers["content-type"].startswith(kind)
    assert "<!doctype html>" in api.client.get("/").text.lower()


def test_with_a_key_all_but_the_page_needs_it() -> None:
    with in_process(access=Access(key=b"right")) as api:
        for path in ("/", "/page.js", "/health", "/openapi.json"):
            assert api.client.get(path).status_code == 200
        for path in ("/card", "/metrics", "/v1/models", "/nothing"):
            for authorization, status in [
                (None, 401), ("Bearer wrong", 401), ("Bearer ", 401), ("Basic right", 401),
                ("right", 401), ("Bearer right\u00e9", 401), ("Bearer right", 200),
                ("bearer  right", 200),
            ]:  # fmt: skip
                headers = [] if authorization is None else [
                    (b"Authorization", authorization.encode("latin-1"))
                ]  # fmt: skip
                answered = api.client.get(path, headers=headers)
                expected = 404 if path == "/nothing" and status == 200 else status
                assert answered.status_code == expected, (path, authorization)
                if status == 401:
                    assert answered.json()["error"]["code"] == "invalid_api_key"
        assert api.client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 401


def test_beyond_rows_and_queue_429_and_when_to_try_again() -> None:
    with in_process(ServeConfig(rows=1, queue=1, max_tokens=1_000_000)) as api:
        api.decoder.go.clear()
        config = GenerateConfig(max_new_tokens=10**6)
        detokenizer = Detokenizer(ALPHABET, 10**6)
        jobs = [
            Job(prompt=[1], config=config, detokenizer=detokenizer, receive=lambda delta: None)
            for _ in range(2)
        ]
        api.engine.submit(jobs)
        for stream in (False, True):
            answered = api.client.post(COMPLETIONS, json={"prompt": "a", "stream": stream})
            assert answered.status_code == 429
            assert answered.headers["retry-after"] == "1"
            assert answered.json()["error"]["code"] == "rate_limit_exceeded"
        api.engine.cancel(jobs)
        api.decoder.go.set()
        await_(lambda: not api.engine.rows)
        assert complete(api)["choices"][0]["text"]


def test_a_fault_of_the_engine_is_a_503_and_the_health_check_says_so() -> None:
    with in_process() as api:
        assert api.client.get("/health").json() == {"status": "ok"}
        api.decoder.fails_at_step = 1
        for _ in range(2):
            answered = api.client.post(COMPLETIONS, json={"prompt": "a"})
            assert answered.status_code == 503
            assert answered.json()["error"]["message"] == FAULT
        health = api.client.get("/health")
        assert (health.status_code, health.json()["reason"]) == (503, FAULT)
        assert "quern_up 0" in api.client.get("/metrics").text


def test_a_fault_within_a_stream_is_its_last_event() -> None:
    with in_process() as api:
        api.decoder.fails_at_step = 4
        body = {"prompt": "a", "stream": True, "max_tokens": 30}
        parts = events(api.client.post(COMPLETIONS, json=body).text)
        assert len(parts) == 4
        assert parts[-1]["error"]["message"] == FAULT


def test_metrics_count_what_was_done() -> None:
    with in_process() as api:
        complete(api, max_tokens=5)
        complete(api, max_tokens=6, stream=True)
        refused(api, COMPLETIONS, {})
        api.client.get("/nothing")
        api.client.get("/v1/models/fake")
        answered = api.client.get("/metrics")
        assert answered.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answered.text.splitlines()
        for line in [
            'quern_requests_total{path="/v1/completions",status="200"} 2',
            'quern_requests_total{path="/v1/completions",status="400"} 1',
            'quern_requests_total{path="other",status="404"} 1',
            'quern_requests_total{path="/v1/models/fake",status="200"} 1',
            "quern_prompt_tokens_total 6",
            "quern_generated_tokens_total 11",
            "quern_queue_length 0",
            "quern_rows_busy 0",
            "quern_rows 4",
            "quern_up 1",
            'quern_time_to_first_token_seconds_bucket{le="+Inf"} 2',
            "quern_time_to_first_token_seconds_count 2",
        ]:
            assert line in [each.removesuffix(".0") for each in lines]
        for line in lines:
            assert line.startswith(("# HELP ", "# TYPE ")) or float(line.rpartition(" ")[2]) >= 0


def test_the_description_gives_ranges_and_meanings(api: InProcess) -> None:
    described = api.client.get("/openapi.json").json()
    for path, name in ((COMPLETIONS, "CompletionRequest"), (CHAT, "ChatRequest")):
        content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}
        temperature = described["components"]["schemas"][name]["properties"]["temperature"]
        assert temperature["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
        assert temperature["description"].startswith("Below 1 bolder")
    assert all(api.client.get(path).status_code == 404 for path in ("/docs", "/redoc"))


def test_raw_chats_are_not_trimmed() -> None:
    with in_process(template=RAW) as api:
        for seed in range(6):
            answer = api.client.post(CHAT, json={"messages": HELLO, "seed": seed}).json()
            text = answer["choices"][0]["message"]["content"]
            assert text == alone(api, ALPHABET.encode("abc"), seed=seed)
