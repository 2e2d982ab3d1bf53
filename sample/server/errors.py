"""Requests that cannot be answered as they are: a status and a sentence, in OpenAI's shape."""

from collections.abc import Mapping
from typing import Any

SHOWN_VALUE_CHARS = 40


class RequestError(Exception):
    """A request that cannot be answered as it is: an HTTP status and a sentence, OpenAI's way."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What OpenAI's servers answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def shown(value: Any) -> str:
    """Return a value as an error may show it: in ASCII, and not the whole of a long one."""
    if isinstance(value, list | dict):  # may be too deep to be written down
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length():,} bits"
    text = ascii(value)
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + "..."


def wrong(name: str, value: Any, wanted: str) -> RequestError:
    """Return the error that says what was found and what was expected."""
    return RequestError(
        f"{name} is {shown(value)}: it must be {wanted}.", param=name, code="invalid_value"
    )
