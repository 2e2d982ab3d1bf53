"""Serve a checkpoint: engine and HTTP server, and how they end.

SIGTERM and Ctrl-C: connections are refused, running answers get --drain-seconds to end, those that
do not are told so, and the process ends with 143 or 130; a second signal ends it at once. Where the
engine fails it ends with 1, so that whatever supervises it starts it again.
"""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import FrameType

import uvicorn
from pydantic import ValidationError
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.checkpoint import MANIFEST_NAME, MODEL_NAME
from common.errors import CheckpointError, ConfigError
from common.files import sha256_of
from common.models.config import GenerateConfig
from common.run_dir import read_json
from sample.loaded_model import LoadedModel, model_card
from sample.server.app import make_app
from sample.server.config import ServeConfig
from sample.server.engine import Engine
from sample.server.protocol import SamplingParameters, validation_error
from sample.server.requests import ServedModel
from sample.server.security import Access
from sample.text.prompt import Template
from sample.text.sources import open_training_text

log = logging.getLogger(__name__)

MAX_FILES = 1_024  # that a process may usually have open at once; on macOS 256
MAX_CONNECTIONS = 900  # below: refused with 503, not by a failing accept
HEAD_TIMEOUT_S = 30.0  # a connection without a whole request's headers
KEEP_ALIVE_S = 95  # longer than the pools of common clients keep an idle connection: up to 90 s
GOING_DOWN = "The server is going down: it takes no more requests, and ends those that take long."


def bind(config: ServeConfig) -> socket.socket:
    """Return a socket bound to the address, not listening yet; raise ConfigError where none is."""
    where = f"--host {config.host} --port {config.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{where}: no such address ({error}).") from error
    # the protocol by name: asyncio turns Nagle's algorithm off only where it says TCP, and with it
    # a client that keeps its connection waits 40 ms for an answer
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        found = f"cannot be listened on ({error.strerror})"
        raise ConfigError(f"{where}: {found}. Choose another --port.") from error
    return bound


def describe_model(
    loaded: LoadedModel, template: Template, defaults: GenerateConfig, limits: ServeConfig
) -> ServedModel:
    """Return what is served; raise ConfigError where defaults are not what may be asked for."""
    if defaults.max_new_tokens > limits.max_tokens:
        raise ConfigError(
            f"--max-new-tokens is {defaults.max_new_tokens:,} and --max-tokens is "
            f"{limits.max_tokens:,}: what a request gets must not be more than it may ask for."
        )
    try:
        SamplingParameters.model_validate(asdict(defaults))
    except ValidationError as error:
        sentence = validation_error(error.errors()).detail
        raise ConfigError(f"--{sentence.replace('_', '-')}") from error
    training_text = open_training_text(loaded.info.folder, loaded.tokenizer)
    for notice in training_text.notices:
        log.info("%s", notice)
    info = model_card(loaded.info, defaults, template) | {"sources": training_text.is_indexed}
    manifest = loaded.info.folder / MANIFEST_NAME
    if loaded.info.folder.is_file():  # export --to weights
        manifest, weights = loaded.info.folder, sha256_of(loaded.info.folder)
    else:
        weights = read_json(manifest)["files"][MODEL_NAME]["sha256"]
    return ServedModel(
        name=info["name"],
        fingerprint=f"quern-{weights[:12]}",
        created=int(manifest.stat().st_mtime),
        tokenizer=loaded.tokenizer,
        block_size=loaded.info.config.block_size,
        template=template,
        defaults=defaults,
        limits=limits,
        info=info,
        training_text=training_text,
    )


def serve(loaded: LoadedModel, model: ServedModel, bound: socket.socket, access: Access) -> None:
    """Serve until a signal comes; raise CheckpointError where the engine failed."""
    limits = model.limits
    n_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= n_files < MAX_FILES:  # below 0: any number
        with suppress(ValueError, OSError):  # no more are granted
            resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, most))
    engine = Engine(loaded.decoder(limits.rows), n_rows=limits.rows, max_waiting=limits.queue)
    config = uvicorn.Config(
        make_app(engine, model, access),
        http=TimeoutProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(limits.drain_seconds) + 2,  # for the last words
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    host = f"[{limits.host}]" if ":" in limits.host else limits.host
    announcement = (
        f"Serving {model.name} at http://{host}:{bound.getsockname()[1]}/ (OpenAI's API below "
        f"/v1).{' It wants its API key.' if access.key else ''} Ctrl-C ends it."
    )
    try:
        Server(config, engine, limits.drain_seconds, announcement).run(sockets=[bound])
    finally:
        engine.close(GOING_DOWN)
    if engine.fault is not None:
        raise CheckpointError(engine.fault)


class Server(uvicorn.Server):
    """uvicorn's server, which drains the engine before it ends, and ends where the engine fails."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, drain_s: float, announcement: str
    ) -> None:
        super().__init__(config)
        self._engine, self._drain_s, self._announcement = engine, drain_s, announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and let the engine begin."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()

        def call_in_loop(call: Callable[[], None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(call)

        self._engine.start(call_in_loop)
        log.info("%s", self._announcement)

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to end; asked ten times a second."""
        return await super().on_tick(counter) or self._engine.fault is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; let running answers end, or end them after --drain-seconds."""
        self._engine.refuse(GOING_DOWN)
        if self._engine.rows or self._engine.waiting:
            log.info("Running answers have %.0f s to end; again to leave at once.", self._drain_s)
        loop = asyncio.get_running_loop()
        loop.call_later(self._drain_s, self._engine.close, GOING_DOWN, 0.0)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first drains, the second ends the process as it is."""
        if self.should_exit:
            os._exit(128 + sig)  # nothing is written that could be lost
        super().handle_exit(sig, frame)


class TimeoutProtocol(H11Protocol):
    """uvicorn's connection, closed where no whole head of a request comes within HEAD_TIMEOUT_S.

    uvicorn itself waits for ever. Of its internals only ``cycle``, the request under way, is used.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Wait on where a request is not whole yet."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._timer.cancel()
        elif self._timer.cancelled():
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
