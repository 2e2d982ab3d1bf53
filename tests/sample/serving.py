"""Servers for tests: the application in this process, and ``sample serve`` as a process."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from starlette.testclient import TestClient

from common.chat_format import end_ids
from common.checkpoint import save_checkpoint
from common.files import write_json
from common.inference.backend import make_backend
from common.inference.decoder import Decoder
from common.models.config import GenerateConfig, ModelConfig
from common.models.gpt import GPT
from common.run_dir import new_run
from common.tokenizer import Tokenizer
from sample.server.app import make_app
from sample.server.config import ServeConfig
from sample.server.engine import Engine
from sample.server.requests import ServedModel
from sample.server.security import Access
from sample.text.prompt import TURNS, Template
from sample.text.sources import TrainingText
from tests.processes import TIMEOUT_S, environment
from tests.sample.conftest import ALPHABET
from tests.sample.fake_decoder import FakeDecoder
from tests.tiny import random_model

MIXED = ModelConfig(
    vocab_size=ALPHABET.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=16
)  # fmt: skip


def mixed_model() -> GPT:
    """Return a network whose text depends on all of its prompt, and greedily never ends."""
    model = random_model(MIXED, seed=3)
    with torch.no_grad():
        model.wte.weight[ALPHABET.eot_id] = 0.0  # its score is 0: never the highest
    return model


def make_mixed_run(runs_dir: Path, *, diverged: bool = False) -> None:
    """Save ``mixed_model`` as a run called mixed; ``diverged``: its weights are no numbers."""
    run = new_run(runs_dir, "mixed")
    write_json(run / "config.json", {"format": 1})
    model = mixed_model()
    if diverged:
        torch.nn.init.constant_(model.wte.weight, float("nan"))
    save_checkpoint(run, 1, model, {}, {"progress": {"n_tokens": 10}}, ALPHABET)


@dataclass
class InProcess:
    """The application around a FakeDecoder."""

    client: TestClient
    decoder: FakeDecoder  # or, as it was asked for, a Decoder
    engine: Engine


@contextmanager
def in_process(
    limits: ServeConfig | None = None,
    access: Access | None = None,
    template: Template = TURNS,
    network: GPT | None = None,
    tokenizer: Tokenizer = ALPHABET,
    block_size: int = 32,
    training_text: TrainingText | None = None,
) -> Iterator[InProcess]:
    """Serve from this process, a FakeDecoder or ``network``; the base URL is http://localhost."""
    limits = limits or ServeConfig(rows=4, queue=4, max_tokens=64)
    decoder = FakeDecoder(limits.rows)
    if network is not None:
        backend = make_backend(network)
        ends = end_ids(tokenizer) if template.is_chat else ()
        decoder = cast(FakeDecoder, Decoder(backend, tokenizer, limits.rows, ends))
    model = ServedModel(
        name="fake",
        fingerprint="quern-0123456789ab",
        created=1_700_000_000,
        tokenizer=tokenizer,
        block_size=block_size,
        template=template,
        defaults=GenerateConfig(max_new_tokens=8),
        limits=limits,
        info={"name": "fake"},
        training_text=training_text or TrainingText(tokenizer),
    )
    engine = Engine(cast(Decoder, decoder), n_rows=limits.rows, max_waiting=limits.queue)
    app = make_app(engine, model, access or Access())
    with TestClient(app, base_url="http://localhost") as client:
        assert client.portal is not None
        engine.start(client.portal.call(_running_loop).call_soon_threadsafe)
        try:
            yield InProcess(client, decoder, engine)
        finally:
            if network is None:
                decoder.go.set()
            engine.close("Over.")


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@dataclass
class ServerProcess:
    """``sample serve`` as a process, and all that it says."""

    process: "subprocess.Popen[str]"
    url: str = ""
    said: list[str] = field(default_factory=list)

    def _listen(self, announced: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://\S+?:\d+", line):
                self.url = found.group()
                announced.set()
        announced.set()

    @property
    def stderr(self) -> str:
        return "".join(self.said)

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait(timeout=TIMEOUT_S)


@contextmanager
def serving(folder: Path, *options: str, one_thread: bool = True) -> Iterator[ServerProcess]:
    """Start ``sample serve`` on a free port; end it if it still runs."""
    variables = environment()
    if not one_thread:
        del variables["OMP_NUM_THREADS"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sample", "serve", "--port", "0", *options],
        cwd=folder,
        env=variables,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    server, announced = ServerProcess(process), threading.Event()
    listener = threading.Thread(target=server._listen, args=(announced,))
    listener.start()
    try:
        assert announced.wait(TIMEOUT_S)
        assert server.url, server.stderr
        yield server
    finally:
        process.kill()
        process.wait()
        listener.join()
        assert process.stderr is not None
        process.stderr.close()


def events(text: str) -> list[Any]:
    """Return the events of a stream, as JSON; the last must be [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def assert_joined(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """Hold that the parts of a stream, joined, are the choices of the whole answer."""
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts]
        own = [part for part in own if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own][-1] == choice["finish_reason"]
        for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            joined = [each for part in own if part["logprobs"] for each in part["logprobs"][key]]
            assert joined == choice["logprobs"][key]
