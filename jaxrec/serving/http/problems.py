"""Errors as application/problem+json (RFC 9457).

The log holds routes and exception types only, because ids, conditions and words come from users.
"""

import logging
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxrec.errors import InputError, StoreError

MAX_ERRORS = 10  # in one response

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level


def problem(status: int, title: str, detail: Any, headers: Any = None, **more: Any) -> JSONResponse:
    """The response that says why a request failed."""
    content = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(content | more, status, headers, media_type="application/problem+json")


def refusal(error: HTTPException) -> JSONResponse:
    """The response to an `HTTPException`."""
    return problem(error.status_code, "request refused", error.detail, error.headers)


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every exception that is expected with a problem."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(map(str, e["loc"])), "problem": e["msg"]}
            for e in error.errors()[:MAX_ERRORS]
        ]
        return problem(422, "invalid request", errors[0]["problem"], errors=errors)

    @app.exception_handler(StoreError)
    async def store_failed(request: Request, error: StoreError) -> JSONResponse:
        request.app.state.service.metrics.store_errors.inc()
        logger.error("%s %s: the store fails: %s", request.method, route_of(request.scope), error)
        advice = "send the request again; events with an event_id count once"
        return problem(503, "the store fails", advice, {"Retry-After": "1"})

    @app.exception_handler(InputError)
    async def unusable(_: Request, error: InputError) -> JSONResponse:
        return problem(422, "invalid request", str(error))


class Defects:
    """Answers an exception that nothing expects with 500, and logs where it happened.

    Starlette would hand it on to the server, which logs its message with what users sent.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection (ASGI)."""
        has_begun = False

        async def observed_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, observed_send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            frames, kind = "".join(traceback.format_tb(error.__traceback__)), type(error).__name__
            logger.error("%s %s: %s in\n%s", scope["method"], route_of(scope), kind, frames)
            if not has_begun:
                answer = problem(500, "internal error", "see the log of the server")
                await answer(scope, receive, send)


def route_of(scope: Scope) -> str:
    """The path of a request with placeholders for its ids."""
    return getattr(scope.get("route"), "path_format", "none")
