"""The HTTP interface: OpenAI's completions and chat, health, metrics, and the page.

GET  /v1/models            POST /v1/completions   /v1/chat/completions
GET  /health  /metrics  /card  /openapi.json      /  and the page's files
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Receive

from common.errors import UserError
from sample.server import protocol
from sample.server.engine import Engine
from sample.server.errors import APIError, error_response
from sample.server.metrics import Metrics
from sample.server.requests import ServedModel, parse_request
from sample.server.responses import EventStream, Json, ResponseStream, json_bytes
from sample.server.security import Access, SecurityMiddleware

MAX_BODY_BYTES = 1 << 20  # far more than a context; less than what would hurt to parse
BODY_TIMEOUT_S = 30.0
PAGE = Path(__file__).parents[1] / "page"
STREAM: dict[int | str, Json] = {200: {"content": {"text/event-stream": {}}}}
ERROR = {"model": protocol.ErrorResponse}
ERRORS: dict[int | str, Json] = {"4XX": ERROR, "5XX": ERROR}


@dataclass(frozen=True, kw_only=True)
class Service:
    """All that the routes need."""

    engine: Engine
    model: ServedModel
    metrics: Metrics
    model_info: Json  # what the page says of the model


def make_app(service: Service, access: Access) -> ASGIApp:
    """Return the ASGI application, secured."""
    failures = (RequestValidationError, HTTPException, UserError, Exception)
    app = FastAPI(
        title="Quern",
        version="1",
        description=f"{service.model.name}: a GPT, over OpenAI's completions API. Where the server "
        "has an API key: Authorization: Bearer KEY.",
        docs_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys(failures, error_response),
    )
    app.state.service = service
    app.include_router(router)
    files = [file for file in PAGE.iterdir() if file.suffix in (".html", ".css", ".js", ".svg")]
    page = {"/" if file.name == "page.html" else f"/{file.name}": file for file in files}
    for path, file in page.items():
        app.add_route(path, partial(_send_file, file))
    paths = {*page, *app.openapi()["paths"], "/openapi.json", f"/v1/models/{service.model.name}"}
    open_paths = {*page, "/health", "/openapi.json"}
    secured = SecurityMiddleware(app, access, service.metrics, open_paths, paths)
    if not access.origins:
        return secured
    return CORSMiddleware(
        secured,
        allow_origins=sorted(access.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )


async def _send_file(file: Path, _: Request) -> Response:
    # asked for again each time, so that page and server are of one version
    return FileResponse(file, headers={"Cache-Control": "no-cache"})


class JsonRequest(Request):
    """A request whose body is bounded, and JSON where 8.0 is an integer: JSON has but numbers."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body; raise APIError where it is too large or comes too slowly."""
        n_bytes = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in super().stream():
                    n_bytes += len(chunk)
                    if n_bytes > MAX_BODY_BYTES:
                        raise _closing(413, f"has more than {MAX_BODY_BYTES:,} bytes")
                    yield chunk
        except TimeoutError as error:
            raise _closing(408, f"did not come within {BODY_TIMEOUT_S:.0f} seconds") from error

    async def json(self) -> Any:
        """Return the body's value."""
        return json.loads((await self.body()).decode("utf-8"), parse_float=_number)


def _closing(status: int, what: str) -> APIError:
    return APIError(f"The body {what}.", status=status, headers={"Connection": "close"})


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value


class JsonRoute(APIRoute):
    """A route that reads its body by JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler around a JsonRequest."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


router = APIRouter(route_class=JsonRoute, responses=ERRORS)


@router.get("/v1/models")
async def models(request: Request) -> protocol.ModelList:
    """List the one model there is."""
    return protocol.ModelList(data=[await model(request.app.state.service.model.name, request)])


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> protocol.ModelDescription:
    """Describe the model."""
    own: ServedModel = request.app.state.service.model
    if name != own.name:
        sentence = f"This server has only {own.name}."
        raise APIError(sentence, status=404, param="model", code="model_not_found")
    return protocol.ModelDescription(id=own.name, created=own.created)


@router.post("/v1/completions", response_model=protocol.CompletionResponse, responses=STREAM)
async def completions(body: protocol.CompletionRequest, request: Request) -> Response:
    """Continue a text."""
    return await _complete(body, request)


@router.post("/v1/chat/completions", response_model=protocol.CompletionResponse, responses=STREAM)
async def chat_completions(body: protocol.ChatRequest, request: Request) -> Response:
    """Continue a conversation."""
    return await _complete(body, request)


async def _complete(
    body: protocol.CompletionRequest | protocol.ChatRequest, request: Request
) -> Response:
    arrived_s = time.monotonic()
    service: Service = request.app.state.service
    # in a thread: a long text takes a while to encode, and the event loop serves others meanwhile
    generation = await asyncio.to_thread(parse_request, body, service.model)
    stream = ResponseStream(generation.builder, arrived_s, service.metrics.time_to_first_token)
    jobs = service.engine.submit(generation.rows, stream.push)
    if generation.stream:
        return EventStream(stream.events(), lambda: service.engine.cancel(jobs))
    try:
        whole = await cancel_on_disconnect(request.receive, stream.response())
    finally:
        service.engine.cancel(jobs)
    if whole is None:
        return Response(status_code=499)  # as nginx logs it: the client is gone
    return Response(json_bytes(whole), media_type="application/json")


@router.get("/health", response_model_exclude_none=True)
async def health(request: Request, response: Response) -> protocol.Health:
    """Say whether requests are accepted."""
    why = request.app.state.service.engine.closed
    response.status_code = 503 if why else 200
    return protocol.Health(status="unavailable" if why else "ok", reason=why)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the counters for Prometheus."""
    text = generate_latest(request.app.state.service.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/card")
async def model_info(request: Request) -> Json:
    """Return what the page says of the model."""
    info: Json = request.app.state.service.model_info
    return info


async def cancel_on_disconnect(receive: Receive, answer: Coroutine[Any, Any, Json]) -> Json | None:
    """Return what is awaited, or None where the client goes away before."""
    waited = asyncio.create_task(answer)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({gone, waited}, return_when=asyncio.FIRST_COMPLETED)
        return waited.result() if waited.done() else None
    finally:
        gone.cancel()
        waited.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
