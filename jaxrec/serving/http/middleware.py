"""What every request of the HTTP service passes: key and rate, size, errors, and the clock."""

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

from jaxrec.errors import StoreError
from jaxrec.serving.options import LiveOptions

logger = logging.getLogger("uvicorn.error")  # whose format and level the server sets


def problems(app: FastAPI) -> None:
    """Errors as problem+json (RFC 9457)."""

    def problem(
        status: int, title: str, detail: Any, headers: Any = None, **more: Any
    ) -> JSONResponse:
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        return JSONResponse(content | more, status, headers, media_type="application/problem+json")

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> JSONResponse:
        return problem(error.status_code, "refused", error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(map(str, e["loc"])), "problem": e["msg"]} for e in error.errors()
        ]
        return problem(422, "the request is not valid", errors[0]["problem"], errors=errors)

    @app.exception_handler(StoreError)
    async def unavailable(request: Request, error: StoreError) -> JSONResponse:
        logger.error("%s %s failed: %s", request.method, request.url.path, error)
        advice = "some of it may be recorded; send it again, with the same event_id"
        return problem(503, "the store fails", advice, {"Retry-After": "1"})

    @app.exception_handler(ValueError)
    async def unusable(request: Request, error: ValueError) -> JSONResponse:
        logger.warning("%s %s refused: %s", request.method, request.url.path, error)
        return problem(422, "the request cannot be met", str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "internal error", "the cause is in the log")


def guard(options: LiveOptions) -> Callable:
    """What a request has to pass: the key and the rate."""
    limiter = MovingWindowRateLimiter(MemoryStorage())
    limit = RateLimitItemPerSecond(options.rate)
    key = options.key

    async def admit(request: Request, x_api_key: Annotated[str | None, Header()] = None) -> None:
        client = request.client.host if request.client else ""
        if options.rate and not await limiter.hit(limit, client):
            raise HTTPException(429, f"more than {options.rate} requests a second")
        sent = (x_api_key or "").encode("latin-1")  # the bytes that came
        if key and not compare_digest(sent, key.encode()):
            raise HTTPException(401, "send the API key as X-API-Key")

    return admit


class BodyLimit:
    """Refuses bodies of more than `most` bytes, announced or not."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most:
                raise HTTPException(413, f"the body is larger than {self.most:,} bytes")
            return message

        await self.app(scope, counted, send)


class Observed:
    """Notes how long every request took, by route and status."""

    def __init__(self, app: ASGIApp, seconds: Histogram):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "none")
            labels = (scope["method"], route, str(status))
            self.seconds.labels(*labels).observe(time.perf_counter() - began)
