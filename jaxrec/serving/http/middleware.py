"""What every request passes: rate limit, API key, size and time limits, headers, timing."""

import asyncio
import time
from secrets import compare_digest
from typing import get_args

from fastapi import HTTPException
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.serving.http.problems import refusal, route_of
from jaxrec.serving.options import LiveOptions, Role

MAX_BODY = 2**20  # bytes of one request
MAX_BODIES = 64 * 2**20  # bytes of all requests that wait for their answers
BODY_SECONDS = 10.0  # to receive a body
OPEN_PATHS = ("/", "/health/live", "/health/ready", "/metrics")  # these need no key
CLOSE = {"Connection": "close"}  # the rest of the body is not read
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Admission:
    """Refuses requests beyond the rate limit or without the key, before their body is read."""

    def __init__(self, app: ASGIApp, options: LiveOptions):
        self.app, self.options = app, options
        self.keys = {role: options.keys(role) for role in get_args(Role)}
        self.limiter = MovingWindowRateLimiter(MemoryStorage())
        self.has_keys = options.has_keys
        self.limit = RateLimitItemPerSecond(options.rate) if options.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                await self.check(scope)
            except HTTPException as error:
                return await refusal(error)(scope, receive, send)
        return await self.app(scope, receive, send)

    async def check(self, scope: Scope) -> None:
        """Raise an HTTPException: 429 beyond the rate limit, 401 without the right key."""
        host, _ = scope["client"] or ("", 0)
        if self.limit and not await self.limiter.hit(self.limit, host):
            raise HTTPException(
                429, f"send at most {self.options.rate} requests per second", {"Retry-After": "1"}
            )
        role = role_of(scope["method"], scope["path"])
        is_allowed = any(compare_digest(sent_key(scope), key) for key in self.keys[role])
        if self.has_keys and not is_allowed:
            raise HTTPException(
                401,
                f"send the key to {role} in the header X-API-Key",
                {"WWW-Authenticate": "Bearer"},
            )


def role_of(method: str, path: str) -> Role:
    """What a request does to the data of users and items."""
    if method == "DELETE":
        return "delete"
    return "write" if path == "/events" or method in ("PUT", "PATCH") else "read"


def sent_key(scope: Scope) -> bytes:
    """The API key of a request as received; empty if there is none."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
    return key.encode("latin-1")


class BodyLimit:
    """Bounds the bytes of a body, of all bodies in the process, and the time to receive one."""

    def __init__(self, app: ASGIApp):
        self.app, self.held = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size = 0
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        complete = False

        async def limited_receive() -> Message:
            nonlocal size, complete
            if complete:  # a disconnection may take as long as the answer
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"the body was not complete after {BODY_SECONDS:g} s"
                raise HTTPException(408, detail, CLOSE) from None
            length = len(message.get("body", b""))
            complete = not message.get("more_body", False)
            size, self.held = size + length, self.held + length
            if size > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY:,} bytes", CLOSE)
            if self.held > MAX_BODIES:
                raise HTTPException(
                    503, "too many large requests are waiting", {"Retry-After": "1"}
                )
            return message

        try:
            await self.app(scope, limited_receive, send)
        finally:
            self.held -= size


class SafeHeaders:
    """Adds headers that keep a browser from running, framing or storing an answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class RequestTimer:
    """Records the seconds of every request by method, route and status."""

    def __init__(self, app: ASGIApp, seconds: Histogram):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def observed_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        finally:
            labels = (scope["method"], route_of(scope), str(status))
            self.seconds.labels(*labels).observe(time.perf_counter() - start)
