"""What all endpoints share: the models, the limits, the keys."""

import asyncio
import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from onesitting.errors import UserError
from onesitting.server.errors import ApiError, error_body
from onesitting.server.generation import Limits
from onesitting.server.metrics import Metrics
from onesitting.server.models import ServedModel

T = TypeVar("T")

KEYS_VARIABLE = "ONESITTING_API_KEYS"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """SHA-256 of each API key -> whose it is; empty: no key is needed.

    A plain hash is enough for keys that are 256 random bits: there is no list of likely ones to try.
    """

    owners: Mapping[str, str] = field(default_factory=dict[str, str])

    def owner(self, key: str) -> str | None:
        """Whose key this is. Compares in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        found = [name for known, name in self.owners.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


def new_key() -> tuple[str, str]:
    """(a key, the hash that a key file holds)."""
    key = f"os-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """Keys of a file (lines `NAME SHA256`, # begins a comment) and of ONESITTING_API_KEYS (keys, comma between).

    Raises UserError with file and line for anything else.
    """
    owners: dict[str, str] = {}
    for number, key in enumerate(filter(None, environment.get(KEYS_VARIABLE, "").split(",")), 1):
        owners[hashlib.sha256(key.strip().encode()).hexdigest()] = f"environment-{number}"
    if path is not None:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-keys {path}: {error}") from None
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or len(words[1]) != 64 or set(words[1].lower()) - set("0123456789abcdef"):
                raise UserError(
                    f"{path}, line {number}: NAME and the SHA-256 of a key in hex expected; "
                    "`onesitting serve --new-key NAME` makes both"
                )
            owners[words[1].lower()] = words[0]
        if not owners:
            raise UserError(f"--api-keys {path} holds no key; `onesitting serve --new-key NAME` makes one")
    return Keys(owners=owners)


@dataclass(kw_only=True)
class Service:
    """A running server's state."""

    models: dict[str, ServedModel]
    keys: Keys
    limits: Limits
    metrics: Metrics
    max_body_bytes: int = 4 << 20
    hosts: frozenset[str] = frozenset()
    """Values of the Host header that are answered; empty: all."""
    origins: frozenset[str] = frozenset()
    """Other sites whose pages may use the server from a browser."""
    is_draining: bool = False

    def model(self, name: str) -> ServedModel:
        """The model of that name; ApiError with the names that exist."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404,
                f"there is no model '{name[:100]}'; served here: {known}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return request.app.state.service


def client_of(request: Request) -> str:
    """Whose line a request waits in: the owner of its key, else the address it came from."""
    owner = request.scope.get("key_owner")
    return owner or (request.client.host if request.client else "")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client closed the connection")
        return task.result()
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def event_stream(
    request: Request, events: AsyncIterator[bytes], last: bytes = b""
) -> StreamingResponse:
    """A stream of server-sent events. What goes wrong before the first event is an ordinary error answer."""
    first = await unless_gone(request, anext(events))
    path = request.url.path

    async def body() -> AsyncIterator[bytes]:
        try:
            yield first
            async for event in events:
                yield event
            if last:
                yield last
        except ApiError as error:
            yield _error_event(path, error)
        finally:
            await events.aclose()  # pyright: ignore[reportAttributeAccessIssue]  # an async generator

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


def _error_event(path: str, error: ApiError) -> bytes:
    from onesitting.server.openai import sse

    return sse(error_body(path, error), "error" if path.startswith("/v1/messages") else "")
