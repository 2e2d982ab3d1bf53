"""The HTTP interface: OpenAI's completions and chat, health, metrics, and the page.

GET  /v1/models            POST /v1/completions   /v1/chat/completions
GET  /tokenizer_info       POST /tokenize         /detokenize, as vLLM has them
GET  /health  /metrics  /card  /openapi.json      /  and the page's files
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
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
from starlette.types import ASGIApp

from common.errors import UserError
from common.tokenizer import END_OF_TEXT
from sample.server import protocol
from sample.server.engine import Engine
from sample.server.protocol import APIError, Json
from sample.server.requests import ServedModel, check_ids, parse_request
from sample.server.responses import EventStream, json_bytes
from sample.server.security import Access, SecurityMiddleware
from sample.text.prompt import missing_notice

MAX_BODY_BYTES = 1 << 20  # far more than a context; less than what would hurt to parse
BODY_TIMEOUT_S = 30.0
CLOSE = {"Connection": "close"}
PAGE = Path(__file__).parents[1] / "page"
STREAM: dict[int | str, Json] = {200: {"content": {"text/event-stream": {}}}}
ERROR = {"model": protocol.ErrorResponse}
ERRORS: dict[int | str, Json] = {"4XX": ERROR, "5XX": ERROR}


def make_app(engine: Engine, model: ServedModel, access: Access) -> ASGIApp:
    """Return the ASGI application, secured."""
    failures = (RequestValidationError, HTTPException, UserError, Exception)
    app = FastAPI(
        title="Quern",
        version="1",
        description=f"{model.name}: a GPT, over OpenAI's completions API. Where the server "
        "has an API key: Authorization: Bearer KEY.",
        docs_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys(failures, error_response),
    )
    app.state.engine, app.state.model = engine, model
    app.include_router(router)
    files = [file for file in PAGE.iterdir() if file.suffix in (".html", ".css", ".js", ".svg")]
    page = {"/" if file.name == "page.html" else f"/{file.name}": file for file in files}
    for path, file in page.items():
        app.add_route(path, partial(_send_file, file))
    paths = {*page, *app.openapi()["paths"], "/openapi.json", f"/v1/models/{model.name}"}
    open_paths = {*page, "/health", "/openapi.json"}
    secured = SecurityMiddleware(app, access, engine.metrics.requests, open_paths, paths)
    if not access.origins:
        return secured
    return CORSMiddleware(
        secured,
        allow_origins=sorted(access.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        allow_private_network=True,  # what --allow-origin is for: Chrome asks for it by itself
        expose_headers=["Retry-After"],
    )


async def _send_file(file: Path, _: Request) -> Response:
    # asked for again each time, so that page and server are of one version
    return FileResponse(file, headers={"Cache-Control": "no-cache"})


class JsonRequest(Request):
    """A request whose body is bounded, and JSON where 8.0 is an integer: JSON has but numbers."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body; raise APIError where it is too large or comes too slowly."""
        n_bytes, coding = 0, self.headers.get("content-encoding", "identity")
        if coding != "identity":
            sentence = f"The body is compressed ({protocol.shown(coding)}): send it as it is."
            raise APIError(sentence, status=415, headers=CLOSE)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in super().stream():
                    n_bytes += len(chunk)
                    if n_bytes > MAX_BODY_BYTES:
                        sentence = f"The body has more than {MAX_BODY_BYTES:,} bytes."
                        raise APIError(sentence, status=413, headers=CLOSE)
                    yield chunk
        except TimeoutError as error:
            sentence = f"The body did not come within {BODY_TIMEOUT_S:.0f} seconds."
            raise APIError(sentence, status=408, headers=CLOSE) from error

    async def json(self) -> Any:
        """Return the body's value; raise APIError where it is none."""
        try:
            return json.loads((await self.body()).decode("utf-8"), parse_float=_number)
        except (ValueError, RecursionError) as error:
            raise APIError(f"The body is not JSON in UTF-8: {error}.") from error


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


@router.get("/v1/models/", include_in_schema=False)  # or it would be a model without a name
@router.get("/v1/models")
async def models(request: Request) -> Json:
    """List the one model there is."""
    return {"object": "list", "data": [await model(request.app.state.model.name, request)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Json:
    """Describe the model."""
    own: ServedModel = request.app.state.model
    if name != own.name:
        sentence = f"This server has only {own.name}."
        raise APIError(sentence, status=404, param="model", code="model_not_found")
    return {"id": own.name, "object": "model", "created": own.created, "owned_by": "quern"}


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
    engine: Engine = request.app.state.engine
    # in a thread: a long text takes a while to encode, and the event loop serves others meanwhile
    jobs, answers = await asyncio.to_thread(parse_request, body, request.app.state.model)
    engine.submit(jobs)

    def on_first() -> None:
        engine.metrics.time_to_first_token.observe(time.monotonic() - arrived_s)

    if body.stream:
        return EventStream(answers.events(on_first), lambda: engine.cancel(jobs))
    whole = asyncio.create_task(answers.whole(on_first))
    gone = asyncio.ensure_future(request.receive())  # after the body only a disconnect comes
    try:
        await asyncio.wait({gone, whole}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            return Response(status_code=499)  # as nginx logs it
        return Response(json_bytes(whole.result()), media_type="application/json")
    finally:
        gone.cancel()
        whole.cancel()
        engine.cancel(jobs)


@router.get("/tokenizer_info")
async def tokenizer_info() -> Json:
    """Say how end-of-text, which precedes every document, is written: /tokenize gives its id."""
    return {"eos_token": END_OF_TEXT}


@router.post("/tokenize")
async def tokenize(body: protocol.TokenizeRequest, request: Request) -> Json:
    """Return the ids of a text; of end-of-text's name alone, its id."""
    own: ServedModel = request.app.state.model
    text, ids = body.prompt, [own.tokenizer.eot_id]
    if text != END_OF_TEXT:
        ids = await asyncio.to_thread(own.tokenizer.encode, text)
        if notices := missing_notice(own.tokenizer, text):
            return {"tokens": ids, "count": len(ids), "notices": notices}
    return {"tokens": ids, "count": len(ids)}


@router.post("/detokenize")
async def detokenize(body: protocol.DetokenizeRequest, request: Request) -> Json:
    """Return the text of ids."""
    tokenizer = request.app.state.model.tokenizer
    check_ids(body.tokens, tokenizer, "tokens")
    return {"prompt": tokenizer.decode_bytes(body.tokens).decode("utf-8", "replace")}


@router.get("/health")
async def health(request: Request, response: Response) -> Json:
    """Say whether requests are accepted."""
    why = request.app.state.engine.closed
    if why is None:
        return {"status": "ok"}
    response.status_code = 503
    return {"status": "unavailable", "reason": why}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the counters for Prometheus."""
    text = generate_latest(request.app.state.engine.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/card")
async def model_info(request: Request) -> Json:
    """Return what the page says of the model."""
    info: Json = request.app.state.model.info
    return info


async def error_response(request: Request, error: Exception) -> Response:
    """Return the answer to a request that ended in ``error``."""
    match error:
        case APIError():
            answer = error
        case RequestValidationError(body=bytes()):
            sentence = "The body must be JSON, and announced so: Content-Type: application/json."
            answer = APIError(sentence, status=415)
        case RequestValidationError(body=dict()):
            answer = protocol.validation_error(error.errors())
        case RequestValidationError(body=body):
            found = "empty" if body is None else protocol.shown(body)
            answer = APIError(f"The body is {found}: it must be a JSON object.")
        case UserError():
            answer = APIError(error.message)
        case HTTPException(status_code=status):
            sentences = {
                404: f"There is no {request.url.path[:100]} here: of OpenAI's API there are "
                "/v1/models, /v1/completions and /v1/chat/completions; /openapi.json lists all.",
                405: f"{request.method[:20]} is not done here.",
            }
            sentence = sentences.get(status, error.detail)
            answer = APIError(sentence, status=status, headers=error.headers)
        case _:  # Starlette raises it again after this, and the server logs it
            answer = APIError("The server failed; its log says why.", status=500)
    return answer.response()
