"""The HTTP interface: OpenAI's completions and chat, health, metrics, and the page.

GET  /v1/models            POST /v1/completions   /v1/chat/completions
GET  /health  /metrics  /card  /openapi.json      /  and the page's files
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive

from sample.server.engine import Engine
from sample.server.errors import HANDLERS, APIError
from sample.server.metrics import Metrics
from sample.server.protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
    Health,
    ModelDescription,
    ModelList,
)
from sample.server.requests import ServedModel, parse_request
from sample.server.responses import EventStream, Json, ResponseStream, json_bytes
from sample.server.security import Access, secured

PAGE = Path(__file__).parents[1] / "page"
PAGE_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The sentence says what to do otherwise."},
    "5XX": {"model": ErrorResponse, "description": "The server is going down, or has failed."},
}
STREAM = {"description": "The answer; with stream, server-sent events.",
          "content": {"text/event-stream": {}}}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Service:
    """All that the routes need."""

    engine: Engine
    model: ServedModel
    metrics: Metrics
    model_info: Json


def make_app(service: Service, access: Access) -> ASGIApp:
    """Return the ASGI application, secured."""
    api, model = Api(service), service.model
    app = FastAPI(
        title="Quern",
        version="1",
        description=f"{model.name}: a GPT, over OpenAI's completions API. A server with an API key "
        "wants it as Authorization: Bearer KEY.",
        docs_url=None,
        redoc_url=None,
        exception_handlers=HANDLERS,
    )
    app.router.route_class = JsonRoute
    app.get("/v1/models", response_model=ModelList)(api.models)
    app.get("/v1/models/{name:path}", response_model=ModelDescription, responses=ERRORS)(api.model)
    posted = ERRORS | {200: STREAM}
    app.post("/v1/completions", response_model=Completion, responses=posted)(api.completions)
    app.post("/v1/chat/completions", response_model=ChatCompletion, responses=posted)(api.chat)
    app.get("/health", response_model=Health, responses=ERRORS)(api.health)
    app.get("/metrics", response_class=Response)(api.metrics)
    app.get("/card", response_model=dict[str, Any])(api.card)
    page = page_files()
    for path, file in page.items():
        app.get(path, include_in_schema=False)(_send_file(*file))
    paths = {getattr(route, "path", "") for route in app.routes} | {f"/v1/models/{model.name}"}
    open_paths = {*page, "/health", "/openapi.json"}
    return secured(app, access, service.metrics, open_paths=open_paths, known_paths=paths)


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the content and type of the page's files by their paths; / is page.html."""
    files = {
        f"/{path.name}": (path.read_bytes(), PAGE_TYPES[path.suffix])
        for path in sorted(PAGE.iterdir())
        if path.suffix in PAGE_TYPES
    }
    return {"/" if path == "/page.html" else path: file for path, file in files.items()}


def _send_file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send_file() -> Response:
        # asked for again each time, so that page and server are of one version
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return send_file


class JsonRoute(APIRoute):
    """A route whose bodies are JSON in UTF-8, where 8.0 is an integer: JSON tells no difference."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Have the body read by JsonRequest."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


class JsonRequest(Request):
    """A request whose numbers are read as JsonRoute says."""

    async def json(self) -> Any:
        """Return the body's value."""
        body = await self.body()
        return json.loads(body.decode("utf-8"), parse_float=_number, parse_constant=_no_constant)


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")


class Api:
    """The routes, around one Service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        model = service.model
        self._model = {
            "id": model.name, "object": "model", "created": model.created, "owned_by": "quern",
        }  # fmt: skip

    async def models(self) -> Response:
        """List the one model there is."""
        return _json({"object": "list", "data": [self._model]})

    async def model(self, name: str) -> Response:
        """Describe the model."""
        if name != self._service.model.name:
            raise APIError(
                f"This server has only {self._service.model.name}.",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        return _json(self._model)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        return await self._complete(body, request)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Continue a conversation."""
        return await self._complete(body, request)

    async def _complete(self, body: CompletionRequest | ChatRequest, request: Request) -> Response:
        arrived_s = time.monotonic()
        service = self._service
        # in a thread: a long text takes a while to encode, and others are to be heard meanwhile
        generation = await asyncio.to_thread(parse_request, body, service.model)
        stream = ResponseStream(generation.builder, arrived_s, service.metrics.time_to_first_token)
        jobs = service.engine.submit(generation.samples, stream.push)
        if generation.stream:
            return EventStream(stream.events(), lambda: service.engine.cancel(jobs))
        try:
            whole = await cancel_on_disconnect(request.receive, stream.whole())
        finally:
            service.engine.cancel(jobs)
        if whole is None:
            return Response(status_code=499)  # as nginx logs it: the client closed
        return Response(whole, media_type="application/json")

    async def health(self) -> Response:
        """Say whether requests are taken."""
        why = self._service.engine.closed
        health = {"status": "ok"} if why is None else {"status": "unavailable", "reason": why}
        return _json(health, 200 if why is None else 503)

    async def metrics(self) -> Response:
        """Return the counters for Prometheus."""
        text = generate_latest(self._service.metrics.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def card(self) -> Response:
        """Return what the page says of the model."""
        return _json(self._service.model_info)


def _json(value: Json, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


async def cancel_on_disconnect(receive: Receive, answer: Awaitable[bytes]) -> bytes | None:
    """Return what is awaited, or None where the client goes away before."""
    gone = asyncio.ensure_future(_disconnected(receive))
    waited = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({gone, waited}, return_when=asyncio.FIRST_COMPLETED)
        return waited.result() if waited.done() else None
    finally:
        gone.cancel()
        waited.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
