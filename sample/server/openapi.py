"""The API described, as OpenAPI 3.1: made from the declarations that requests are checked against.

Source: spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sample.server.bodies import chat_parameters, completion_parameters
from sample.server.parameters import HARMLESS, NEUTRAL, Parameter

if TYPE_CHECKING:
    from sample.server.requests import Model

Json = dict[str, Any]
ERROR_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
ERRORS = {
    "400": "A parameter is wrong; the sentence says which, and what it must be.",
    "401": "The API key is missing or wrong.",
    "403": "Another host or site is asked for, or asks.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is not announced as JSON.",
    "429": "The queue is full; Retry-After says when to try again.",
    "503": "The server is going down, or its engine failed.",
}


def describe_api(model: "Model") -> Json:
    """Return the description as JSON."""
    limits = (model.limits.max_tokens, model.max_n)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Quern",
            "version": "1",
            "description": f"{model.name}: a GPT, over OpenAI's completions API.",
        },
        "components": {
            "schemas": {"Error": ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/models": _get("The model that is served.", _list_of_models()),
            "/v1/completions": _post(
                "Continue a text.", completion_parameters(*limits), "text_completion"
            ),
            "/v1/chat/completions": _post(
                "Continue a conversation.", chat_parameters(*limits), "chat.completion"
            ),
            "/health": _get("Whether requests are taken.", _object(status={"type": "string"})),
            "/card": _get("What the page says of the model.", {"type": "object"}),
            "/metrics": {
                "get": {
                    "summary": "Counters for Prometheus.",
                    "responses": {"200": {"description": "Text format 0.0.4.",
                                          "content": {"text/plain": {}}}},
                }
            },
        },
    }  # fmt: skip


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list_of_models() -> Json:
    model = _object(id={"type": "string"}, object={"const": "model"})
    return _object(data={"type": "array", "items": model})


def _json_response(meaning: str, schema: Json) -> Json:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, schema: Json) -> Json:
    return {"get": {"summary": summary, "responses": {"200": _json_response(summary, schema)}}}


def _post(summary: str, parameters: Sequence[Parameter], kind: str) -> Json:
    answer = _object(
        id={"type": "string"},
        object={"const": kind},
        choices={"type": "array", "items": {"type": "object"}, "minItems": 1},
        usage={"type": "object"},
    )
    done = _json_response("The answer; with stream, server-sent events.", answer)
    done["content"]["text/event-stream"] = {}
    error = {"$ref": "#/components/schemas/Error"}
    responses = {status: _json_response(meaning, error) for status, meaning in ERRORS.items()}
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body_schema(parameters)}},
            },
            "responses": {"200": done} | responses,
        }
    }


def body_schema(parameters: Sequence[Parameter]) -> Json:
    """Return the JSON schema of a request's body."""
    properties = {each.name: each.schema | {"description": each.meaning} for each in parameters}
    harmless: Json = {name: {"description": "Not looked at."} for name in sorted(HARMLESS)}
    harmless |= {name: {"enum": [*values, None]} for name, values in NEUTRAL.items()}
    return {
        "type": "object",
        "properties": harmless | properties,
        "required": [each.name for each in parameters if each.required],
        "additionalProperties": False,
    }
