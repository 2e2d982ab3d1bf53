"""``sample serve`` as a process: the openai client, many clients at once, signals, addresses."""

import asyncio
import http.client
import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from uvicorn.server import ServerState

from common.errors import ConfigError
from common.inference.backend import make_backend
from common.inference.decoder import Decoder, generate
from common.models.config import GenerateConfig
from sample.server.config import ServeConfig
from sample.server.run import TimeoutProtocol, bind
from sample.server.security import make_access, read_key
from tests.processes import assert_one_sentence, run_each, run_python
from tests.sample.conftest import ALPHABET
from tests.sample.serving import ServerProcess, make_mixed_run, mixed_model, serving

SOON_S = 30
N_CLIENTS = 200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/mixed and a key; not to be changed."""
    folder = tmp_path_factory.mktemp("serve")
    make_mixed_run(folder / "runs")
    (folder / "key.txt").write_text("a-key-of-sixteen-chars\n", encoding="ascii")
    (folder / "key.txt").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[ServerProcess]:
    """Return a server with a key, four rows and a queue of 32."""
    options = ["--rows", "4", "--queue", "32", "--api-key-file", "key.txt", "--template", "turns"]
    with serving(place, *options, "--max-tokens", "2000000") as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="a-key-of-sixteen-chars", max_retries=0
    ) as client:
        yield client


MODEL = mixed_model()


def alone(prompt: str, **config: Any) -> str:
    """Return what sample generate writes after ``prompt``."""
    ids = ALPHABET.encode(prompt)
    tokens = generate(Decoder(make_backend(MODEL), ALPHABET), ids, GenerateConfig(**config))
    return ALPHABET.decode_bytes(token.idx for token in tokens).decode()


def test_greedily_the_network_goes_on_and_on() -> None:
    assert len(alone("ab", temperature=0, max_new_tokens=500)) == 500


def metric(server: ServerProcess, name: str) -> float:
    headers = {"Authorization": "Bearer a-key-of-sixteen-chars"}
    text = httpx2.get(server.url + "/metrics", headers=headers).text
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


def await_idle(server: ServerProcess) -> None:
    deadline = time.monotonic() + SOON_S
    while metric(server, "quern_rows_busy") or metric(server, "quern_queue_length"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_openai_client_gets_what_generate_writes_whole_and_streamed(
    client: openai.OpenAI,
) -> None:
    for seed in range(3):
        whole = client.completions.create(
            model="mixed", prompt="abc", seed=seed, max_tokens=40, temperature=1.0, top_p=1.0
        )
        expected = alone("abc", seed=seed, max_new_tokens=40, temperature=1.0, top_p=1.0)
        assert whole.choices[0].text == expected
        assert whole.choices[0].finish_reason in ("stop", "length")
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == 3
        stream = client.completions.create(
            model="mixed", prompt="abc", seed=seed, max_tokens=40, temperature=1.0, top_p=1.0,
            stream=True,
        )  # fmt: skip
        assert "".join(part.choices[0].text for part in stream) == expected


def test_the_openai_client_chats_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "mixed", "messages": [{"role": "user", "content": "abc"}], "seed": 5,
        "max_completion_tokens": 30, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    choice = whole.choices[0]
    deltas = [part.choices[0].delta for part in parts[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    assert parts[-1].usage == whole.usage
    assert choice.logprobs is not None
    assert choice.logprobs.content
    said = [
        each
        for part in parts[:-1]
        if (logprobs := part.choices[0].logprobs) and logprobs.content
        for each in logprobs.content
    ]
    assert said == choice.logprobs.content
    for each in said:
        assert len(each.top_logprobs) == 3
        assert each.logprob <= each.top_logprobs[0].logprob <= 0


def test_the_openai_client_knows_the_errors(server: ServerProcess, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mixed"]
    with pytest.raises(openai.BadRequestError, match="temperature is 5: it must be less than"):
        client.completions.create(model="mixed", prompt="a", temperature=5)
    with pytest.raises(openai.NotFoundError, match="This server has only mixed"):
        client.models.retrieve("gpt-4")
    stranger = openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="Another API key"):
        stranger.models.list()


def drawn_requests() -> list[tuple[dict[str, Any], str]]:
    """Return requests, and the answer that each gets when it is alone."""
    drawn = random.Random(0)
    requests = []
    for seed in range(24):
        prompt = "".join(drawn.choices("abcdefgh ", k=drawn.randint(1, 20)))
        n_new = drawn.randint(1, 60)
        body = {"prompt": prompt, "max_tokens": n_new, "seed": seed, "stream": True}
        requests.append((body, alone(prompt, max_new_tokens=n_new, seed=seed)))
    return requests


async def one_client(
    http: httpx2.AsyncClient, body: dict[str, Any], leaves_after: int | None
) -> tuple[int, str | None]:
    """Return the status, and the text if the client heard all; who leaves asks for ever."""
    texts: list[str] = []
    if leaves_after is not None:
        body = body | {"max_tokens": 2_000_000, "temperature": 0}
    async with http.stream("POST", "/v1/completions", json=body) as answered:
        if answered.status_code != 200:
            assert answered.headers["retry-after"] == "1"
            return answered.status_code, None
        async for line in answered.aiter_lines():
            if line == "data: [DONE]":
                return 200, "".join(texts)
            if leaves_after is not None and len(texts) >= leaves_after:
                break  # and the connection is closed
            if line:
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                texts.append(choice["text"])
    return 200, None


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_two_hundred_clients_with_disconnects_leak_nothing_and_cross_no_answers(
    server: ServerProcess,
) -> None:
    requests = drawn_requests()
    drawn = random.Random(1)
    got: Counter[str] = Counter()

    async def all_clients() -> None:
        asked = [drawn.choice(requests) for _ in range(N_CLIENTS)]
        async with httpx2.AsyncClient(
            base_url=server.url,
            headers={"Authorization": "Bearer a-key-of-sixteen-chars"},
            limits=httpx2.Limits(max_connections=None),
            timeout=SOON_S,
        ) as http:
            answers = await asyncio.gather(
                *(one_client(http, body, drawn.choice([None, None, 0, 1, 3])) for body, _ in asked)
            )
        for (status, text), (_, expected) in zip(answers, asked, strict=True):
            got[str(status)] += 1
            if text is not None:
                got["right" if text == expected else "wrong"] += 1

    asyncio.run(all_clients())
    after_first = resident_bytes(server.process.pid)
    for _ in range(2):
        asyncio.run(all_clients())
    await_idle(server)
    assert set(got) == {"200", "429", "right"}, got
    assert min(got.values()) > 20, got
    assert resident_bytes(server.process.pid) < after_first + (16 << 20)
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 40
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize("stream", [False, True])
def test_who_vanishes_frees_the_row(server: ServerProcess, *, stream: bool) -> None:
    address = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "ab", "temperature": 0, "max_tokens": 2_000_000, "stream": stream})
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(
            (
                f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\n"
                "Authorization: Bearer a-key-of-sixteen-chars\r\n"
                "Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()
        )
        deadline = time.monotonic() + SOON_S
        while metric(server, "quern_rows_busy") != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    await_idle(server)


def test_a_connection_may_idle_longer_than_uvicorn_allows(server: ServerProcess) -> None:
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=SOON_S)
    for pause_s in (5.5, 0):  # uvicorn's own limit is 5 s; the pools of clients keep one for 90
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        time.sleep(pause_s)
    connection.close()


def endless(url: str) -> Iterator[str]:
    """Yield the lines of a stream that does not end by itself."""
    body = {"prompt": "ab", "max_tokens": 2_000_000, "stream": True, "temperature": 0}
    with httpx2.stream("POST", url + "/v1/completions", json=body, timeout=SOON_S) as answered:
        assert answered.status_code == 200
        yield from filter(None, answered.iter_lines())


def test_sigterm_lets_answers_end_refuses_others_and_exits_with_143(place: Path) -> None:
    with serving(place, "--max-tokens", "100000", "--drain-seconds", "60") as server:
        body = {"prompt": "ab", "max_tokens": 20_000, "stream": True, "temperature": 0}
        with httpx2.stream(
            "POST", server.url + "/v1/completions", json=body, timeout=SOON_S
        ) as answered:
            lines = filter(None, answered.iter_lines())
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + SOON_S
            while True:  # until it has heard
                try:
                    if httpx2.get(server.url + "/health").status_code == 503:
                        break
                except httpx2.TransportError:
                    break
                assert time.monotonic() < deadline
            *_, last, done = list(lines)
            assert '"finish_reason":"length"' in last
            assert done == "data: [DONE]"
        assert server.wait() == 143
        assert "Traceback" not in server.stderr
        assert "Running answers have 60 s to end" in server.stderr


def test_ctrl_c_ends_answers_that_take_too_long_in_words_and_exits_with_130(place: Path) -> None:
    with serving(place, "--max-tokens", "2000000", "--drain-seconds", "0.3") as server:
        lines = endless(server.url)
        next(lines)
        server.process.send_signal(signal.SIGINT)
        *_, error, done = list(lines)
        assert "The server is going down" in error
        assert done == "data: [DONE]"
        assert server.wait() == 130
        assert "Traceback" not in server.stderr


def test_where_the_engine_fails_the_process_ends_for_a_supervisor_to_see(tmp_path: Path) -> None:
    make_mixed_run(tmp_path / "runs", diverged=True)
    with serving(tmp_path) as server:
        body = {"prompt": "ab", "stream": True}
        with httpx2.stream("POST", server.url + "/v1/completions", json=body) as answered:
            *_, error, done = filter(None, answered.iter_lines())
        assert '"message":"' in error
        assert done == "data: [DONE]"
        assert server.wait() == 1


def test_a_second_signal_ends_it_at_once(place: Path) -> None:
    with serving(place, "--max-tokens", "2000000", "--drain-seconds", "60") as server:
        lines = endless(server.url)
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        while "Running answers" not in server.stderr:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 143
        with pytest.raises(httpx2.TransportError):
            list(lines)


def test_what_a_person_can_mend_is_one_sentence(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            "a port in use": (["--port", str(port)], f"--port {port}: cannot be listened on"),
            "not on loopback": (["--host", "0.0.0.0"], "pass --api-key-file"),
            "no run": (["nothing"], "no such run"),
            "more than allowed": (["--max-tokens", "9"], "--max-new-tokens is 200 and"),
            "hotter than a request may": (["--temperature", "3"], "--temperature is 3"),
        }
        ended = run_each(
            {name: ["sample", "serve", "--port", "0", *rest] for name, (rest, _) in wrong.items()},
            place,
        )
    for name, (_, words) in wrong.items():
        assert_one_sentence(ended[name], words)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nowhere.invalid", "--host nowhere.invalid --port 0: no such address"),
        ("192.0.2.1", "--host 192.0.2.1 --port 0: cannot be listened on"),
        ("a" * 70 + ".x", "no such address"),
    ],
)
def test_an_address_that_cannot_be_had_is_said(host: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(ServeConfig(host=host, port=0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "key: cannot be read"),
        (b"two words", "it must hold one word in ASCII, the key"),
        (b" \n", "it must hold one word in ASCII, the key"),
        (b"schl\xc3\xbcssel", "one word in ASCII"),
        (b"a\0b", "it must hold one word in ASCII, the key"),
    ],
)
def test_a_file_that_holds_no_key_is_said(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_key(tmp_path / "key")


def test_what_is_sent_does_not_wait_for_what_was_sent_before_to_arrive() -> None:
    """With Nagle's algorithm a client that keeps its connection waits 40 ms for each answer."""

    async def no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own = writer.get_extra_info("socket")
            found.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bind(ServeConfig(port=0))
        async with await asyncio.start_server(connected, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.close()
            return await asyncio.wait_for(found, SOON_S)

    assert asyncio.run(no_delay())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.5"])
def test_the_machines_own_addresses_need_no_key(host: str) -> None:
    config = ServeConfig(host=host, port=0)
    with bind(config) as bound:
        access = make_access(bound, host)
    assert host in access.names
    assert access.key is None
    assert not access.is_wildcard


def test_other_addresses_need_a_key_and_a_bad_one_is_warned_about(place: Path) -> None:
    (place / "short.txt").write_text("abc", encoding="ascii")
    (place / "short.txt").chmod(0o644)
    options = ["--host", "0.0.0.0", "--allow-host", "Box.lan", "--api-key-file", "short.txt"]
    with serving(place, *options) as server:
        assert "short.txt: a key of 3 characters is soon guessed." in server.stderr
        assert "others on this machine can read the key: chmod 600 short.txt" in server.stderr
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        for host, status in [("box.lan:80", 200), ("10.0.0.9", 200), ("evil.example", 403)]:
            headers = {"Host": host, "Authorization": "Bearer abc"}
            assert httpx2.get(url + "/v1/models", headers=headers).status_code == status
        assert httpx2.get(url + "/v1/models").status_code == 401


def test_help_does_not_load_what_it_need_not(place: Path) -> None:
    script = (
        "import sys, sample.cli; heavy = {'torch', 'starlette', 'uvicorn', 'numpy'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert run_python(["-c", script], place).returncode == 0


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answers_slowly(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.6)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_a_connection_without_a_whole_request_is_closed_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sample.server.run.HEAD_TIMEOUT_S", 0.3)

    async def heard(port: int, *sent: bytes) -> bytes:
        """Return all that comes; what is sent but for the first waits for an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = b""
        for number, each in enumerate(sent):
            if number:
                answer = await reader.readuntil(b"\r\n\r\n")
            writer.write(each)
        answer += await reader.read()
        writer.close()
        return answer

    async def all_heard() -> list[bytes]:
        config = uvicorn.Config(
            answers_slowly, http=TimeoutProtocol, ws="none", lifespan="off", log_config=None,
            timeout_keep_alive=1,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        protocol = lambda: TimeoutProtocol(config, ServerState(), {}, loop)  # noqa: E731
        server = await loop.create_server(protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        clients = [(b"",), (REQUEST[:-2],), (REQUEST,), (REQUEST, REQUEST), (REQUEST, REQUEST[:9])]
        async with server:
            return await asyncio.wait_for(
                asyncio.gather(*(heard(port, *sent) for sent in clients)), SOON_S
            )

    answers = asyncio.run(all_heard())
    assert [answer.count(b" 204 ") for answer in answers] == [0, 0, 1, 2, 1]
