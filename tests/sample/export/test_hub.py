"""--push-to-hub against a server on this machine that answers as the Hub does; else no request."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.processes import assert_one_sentence, run_each
from tests.sample.chats import make_chat_run


class Hub(BaseHTTPRequestHandler):
    """Takes what is uploaded into me/mine, refuses me/theirs, and hangs up on me/gone."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.asked.append((self.path, lines))  # type: ignore[attr-defined]
        url = f"http://{self.headers['Host']}/me/mine"
        if self.path == "/api/models/me/mine/preupload/main":
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": f["path"], **kinds} for f in lines[0]["files"]]})
        elif self.path == "/api/models/me/mine/commit/main":
            self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif lines[0].get("name") == "mine" and self.headers["Authorization"] == "Bearer hf_right":
            self.answer(200, {"url": url})
        elif lines[0].get("name") != "gone":
            self.answer(403, {"error": "You are not me"})

    def do_GET(self) -> None:
        self.answer(403, {"error": "You are not me"})

    def answer(self, code: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: Any) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Be the Hub for the processes that start meanwhile; yield what they asked, as it comes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []  # type: ignore[attr-defined]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # with nobody's login
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.asked  # type: ignore[attr-defined]
        server.shutdown()


@pytest.mark.slow
def test_the_hub_gets_what_was_written_where_it_is_asked_for_and_refusals_are_sentences(
    asked: list[tuple[str, Any]], tmp_path: Path
) -> None:
    make_chat_run(tmp_path / "runs", "talk")
    export = ["sample", "export", "talk"]
    weights = ["w.safetensors", "--to", "weights", "--push-to-hub", "mine"]
    names = {"b": "me/mine", "c": "me/theirs", "d": "me/gone", "e": "a b"}
    commands = {n: [*export, n, "--to", "hf", "--push-to-hub", to] for n, to in names.items()}
    commands |= {"w": [*export, *weights], "a": [*export, "a", "--to", "hf"]}
    ended = run_each(commands, tmp_path)
    assert {name for name in ended if ended[name].returncode == 0} == {"a", "b", "w"}
    assert (
        ended["b"]
        .stderr.rstrip()
        .endswith("/me/mine: b is there. A new repository is private: its page can change that.")
    )
    assert_one_sentence(ended["c"], "c: is written", "You are not me", "hf upload me/theirs c")
    assert_one_sentence(
        ended["d"], "d: is written", "not uploaded to me/gone (RemoteProtocolError: Server discon"
    )
    assert_one_sentence(
        ended["e"], "e: is written", "not uploaded to a b (HFValidationError: Repo id must"
    )
    created = [lines[0] for path, lines in asked if path == "/api/repos/create"]
    assert [repository["name"] for repository in created] == ["mine", "theirs", "gone", "mine"]
    assert {repository["visibility"] for repository in created} == {"private"}
    sent = [
        {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        for path, lines in asked
        if "/commit/" in path
    ]
    for folder in ("a", "b", "c", "d", "e"):  # whole in any case
        there = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        there["README.md"] = there["README.md"].replace(f'"{folder}"'.encode(), b'"b"')
        assert sent[0] == there
    assert sent[1] == {"w.safetensors": (tmp_path / "w.safetensors").read_bytes()}
