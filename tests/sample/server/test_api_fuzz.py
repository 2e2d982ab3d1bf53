"""Requests made up from /openapi.json by schemathesis: never a 5xx, and what it says is so."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, openapi
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sample.server.protocol import ChatRequest, CompletionRequest
from tests.sample.serving import InProcess, in_process

# Where a request keeps to its schema and cannot be answered all the same; of a seed's bound FastAPI
# writes the nearest float, which is 1 more.
BEYOND_SCHEMA = {"prompt", "n", "max_tokens", "top_logprobs", "seed"}
PATHS = ["/v1/completions", "/v1/chat/completions"]
relaxed = settings(
    max_examples=40, database=None, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def api() -> Iterator[InProcess]:
    with in_process() as served:
        yield served


def cases(api: InProcess, path: str, mode: GenerationMode) -> "st.SearchStrategy[Any]":
    schema = openapi.from_dict(api.client.get("/openapi.json").json())
    return schema[path]["POST"].as_strategy(generation_mode=mode)


def send(api: InProcess, case: Any) -> Any:
    kwargs = case.as_transport_kwargs(base_url="http://localhost")
    kwargs.pop("cookies")
    if isinstance(kwargs.get("data"), bytes | str):  # requests' word for it
        kwargs["content"] = kwargs.pop("data")
    return api.client.request(**kwargs)


@pytest.mark.parametrize("path", PATHS)
def test_what_keeps_to_the_schema_is_answered_as_described(api: InProcess, path: str) -> None:
    statuses: Counter[int] = Counter()

    @settings(relaxed, max_examples=80)  # many name another model, or ids that are none
    @given(case=cases(api, path, GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        answered = send(api, case)
        statuses[answered.status_code] += 1
        case.validate_response(answered, excluded_checks=[positive_data_acceptance])
        if answered.status_code != 200:
            assert answered.json()["error"]["param"].partition("[")[0] in BEYOND_SCHEMA, (
                answered.text
            )

    check()
    assert statuses[200] > 10


@pytest.mark.parametrize("path", PATHS)
def test_what_does_not_keep_to_the_schema_is_refused(api: InProcess, path: str) -> None:
    statuses: Counter[int] = Counter()

    @relaxed
    @given(case=cases(api, path, GenerationMode.NEGATIVE))
    def check(case: Any) -> None:
        answered = send(api, case)
        statuses[answered.status_code] += 1
        case.validate_response(answered)

    check()
    assert statuses[400] > 10


# Any JSON at all, under the names that there are.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("path", PATHS)
def test_any_value_under_any_name_is_answered_or_refused(api: InProcess, path: str) -> None:
    names = sorted((ChatRequest if "chat" in path else CompletionRequest).model_fields)
    required: dict[str, Any] = {"prompt": "a"} if "prompt" in names else {}
    required |= {"messages": [{"role": "user", "content": "a"}]} if "messages" in names else {}

    @relaxed
    @given(body=st.dictionaries(st.sampled_from(names), JSON, max_size=3))
    def check(body: dict[str, Any]) -> None:
        answered = api.client.post(
            path,
            content=json.dumps(required | body).encode(),  # NaN and halves of characters too
            headers={"Content-Type": "application/json"},
        )
        assert answered.status_code in (200, 400, 404)
        assert answered.status_code == 200 or answered.json()["error"]["message"].endswith(".")

    check()


@pytest.mark.parametrize("path", PATHS)
def test_any_bytes_are_answered_or_refused(api: InProcess, path: str) -> None:
    @relaxed
    @given(body=st.binary(max_size=60) | st.text("{}[]\":,\\ue0123-nulltrue", max_size=60)
           .map(str.encode))  # fmt: skip
    def check(body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        assert api.client.post(path, content=body, headers=headers).status_code == 400

    check()
