"""The gate in front of every endpoint: host, origin, key, content type, size; and the record of each answer.

A plain ASGI middleware: what is refused here never reaches a parser, and a stream's disconnects reach the endpoint.
"""

import asyncio
import json
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from onesitting.server.errors import ApiError, error_body
from onesitting.server.service import Service

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/", "/page.css", "/page.js"})
"""Answered without a key: they say nothing about anybody. The page asks for a key itself."""

BODY_TIMEOUT_S = 30.0
"""A client that has not sent its body by then is not waited for."""

MAX_HEADER_BYTES = 16_384
"""Names and values together; the parser bounds only headers that arrive in several pieces."""

ROUTES = frozenset(
    {*OPEN_PATHS, "/metrics", "/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions",
     "/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"}
)  # fmt: skip
"""Known routes; others share one label, so that nobody can fill the metrics with names."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there are none here
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.service, scope, send)
        try:
            if await exchange.answer_preflight():
                return
            exchange.check()
            body = await _read_body(scope, receive, self.service.max_body_bytes)
            await self.app(scope, _replay(body, receive), exchange.send)
        except ApiError as error:
            await exchange.refuse(error)
        except Exception:
            await exchange.refuse(ApiError(500, "internal error"))
            raise
        finally:
            exchange.record()


class _Exchange:
    """One request and its answer."""

    def __init__(self, service: Service, scope: Any, send: Any) -> None:
        self.service, self.scope, self._send = service, scope, send
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.path: str = scope["path"]
        self.id = uuid.uuid4().hex
        self.status = 499
        self.started = time.monotonic()
        self.first_byte: float | None = None

    def check(self) -> None:
        """Raise ApiError for a request that must not go on."""
        if self.scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(505, "this server speaks HTTP/1.1")
        if sum(len(name) + len(value) for name, value in self.scope["headers"]) > MAX_HEADER_BYTES:
            raise ApiError(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes")
        hosts = self.service.hosts
        names = [value for name, value in self.scope["headers"] if name.lower() == b"host"]
        if len(names) > 1 or (hosts and _host_name(self.headers.get("host", "")) not in hosts):
            # A page of another site whose name was pointed at this machine would come with its own name.
            raise ApiError(421, "the Host header names another server")
        if not self._origin_is_allowed():
            raise ApiError(403, "requests from pages of other sites are off; allow one with --cors-origin")
        if self.service.keys.owners and self.path not in OPEN_PATHS:
            self.scope["key_owner"] = self._key_owner()
        if self.scope["method"] in ("POST", "PUT", "PATCH"):
            kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "the Content-Type must be application/json")

    def _origin_is_allowed(self) -> bool:
        origin = self.headers.get("origin")
        if origin is None or origin in self.service.origins:
            return True
        try:
            return urlsplit(origin).netloc == self.headers.get("host")
        except ValueError:  # of brackets that do not close
            return False

    def _key_owner(self) -> str:
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else self.headers.get("x-api-key", "")
        owner = self.service.keys.owner(key) if key else None
        if owner is None:
            what = "this API key is not known" if key else "an API key is needed"
            raise ApiError(401, f"{what}; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        return owner

    async def answer_preflight(self) -> bool:
        """Answer a browser's question whether another site's page may ask; False if it is none."""
        origin = self.headers.get("origin")
        if self.scope["method"] != "OPTIONS" or origin not in self.service.origins:
            return False
        asked = self.headers.get("access-control-request-headers", "authorization, content-type, x-api-key")
        await self.send({"type": "http.response.start", "status": 204, "headers": [
            (b"access-control-allow-methods", b"GET, POST"),
            # Clients send headers of their own; the page's site is one that whoever runs this server named.
            (b"access-control-allow-headers", asked.encode("latin-1", "replace")),
            (b"access-control-max-age", b"600"),
        ]})  # fmt: skip
        await self.send({"type": "http.response.body", "body": b""})
        return True

    async def send(self, message: Any) -> None:
        """Pass a message on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *_HEADERS, (b"x-request-id", self.id.encode())]
            origin = self.headers.get("origin")
            if origin in self.service.origins and origin is not None:
                headers += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
                headers.append((b"access-control-expose-headers", b"x-request-id, retry-after"))
            message = {**message, "headers": headers}
        elif self.first_byte is None and message.get("body"):
            self.first_byte = time.monotonic()
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, if nothing was answered yet."""
        if self.status != 499 or error.status == 499:
            return
        body = json.dumps(error_body(self.path, error)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def record(self) -> None:
        """Count and log the answer; prompts, replies and keys are never logged."""
        route = self.path if self.path in ROUTES else "other"
        record = {
            "request_id": self.id,
            "method": self.scope["method"] if self.scope["method"] in ("GET", "POST", "OPTIONS") else "other",
            "route": route,
            "status": self.status,
            "client": self.scope.get("key_owner") or (self.scope.get("client") or [""])[0],
        }
        self.service.metrics.answered(record, self.started, self.first_byte)


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _read_body(scope: Any, receive: Any, max_bytes: int) -> bytes:
    """The whole body; ApiError when it is too large or does not come."""
    too_large = ApiError(413, f"the request's body is larger than {max_bytes} bytes")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(499, "the client closed the connection")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > max_bytes:
                    raise too_large
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the request's body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body, then what the connection has to say."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
