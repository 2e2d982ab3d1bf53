"""Serve a checkpoint: engine and HTTP server, and how they end.

SIGTERM and Ctrl-C: connections are refused, running answers get --drain-seconds to end, those that
do not are told so, and the process ends with 143 or 130. A second signal ends it at once.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from common.checkpoint import MANIFEST_NAME, MODEL_NAME
from common.errors import ConfigError
from common.inference.config import GenerateConfig
from common.run_dir import read_json
from sample.loaded_model import Ready
from sample.model_info import make_card
from sample.server.app import Service, make_app
from sample.server.config import ServeConfig
from sample.server.engine import Engine
from sample.server.metrics import Counters
from sample.server.parameters import AT_MOST
from sample.server.requests import Model
from sample.server.security import Access
from sample.server.streaming import Hurried
from sample.text.template import Template

log = logging.getLogger(__name__)

# Below the 1,024 files that a process may usually open: refused with 503, not by a failing accept.
MAX_CONNECTIONS = 900
AFTER_DRAIN_S = 2  # for the last words to be sent
GOING_DOWN = "The server is going down: it takes no more requests, and ends those that take long."


def describe_model(
    ready: Ready, template: Template, defaults: GenerateConfig, limits: ServeConfig
) -> Model:
    """Return the facts that requests are checked against.

    Raises: ConfigError where requests would get more tokens than they may ask for.
    """
    if defaults.max_new_tokens > limits.max_tokens:
        raise ConfigError(
            f"--max-new-tokens is {defaults.max_new_tokens:,} and --max-tokens is "
            f"{limits.max_tokens:,}: what a request gets must not be more than it may ask for."
        )
    for name, most in AT_MOST.items():
        if (value := getattr(defaults, name)) > most:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {value:g}: a request may ask for at most {most:g}."
            )
    manifest = ready.folder / MANIFEST_NAME
    weights = read_json(manifest)["files"][MODEL_NAME]["sha256"]
    return Model(
        name=ready.folder.parent.name,
        fingerprint=f"quern-{weights[:12]}",
        created=int(manifest.stat().st_mtime),
        tokenizer=ready.loaded.tokenizer,
        block_size=ready.loaded.model.config.block_size,
        template=template,
        defaults=defaults,
        limits=limits,
    )


def serve(ready: Ready, model: Model, bound: socket.socket, access: Access) -> None:
    """Serve until a signal comes."""
    config, counters = model.limits, Counters()
    server: Server
    engine = Engine(
        ready.decoder(config.rows),
        model.tokenizer,
        n_rows=config.rows,
        max_waiting=config.queue,
        counters=counters,
        post=lambda call: server.post(call),
    )
    card = make_card(ready.folder, ready.loaded, model)
    app = make_app(Service(engine=engine, model=model, counters=counters, card=card), access)
    server = Server(
        uvicorn.Config(
            app,
            http=Hurried,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=round(config.drain_seconds) + AFTER_DRAIN_S,
        ),
        engine,
        config.drain_seconds,
        announce=lambda: log.info("%s", announcement(model, bound, access)),
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        server.run(sockets=[bound])
    finally:
        engine.close(GOING_DOWN)


def announcement(model: Model, bound: socket.socket, access: Access) -> str:
    """Return what is said once the server listens."""
    host = model.limits.host
    host = f"[{host}]" if ":" in host else host
    key = " It wants its API key." if access.key is not None else ""
    return (
        f"Serving {model.name} at http://{host}:{bound.getsockname()[1]}/ (OpenAI's API below "
        f"/v1).{key} Ctrl-C ends it."
    )


class Server(uvicorn.Server):
    """uvicorn's server, which drains the engine before it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        drain_s: float,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._engine, self._drain_s, self._announce = engine, drain_s, announce
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, call: Callable[[], None]) -> None:
        """Have the event loop make a call; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and let the engine begin."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._engine.start()
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; let running answers end, or end them after --drain-seconds."""
        self._engine.refuse(GOING_DOWN)
        if self._engine.n_busy or self._engine.n_waiting:
            log.info("Running answers have %.0f s to end; again to leave at once.", self._drain_s)
        end = asyncio.get_running_loop().call_later(
            self._drain_s, self._engine.close, GOING_DOWN, 0.0
        )
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first drains, the second ends the process as it is."""
        if self.should_exit:
            sys.stderr.flush()
            os._exit(128 + sig)  # nothing is written that could be lost
        super().handle_exit(sig, frame)
