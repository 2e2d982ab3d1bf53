"""Errors over HTTP: a status and a sentence, in the shape that OpenAI's clients know."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from common.errors import UserError

SHOWN_VALUE_CHARS = 40


class APIError(HTTPException):
    """A request that cannot be answered as it is; ``kind`` is OpenAI's type of error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """Return what the client gets."""
        content = json.dumps(self.body)
        return Response(content, self.status_code, self.headers, media_type="application/json")


def busy() -> APIError:
    """Return the error of a queue that is full."""
    return APIError(
        "All rows are busy and the queue is full: try again in a moment.",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},  # rows get free often, and asking costs little
    )


def unavailable(message: str) -> APIError:
    """Return the error of a server that accepts no requests."""
    return APIError(message, status=503, kind="server_error", code="unavailable")


def shown(value: Any) -> str:
    """Return a value as an error may show it: in ASCII, and not the whole of a long one."""
    if isinstance(value, list | dict):  # may be too deep to be written down
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = ascii(value)
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + "..."


def validation_error(errors: Iterable[Mapping[str, Any]], body: Any) -> APIError:
    """Return the error that names one parameter: what was found, and what pydantic expected."""
    named = [(*_locate(error, body), error) for error in errors]
    # of a union's arms the one that got furthest
    name, _, error = max(named, key=lambda each: (len(each[1]), each[1]))
    if error["type"] == "missing":
        return APIError(f"{name} is missing.", param=name, code="missing_required_parameter")
    expected = dict.fromkeys(_expected(each) for other, _, each in named if other == name)
    message = f"{name} is {shown(error['input'])}: it must {' or '.join(expected)}."
    return APIError(message, param=name, code="invalid_value")


def _locate(error: Mapping[str, Any], body: Any) -> tuple[str, list[int]]:
    """Return a parameter's name and where it is; "loc" also holds names of a union's arms."""
    name, path = "", list[int]()
    for key in error["loc"]:
        if isinstance(body, dict) and (key in body or error["type"] == "missing"):
            name, body = f"{name}.{key}" if name else str(key), body.get(key)
            path.append(0)
        elif isinstance(body, list) and isinstance(key, int):
            name, body = f"{name}[{key}]", body[key]
            path.append(key)
    return name, path


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_unicode":
        return "be a text of whole characters"
    words = re.split(" after validation| or instance of", error["msg"])[0]
    return re.sub(r"^\w+ should ", "", words).replace("dictionary", "object")


def _body_error(error: RequestValidationError) -> APIError:
    body, errors = error.body, error.errors()
    if isinstance(body, bytes):
        wanted = "be announced as such: Content-Type: application/json"
        return APIError(f"The body must be JSON, and {wanted}", status=415)
    if errors[0]["type"] == "json_invalid":
        reason = f"{errors[0]['ctx']['error']} at character {errors[0]['loc'][1]}"
        return APIError(f"The body is not JSON in UTF-8: {reason}.")
    if not isinstance(body, dict):
        found = "empty" if body is None else shown(body)
        return APIError(f"The body is {found}: it must be a JSON object.")
    return validation_error(
        [each | {"loc": each["loc"][1:]} for each in errors], body
    )  # without "body"


async def error_response(request: Request, error: Exception) -> Response:
    """Return the answer to a request that ended in ``error``."""
    match error:
        case APIError():
            return error.response()
        case RequestValidationError():
            return _body_error(error).response()
        case UserError():
            return APIError(error.message).response()
        case HTTPException(status_code=status):
            sentence = {
                400: f"The body is not JSON in UTF-8: {error.__cause__}.",
                404: f"There is no {request.url.path[:100]} here: OpenAI's API is below /v1, and "
                "/openapi.json lists all there is.",
                405: f"{request.method[:20]} is not done here.",
            }.get(status, str(error.detail))
            return APIError(sentence, status=status, headers=error.headers).response()
        case _:  # Starlette raises it again after this, and the server logs it
            sentence = "The server failed; its log says why."
            return APIError(sentence, status=500, kind="server_error").response()
