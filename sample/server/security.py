"""What stands before every request: who may ask, from where, and the answers' headers.

- The Host header must name this server. A page of another site whose name was made to point here
  (DNS rebinding) still sends that site's name.
- A request that changes or costs something must not come from another site's page (Origin), and no
  such page can read an answer (CORS), but for those of --allow-origin.
- With an API key, all but the page, the health check and the API's description need it. There must
  be one where the server listens on other addresses than this machine's own.
"""

import hmac
import logging
import re
import socket
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import ConfigError
from sample.server.protocol import APIError, shown

log = logging.getLogger(__name__)

SHORT_KEY_CHARS = 16
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
    """Who may ask: the names of this server, other sites' pages, and the key if there is one."""

    names: frozenset[str] = LOOPBACK_NAMES
    is_wildcard: bool = False  # it listens on all addresses: a number in Host cannot be rebound
    origins: frozenset[str] = frozenset()
    key: bytes | None = None


def make_access(
    bound: socket.socket,
    host: str,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    key_file: Path | None = None,
) -> Access:
    """Return who may ask; raise ConfigError where other machines could and there is no key."""
    address = ip_address(bound.getsockname()[0].partition("%")[0])
    if not address.is_loopback and key_file is None:
        raise ConfigError(
            f"--host {host} lets other machines ask: pass --api-key-file with the key that "
            "they must send. To make one: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())' > key.txt"
        )
    return Access(
        names=LOOPBACK_NAMES | {host.lower(), str(address), *map(str.lower, hosts)},
        is_wildcard=address.is_unspecified,
        origins=frozenset(origin.rstrip("/") for origin in origins),
        key=None if key_file is None else read_key(key_file),
    )


def read_key(path: Path) -> bytes:
    """Return the key in a file; raise ConfigError where there is none that a header can carry."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file {path}: cannot be read ({error.strerror}).") from error
    if not re.fullmatch(rb"[!-~]+", key):
        raise ConfigError(f"--api-key-file {path}: it must hold one word in ASCII, the key.")
    if len(key) < SHORT_KEY_CHARS:
        log.warning("%s: a key of %d characters is soon guessed.", path, len(key))
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s: others on this machine can read the key: chmod 600 %s", path, path)
    return key


@dataclass(frozen=True)
class SecurityMiddleware:
    """ASGI middleware around the whole application."""

    app: ASGIApp
    access: Access
    requests: Counter  # by path and status
    open_paths: Collection[str]  # they need no key
    known_paths: Collection[str]  # they are counted by name, the rest together

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # the server's own start and end
            return await self.app(scope, receive, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # FastAPI has no HEAD; uvicorn leaves the body out
        path = scope["path"] if scope["path"] in self.known_paths else "other"

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                self.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except APIError as error:
            return await error.response()(scope, receive, send_secured)
        await self.app(scope, receive, send_secured)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host_name(host)):
            raise APIError(
                f"The Host header is {shown(host)}, which is not this server's. Ask for it by the "
                "address that it printed when it started, or start it with --allow-host.",
                status=403, code="host_not_allowed",
            )  # fmt: skip
        # https: a proxy before this server may speak it
        foreign = origin and origin not in (f"http://{host}", f"https://{host}")
        if foreign and method not in ("GET", "HEAD") and origin not in self.access.origins:
            raise APIError(
                f"The request comes from another site's page, {shown(origin)}: if it may ask, "
                "start the server with it as --allow-origin.",
                status=403, code="origin_not_allowed",
            )  # fmt: skip
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = self.access.key
        if key is None or path in self.open_paths:
            return
        right = hmac.compare_digest(given.strip().encode("latin-1"), key)  # in constant time
        if scheme.lower() != "bearer" or not right:
            found = "Another API key was sent" if given else "No API key was sent"
            raise APIError(
                f"{found}: this server wants its own, as Authorization: Bearer KEY.",
                status=401, code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _is_own(self, name: str) -> bool:
        try:
            return name in self.access.names or (self.access.is_wildcard and bool(ip_address(name)))
        except ValueError:
            return False


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case; "", which is nobody's, where it has none."""
    found = HOST.fullmatch(host)
    return (found["address"] or found["name"]).rstrip(".").lower() if found else ""
