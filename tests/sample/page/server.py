"""A server for the page that says what a test tells it to: answers, failures, and waiting.

The real one is `python -m sample serve`; it gives no model that writes HTML, half a character or
an error in mid-answer.
"""

import codecs
import json
import mimetypes
import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "sample" / "page"
# "require-trusted-types-for": the browser itself then refuses any insertion of text as HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
CARD: dict[str, Any] = {
    "name": "quern", "step": 3802, "parameters": 1116160, "n_layer": 4, "n_head": 4, "n_embd": 128,
    "block_size": 128, "vocab_size": 2053, "tokens_read": 3893248, "val_loss": 3.1904,
    "val_bpb": 1.671,
    "warning": "It read 3.5 tokens for each of its parameters, and 20 are usual: undertrained.",
    "defaults": {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "max_tokens": 200},
    "template": "raw",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Script:
    """What happens to one request: the tokens it gets, and how it ends.

    ending: "stop" or "length", "cut" (the connection breaks off), "error" (an error in
    mid-answer), "wait" (nothing more comes until the client is gone).
    """

    tokens: tuple[bytes, ...] = (b"once", b" upon", b" a", b" time")
    ending: str = "stop"
    status: int = 200
    retry_after: str = ""
    error: str = "no such thing"
    logprob: float = -0.5
    notices: tuple[str, ...] = ()
    sources: Any = None  # with the last event, where they are asked for


class FakeServer(ThreadingHTTPServer):
    """Answer the page on a free port; ``scripts`` are used up in order, then Script()."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.card = dict(CARD)
        self.key = ""
        self.scripts: deque[Script] = deque()
        self.received: list[dict[str, Any]] = []
        self.went_away: queue.Queue[bool] = queue.Queue()  # an entry for each client that left

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that leave."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeServer
    protocol_version = "HTTP/1.0"  # a connection a request: none outlives the server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer with a file of the page, or the card."""
        if self.path == "/card":
            if self._has_key():
                self._json(200, self.server.card)
            return
        file = PAGE / ("page.html" if self.path == "/" else Path(self.path).name)
        if not file.is_file():
            self._json(404, {"error": {"message": f"no {self.path}"}})
            return
        body = file.read_bytes()
        self.send_response(200)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Answer a chat as the next script says."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._has_key():
            return
        self.server.received.append(body)
        scripts = self.server.scripts
        script = scripts.popleft() if scripts else Script()
        if script.status != 200:
            more = {"Retry-After": script.retry_after} if script.retry_after else {}
            self._json(script.status, {"error": {"message": script.error}}, more)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._stream(script, body)

    def _stream(self, script: Script, body: dict[str, Any]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        if script.notices:
            self._event(chunk("", []) | {"notices": list(script.notices)})
        for token in script.tokens:
            logprobs = [logprobs_of(token, script.logprob)] if body.get("logprobs") else []
            self._event(chunk(decoder.decode(token), logprobs))
        if rest := decoder.decode(b"", final=True):
            self._event(chunk(rest, []))
        if script.ending == "wait":
            self._wait()
        if script.ending == "error":
            self._event({"error": {"message": script.error}})
        if script.ending in ("stop", "length"):
            last = chunk("", [], script.ending)
            if body.get("sources"):
                last["choices"][0]["sources"] = script.sources
            self._event(last)
            self._write(b"data: [DONE]\n\n")

    def _wait(self) -> None:
        pause = threading.Event()
        try:
            while not pause.wait(0.05):
                self._write(b": still here\n\n")
        except OSError:
            self.server.went_away.put(True)

    def _event(self, value: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _has_key(self) -> bool:
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "wrong key"}})
            return False
        return True

    def _json(self, status: int, value: Any, more: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (more or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)


def chunk(text: str, tokens: list[dict[str, Any]], reason: str | None = None) -> dict[str, Any]:
    """Return one event of a streamed chat, in OpenAI's shape."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    if tokens:
        choice["logprobs"] = {"content": tokens}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def logprobs_of(token: bytes, logprob: float) -> dict[str, Any]:
    """Return a token's entry, with itself and two others as the likeliest."""

    def entry(data: bytes, value: float) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": value}

    top = [entry(token, logprob), entry(b" never", -1.5), entry(b"\n", -3.0)]
    return entry(token, logprob) | {"top_logprobs": top}


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Run a FakeServer in a thread of its own."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":  # to look at the page without a model
    with fake_server() as running:
        print(running.address)  # noqa: T201
        threading.Event().wait()
