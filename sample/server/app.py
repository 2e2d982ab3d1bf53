"""The HTTP interface: OpenAI's completions and chat, health, metrics, and the page.

GET  /v1/models            POST /v1/completions   /v1/chat/completions
GET  /health  /metrics  /card  /openapi.json      /  and the page's files
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sample.server.answer import Answer
from sample.server.engine import Engine
from sample.server.errors import RequestError
from sample.server.metrics import CONTENT_TYPE, Counters
from sample.server.openapi import describe_api
from sample.server.requests import Model, understand
from sample.server.responses import Json, json_bytes
from sample.server.security import Access, Guard, error_response
from sample.server.streaming import EventStream, read_body, unless_gone

PAGE = Path(__file__).parents[1] / "page"
PAGE_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class Service:
    """All that the routes need."""

    engine: Engine
    model: Model
    counters: Counters
    card: Json


def make_app(service: Service, access: Access) -> ASGIApp:
    """Return the ASGI application, guarded."""
    page = page_files()
    api = Api(service)
    routes = [
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.one_model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/card", api.card),
        Route("/openapi.json", api.openapi),
        *(Route(path, _send_file(*file)) for path, file in page.items()),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            RequestError: _request_error,
            HTTPException: _http_error,
            Exception: _fault,
        },
    )
    return Guard(
        app,
        access,
        service.counters,
        open_paths={*page, "/health", "/openapi.json"},
        known_paths={route.path for route in routes},
    )


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the content and type of the page's files by their paths; / is page.html."""
    files = {
        f"/{path.name}": (path.read_bytes(), PAGE_TYPES[path.suffix])
        for path in sorted(PAGE.iterdir())
        if path.suffix in PAGE_TYPES
    }
    return {"/" if path == "/page.html" else path: file for path, file in files.items()}


def _send_file(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def send_file(_: Request) -> Response:
        # asked for again each time, so that page and server are of one version
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return send_file


class Api:
    """The routes, around one Service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        model = service.model
        self._model_json = {
            "id": model.name, "object": "model", "created": model.created, "owned_by": "quern",
        }  # fmt: skip
        self._openapi = json_bytes(describe_api(model))

    async def models(self, _: Request) -> Response:
        """List the one model there is."""
        return _json({"object": "list", "data": [self._model_json]})

    async def one_model(self, request: Request) -> Response:
        """Describe the model."""
        if request.path_params["name"] != self._service.model.name:
            raise RequestError(
                f"This server has only {self._service.model.name}.",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip
        return _json(self._model_json)

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        return await self._complete(request, chat=False)

    async def chat_completions(self, request: Request) -> Response:
        """Continue a conversation."""
        return await self._complete(request, chat=True)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        arrived_s = time.monotonic()
        service = self._service
        try:
            body = await read_body(request)
        except ClientDisconnect:
            return _nobody()
        # in a thread: a long text takes a while to encode, and others are to be heard meanwhile
        asked = await asyncio.to_thread(understand, body, service.model, chat=chat)
        answer = Answer(service.engine, asked, service.counters, arrived_s)
        if asked.stream:
            return EventStream(answer)
        try:
            whole = await unless_gone(request.receive, answer.whole())
        finally:
            answer.cancel()
        return _nobody() if whole is None else _json(whole)

    async def health(self, _: Request) -> Response:
        """Say whether requests are taken."""
        why = self._service.engine.closed
        health = {"status": "ok"} if why is None else {"status": "unavailable", "reason": why}
        return _json(health, 200 if why is None else 503)

    async def metrics(self, _: Request) -> Response:
        """Return the counters for Prometheus."""
        engine = self._service.engine
        text = self._service.counters.text(
            n_waiting=engine.n_waiting,
            n_busy=engine.n_busy,
            n_rows=self._service.model.limits.rows,
            up=engine.closed is None,
            now_s=time.monotonic(),
        )
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def card(self, _: Request) -> Response:
        """Return what the page says of the model."""
        return _json(self._service.card)

    async def openapi(self, _: Request) -> Response:
        """Describe this interface."""
        return Response(self._openapi, media_type="application/json")


def _json(value: Json, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


def _nobody() -> Response:
    return Response(status_code=499)  # as nginx logs it: the client closed; nobody reads this


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {
        404: f"There is no {request.url.path[:100]} here: /openapi.json lists what there is.",
        405: f"{request.method[:20]} is not done here.",
    }.get(error.status_code, str(error.detail))
    return error_response(RequestError(sentence, status=error.status_code, headers=error.headers))


async def _fault(_: Request, error: Exception) -> Response:
    # Starlette raises it again after this, and the server logs it
    return error_response(
        RequestError("The server failed; its log says why.", status=500, kind="server_error")
    )
