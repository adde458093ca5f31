"""The application: endpoints, and what happens when a request is wrong."""

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from onesitting import __version__
from onesitting.errors import UserError
from onesitting.server import messages, openai, responses
from onesitting.server.errors import ApiError, error_body
from onesitting.server.guard import Guard
from onesitting.server.models import ServedModel
from onesitting.server.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from onesitting.server.service import Service, client_of, event_stream, service_of, unless_gone

JSON = dict[str, Any]
router = APIRouter()
DONE = b"data: [DONE]\n\n"


def create_app(service: Service) -> FastAPI:
    """An ASGI application for a service; its end closes the engines."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        service.is_draining = True
        for model in service.models.values():
            await asyncio.to_thread(model.engine.close, 0)

    app = FastAPI(title="onesitting", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.include_router(router)
    app.add_middleware(Guard, service=service)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _api_error(request: Request, error: Any) -> Response:
    return JSONResponse(error_body(request.url.path, error), error.status, error.headers)


def _user_error(request: Request, error: Any) -> Response:
    return _api_error(request, ApiError(400, str(error)))


def _http_error(request: Request, error: Any) -> Response:
    texts = {404: "there is nothing here", 405: "this path has another method"}
    answer = ApiError(error.status_code, texts.get(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return _api_error(request, answer)


def _invalid(request: Request, error: Any) -> Response:
    """One sentence about the first thing that is wrong; the value is not repeated, since it may be anything."""
    first: JSON = error.errors()[0] if error.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:] if not str(part).startswith("function-"))
    message = str(first.get("msg", "the request is not valid"))
    if first.get("type") == "extra_forbidden":
        message = "unknown field"
    if first.get("type") == "json_invalid":
        where, message = "", "the body is not JSON"
    text = f"{where[:200]}: {message}" if where else message
    return _api_error(
        request, ApiError(400, text.encode("utf-8", "replace").decode(), param=where[:200] or None)
    )


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Any:
    """OpenAI's chat completions."""
    service = service_of(request)
    served = service.model(body.model)
    planned = openai.plan_chat_request(served, body, service.limits, client_of(request))
    if not body.stream:
        return JSONResponse(await unless_gone(request, openai.chat_answer(served, planned, body)))
    chunks = openai.chat_chunks(served, planned, body)
    return await event_stream(request, _encoded(chunks), DONE)


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Any:
    """OpenAI's completions: the model continues a text."""
    service = service_of(request)
    served = service.model(body.model)
    planned = openai.plan_completions(served, body, service.limits, client_of(request))
    if not body.stream:
        return JSONResponse(await unless_gone(request, openai.completion_answer(served, planned, body)))
    chunks = openai.completion_chunks(served, planned, body)
    return await event_stream(request, _encoded(chunks), DONE)


async def _encoded(chunks: AsyncIterator[JSON]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield openai.sse(chunk)


@router.post("/v1/responses")
async def create_response(request: Request, body: responses.ResponseRequest) -> Any:
    """OpenAI's responses, without memory: each request brings its whole conversation."""
    service = service_of(request)
    served = service.model(body.model)
    planned = responses.plan_response(served, body, service.limits, client_of(request))
    if not body.stream:
        return JSONResponse(await unless_gone(request, responses.response_answer(served, planned, body)))
    return await event_stream(request, responses.response_events(served, planned, body))


@router.post("/v1/messages")
async def create_message(request: Request, body: messages.MessagesRequest) -> Any:
    """Anthropic's messages."""
    service = service_of(request)
    served = service.model(body.model)
    planned = messages.plan_messages(served, body, service.limits, client_of(request))
    if not body.stream:
        return JSONResponse(await unless_gone(request, messages.message_answer(served, planned)))
    return await event_stream(request, messages.message_events(served, planned))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: messages.CountRequest) -> Any:
    """Tokens of a conversation."""
    served = service_of(request).model(body.model)
    return {"input_tokens": messages.count(served, body)}


@router.get("/v1/models")
async def list_models(request: Request) -> Any:
    """The models that are served."""
    return {"object": "list", "data": [_model_card(model) for model in service_of(request).models.values()]}


@router.get("/v1/models/{name}")
async def get_model(request: Request, name: str) -> Any:
    """One model."""
    return _model_card(service_of(request).model(name))


def _model_card(served: ServedModel) -> JSON:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "onesitting",
        "context_length": served.context_length,
        "defaults": served.defaults,
    }


@router.post("/v1/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Any:
    """Mean-pooled hidden states: similar texts are near, but the model was not trained for it."""
    served = service_of(request).model(body.model)
    all_ids = openai.ids_of(served, body.input, "input")
    for ids in all_ids:
        if not 0 < len(ids) <= served.context_length:
            raise ApiError(
                400, f"a text of {len(ids)} tokens; 1 to {served.context_length} are possible", param="input"
            )
    loop = asyncio.get_running_loop()
    vectors = [await loop.run_in_executor(served.embedder, served.embed, ids) for ids in all_ids]
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    n_tokens = sum(map(len, all_ids))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse(
        {"object": "list", "model": served.name, "data": data, "usage": usage, "pooling": "mean"}
    )


def _packed(vector: list[float], encoding: str | None) -> list[float] | str:
    if encoding != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


@router.get("/healthz")
async def healthz() -> Any:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> Any:
    """Every engine takes requests."""
    service = service_of(request)
    if service.is_draining or not all(model.engine.is_alive for model in service.models.values()):
        raise ApiError(503, "not ready", retry_after_s=5)
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return PlainTextResponse(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


# The page's files are read once, by names that stand here: no request names a file.
_PAGE = {
    path: ((resources.files("onesitting.server") / "page" / name).read_bytes(), kind)
    for path, name, kind in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/page.css", "page.css", "text/css; charset=utf-8"),
        ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    )
}


@router.get("/", include_in_schema=False)
@router.get("/page.css", include_in_schema=False)
@router.get("/page.js", include_in_schema=False)
async def page(request: Request) -> Response:
    """The chat page."""
    content, kind = _PAGE[request.url.path]
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
