"""Routes that answer most requests without FastAPI.

To read a request and to write an answer, FastAPI takes longer than ranking a list of a small
catalogue. So a route may have a function that answers well-formed requests itself. FastAPI
documents the route, answers all other requests, and says what is wrong with them.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response | None]]
"""Answers a request; None leaves it to FastAPI."""
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def directly(answer: Answer) -> Callable[[Endpoint], Endpoint]:
    """Decorator: try `answer` before the endpoint; works in routers with `DirectRoute`s."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.answer = answer  # type: ignore[attr-defined]
        return endpoint

    return mark


class DirectRoute(APIRoute):
    """A route whose endpoint may be decorated with `directly`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        answer: Answer | None = getattr(self.endpoint, "answer", None)
        if answer is None or scope["method"] not in (self.methods or ()):
            return await super().handle(scope, receive, send)
        request = Request(scope, receive)
        response = await answer(request)
        if response is not None:
            return await response(scope, receive, send)
        return await super().handle(scope, _replay(request), send)


def _replay(request: Request) -> Receive:
    """`receive` that begins with the body which `request` has read, if it has."""
    receive = request.receive
    body: bytes | None = getattr(request, "_body", None)
    if body is None:
        return receive
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
