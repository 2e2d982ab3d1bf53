"""What stands before every request: who may ask, from where, and the headers of every answer.

- The Host header must name this server. A page of another site whose name was made to point here
  (DNS rebinding) still sends that site's name.
- A request that changes or costs something must not come from another site's page (Origin).
- With an API key, all but the page, the health check and the API's description need it.

No header ever lets another site read an answer (no CORS).
"""

import hmac
import ipaddress
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sample.server.errors import RequestError, shown
from sample.server.metrics import Counters
from sample.server.responses import json_bytes

log = logging.getLogger(__name__)

HEADERS = {
    # trusted types: the browser itself refuses to read text as HTML, whatever the page may try
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOST = re.compile(r"(?:\[(?P<address>[^\[\]]+)\]|(?P<name>[^\[\]:/@]+))(?::[0-9]*)?")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Access:
    """Who may ask: the names of this server, and the key if there is one."""

    names: frozenset[str] = LOOPBACK_NAMES
    any_address: bool = False  # it listens on all: a number in Host cannot be rebound
    key: bytes | None = None


def error_response(error: RequestError) -> Response:
    """Return an error as OpenAI's servers do."""
    return Response(
        json_bytes(error.body), error.status, error.headers, media_type="application/json"
    )


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, access: Access, counters: Counters, *,
        open_paths: Collection[str], known_paths: Collection[str],
    ) -> None:  # fmt: skip
        """``open_paths`` need no key; ``known_paths`` are counted by name, the rest together."""
        self._app, self._access, self._counters = app, access, counters
        self._open_paths, self._known_paths = frozenset(open_paths), frozenset(known_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # the server's own start and end
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._known_paths else "other"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self._counters.requests[path, message["status"]] += 1
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except RequestError as error:
            await error_response(error)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_ours(host_name(host)):
            raise RequestError(
                f"The Host header is {shown(host)}, which is not this server's. Ask for it by the "
                "address that it printed when it started, or start it with --allow-host.",
                status=403, code="host_not_allowed",
            )  # fmt: skip
        origin = headers.get("origin")
        # of origin the part after http:// must be the very host that was asked for
        if method not in ("GET", "HEAD") and origin and origin.partition("://")[2] != host:
            raise RequestError(
                f"The request comes from another site's page ({shown(origin)}).",
                status=403, code="origin_not_allowed",
            )  # fmt: skip
        if self._access.key is not None and path not in self._open_paths:
            self._check_key(headers.get("authorization", ""), self._access.key)

    def _is_ours(self, name: str) -> bool:
        if name in self._access.names:
            return True
        if not self._access.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _check_key(self, authorization: str, key: bytes) -> None:
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), key)  # in constant time
        if scheme.lower() != "bearer" or not right:
            found = "Another API key was sent" if given else "No API key was sent"
            raise RequestError(
                f"{found}: this server wants its own, as Authorization: Bearer KEY.",
                status=401, kind="authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


def host_name(host: str) -> str:
    """Return the name in a Host header: without port, brackets and final dot, in lower case.

    What is no such header gives an empty name, which is nobody's.
    """
    found = HOST.fullmatch(host)
    return (found["address"] or found["name"]).rstrip(".").lower() if found else ""
