"""What every request passes: API key, rate limit, size limit, error responses, timing."""

import logging
import time
from collections.abc import Callable
from secrets import compare_digest
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from prometheus_client import Histogram
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.errors import InputError, StoreError
from jaxrec.serving.options import LiveOptions

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level


def add_problem_handlers(app: FastAPI) -> None:
    """Answer errors as application/problem+json (RFC 9457)."""

    def problem(
        status: int, title: str, detail: Any, headers: Any = None, **more: Any
    ) -> JSONResponse:
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        return JSONResponse(content | more, status, headers, media_type="application/problem+json")

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> JSONResponse:
        return problem(error.status_code, "request refused", error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(map(str, e["loc"])), "problem": e["msg"]} for e in error.errors()
        ]
        return problem(422, "invalid request", errors[0]["problem"], errors=errors)

    @app.exception_handler(StoreError)
    async def store_failed(request: Request, error: StoreError) -> JSONResponse:
        logger.error("%s %s failed: %s", request.method, request.url.path, error)
        advice = "send the request again; events with an event_id count once"
        return problem(503, "the store fails", advice, {"Retry-After": "1"})

    @app.exception_handler(InputError)
    async def unusable(request: Request, error: InputError) -> JSONResponse:
        logger.warning("%s %s refused: %s", request.method, request.url.path, error)
        return problem(422, "invalid request", str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "internal error", "see the log of the server")


def admission(options: LiveOptions) -> Callable:
    """Make the dependency that checks rate and API key."""
    limiter = MovingWindowRateLimiter(MemoryStorage())
    limit = RateLimitItemPerSecond(options.rate)
    key = options.key

    async def admit(request: Request, x_api_key: Annotated[str | None, Header()] = None) -> None:
        client = request.client.host if request.client else ""
        if options.rate and not await limiter.hit(limit, client):
            raise HTTPException(429, f"send at most {options.rate} requests per second")
        sent = (x_api_key or "").encode("latin-1")  # the bytes as received
        if key and not compare_digest(sent, key.encode()):
            raise HTTPException(401, "send the API key in the header X-API-Key")

    return admit


class BodyLimit:
    """Refuses bodies of more than `max_bytes`, whatever their Content-Length says."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""
        size = 0

        async def limited_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise HTTPException(413, f"the body is larger than {self.max_bytes:,} bytes")
            return message

        await self.app(scope, limited_receive, send)


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
            route = getattr(scope.get("route"), "path_format", "none")
            labels = (scope["method"], route, str(status))
            self.seconds.labels(*labels).observe(time.perf_counter() - start)
