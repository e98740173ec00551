"""The HTTP service: receives events, answers with recommendations."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from jaxrec.data.graph import ITEM
from jaxrec.errors import ConfigError
from jaxrec.ranking.context import Step
from jaxrec.ranking.steps import Feedback
from jaxrec.serving.http.middleware import (
    BodyLimit,
    RequestTimer,
    add_problem_handlers,
    admission,
)
from jaxrec.serving.http.schemas import (
    EventRequest,
    Interest,
    InterestMovement,
    ModelResponse,
    Problem,
    ProfileEvent,
    ProfileResponse,
    RecommendationsResponse,
    RecommendedItemResponse,
    RecordedResponse,
    SearchRequest,
)
from jaxrec.serving.http.service import DAY, LiveService
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.live.recommendation_builder import LISTS
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.base import LiveEvent

MAX_EVENTS, MAX_BODY = 1000, 2**20  # per request; bytes
PAGE = Path(__file__).parent.parent / "web" / "index.html"
PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 413, 422, 429, 503), PROBLEM)

UserId = Annotated[str, PathParameter(min_length=1, max_length=256, examples=["A1YJEY40YUW4SE"])]

user_routes = APIRouter()  # behind the API key and the rate limit
operation_routes = APIRouter()  # open to everyone


def create_app(
    run: Path, options: LiveOptions | None = None, strategy: Sequence[Step] = (Feedback(),)
) -> FastAPI:
    """Make the ASGI application that serves a run."""
    options = options or LiveOptions()
    service = LiveService(run, options, strategy)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(service.watch_run()),
            asyncio.create_task(service.record_batcher.run()),
            asyncio.create_task(service.list_batcher.run()),
            asyncio.create_task(service.expire_documents()),
        ]
        yield
        for task in tasks:
            task.cancel()
        service.executor.shutdown()  # waits for the present batch
        service.store.close()

    app = FastAPI(
        title="jaxrec",
        description="Recommendations that follow a user's interest, event by event.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY)
    app.add_middleware(RequestTimer, seconds=service.request_seconds)
    add_problem_handlers(app)
    app.include_router(user_routes, dependencies=[Depends(admission(options))], responses=PROBLEMS)
    app.include_router(operation_routes)
    return app


def serve_http(run: Path, options: LiveOptions, strategy: Sequence[Step] = (Feedback(),)) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests already received.

    Raises:
        ConfigError: `options.http` is not HOST:PORT.
    """
    host, separator, port = options.http.rpartition(":")
    if not separator or not port.isdigit():
        raise ConfigError(f"--http {options.http}: write HOST:PORT, such as :8080")
    app = create_app(run, options, strategy)
    uvicorn.run(app, host=host or "0.0.0.0", port=int(port), access_log=False)


@user_routes.post("/events", tags=["events"])
async def record(request: Request, events: EventRequest | list[EventRequest]) -> RecordedResponse:
    """Record one event, or up to 1,000. Accepted events are durable when this answers.

    The outcome of an event is `accepted`, `duplicate` (its `event_id` is known) or `too_late` (it
    is older than the events that the service no longer keeps one by one).
    """
    service = service_of(request)
    listed = events if isinstance(events, list) else [events]
    user_events = parse_events(listed, service.ready_engine)
    outcomes = await service.record_batcher.submit(user_events) if user_events else []
    for outcome in outcomes:
        service.outcomes.labels(outcome).inc()
    return RecordedResponse(outcomes=outcomes)


@user_routes.get("/users/{user_id:path}/recommendations", tags=["users"])
async def recommend(
    request: Request,
    user_id: UserId,
    k: Annotated[int, Query(ge=1, le=LISTS[-1], description="length of the list")] = 10,
    target: Annotated[str, Query(max_length=100, description="`item`, `brand` ...")] = ITEM,
    where: Annotated[
        str, Query(max_length=4000, description="condition on the items", examples=["price < 50"])
    ] = "",
    context: Annotated[
        str, Query(max_length=100, description="event type to predict, such as `buy`")
    ] = "",
) -> RecommendationsResponse:
    """Recommend items, brands or other nodes to a user, known or new, as of the last event."""
    return await answer_list(request, user_id, ListRequest(k, target, where, event_type=context))


@user_routes.post("/query", tags=["users"])
async def search(request: Request, query: SearchRequest) -> RecommendationsResponse:
    """Recommend items that match words as well as the user's interest."""
    settings = ListRequest(query.k, where=query.where, words=query.words, strength=query.strength)
    return await answer_list(request, query.user_id, settings)


@user_routes.get("/users/{user_id:path}/profile", tags=["users"])
async def profile(
    request: Request,
    user_id: UserId,
    last: Annotated[
        int, Query(ge=1, le=1000, description="events over which `change` is measured")
    ] = 5,
    top: Annotated[int, Query(ge=1, le=100, description="interests per type")] = 5,
) -> ProfileResponse:
    """Describe a user's present interests, and how the last events changed them."""
    service = service_of(request)
    return await service.call(profile_response, service.ready_engine, user_id, last, top)


@user_routes.delete("/users/{user_id:path}", status_code=204, tags=["users"])
async def delete(request: Request, user_id: UserId) -> None:
    """Delete everything stored about a user."""
    service = service_of(request)
    await service.call(service.store.delete, user_id)


@user_routes.get("/model", tags=["operation"])
async def model(request: Request) -> ModelResponse:
    """Describe the served model: event types, targets, strategy."""
    engine = service_of(request).ready_engine
    event_types = engine.model.artifacts.event_type_names
    return ModelResponse(
        step=engine.model.step,
        items=engine.model.catalog.num_items - 1,
        event_types=list(event_types),
        feedback=[name for name in engine.builder.event_types if name not in event_types],
        strategy=[step.name for step in engine.builder.strategy],
        targets=[ITEM, *engine.model.profiled_types],
    )


@operation_routes.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Send the page that shows one user live."""
    return FileResponse(PAGE)


@operation_routes.get("/health/live", tags=["operation"])
async def alive() -> dict[Literal["status"], str]:
    """Answer as long as the process runs."""
    return {"status": "alive"}


@operation_routes.get("/health/ready", tags=["operation"], responses={503: PROBLEM})
async def ready(request: Request) -> dict[str, str | int]:
    """Answer 200 once the model is loaded and compiled, 503 until then."""
    return {"status": "ready", "step": service_of(request).ready_engine.model.step}


@operation_routes.get("/metrics", tags=["operation"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    content = generate_latest(service_of(request).registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


def service_of(request: Request) -> LiveService:
    """The service of the application that received a request."""
    return request.app.state.service


def parse_events(events: Sequence[EventRequest], engine: LiveEngine) -> list[UserEvent]:
    """Convert events to those of the engine.

    Raises:
        HTTPException: too many events (413), or an unknown event type or a wrong time (422).
    """
    if len(events) > MAX_EVENTS:
        raise HTTPException(413, f"{len(events):,} events in a request; send up to {MAX_EVENTS:,}")
    known = engine.model.artifacts.event_type_names
    user_events = []
    for number, event in enumerate(events):
        event_type = event.event or (known[0] if len(known) == 1 else None)
        if event_type not in engine.builder.event_types:
            names = ", ".join(engine.builder.event_types)
            raise HTTPException(422, f"events[{number}].event: send one of {names}")
        moment = event.timestamp if event.timestamp is not None else datetime.now(UTC)
        seconds = moment if isinstance(moment, int) else int(moment.timestamp())
        if not 0 <= seconds <= time.time() + DAY:  # later events would then all be too late
            raise HTTPException(
                422, f"events[{number}].timestamp: send a time since 1970, not in the future"
            )
        live_event = LiveEvent(seconds, event.item_id, event_type, event.event_id)
        user_events.append(UserEvent(event.user_id, live_event))
    return user_events


async def answer_list(
    request: Request, user_id: str, settings: ListRequest
) -> RecommendationsResponse:
    """Rank a list in the next batch and convert it to a response."""
    service = service_of(request)
    engine = service.ready_engine
    answer: RecommendationList = await service.list_batcher.submit((user_id, settings))
    return RecommendationsResponse(
        user_id=answer.user_id,
        target=answer.target,
        items=[RecommendedItemResponse(**item._asdict()) for item in answer.items],
        events=answer.events,
        approximate=answer.approximate,
        model=str(engine.model.step),
    )


def profile_response(engine: LiveEngine, user_id: str, last: int, top: int) -> ProfileResponse:
    """Compute a user's profile and convert it to a response."""
    document = engine.document(user_id)
    events = sorted((*document.events, *document.feedback), key=lambda event: event.time)
    numbers = [engine.updater.item_number.get(event.item_id, 0) for event in events]
    titles = engine.model.index.labels(np.array(numbers, np.int64))
    interests = engine.profile(document, last=last, top=top).drop("user_id", "before").to_dicts()
    node_type, names, weights = engine.interest_history(document)
    return ProfileResponse(
        user_id=user_id,
        interests=[Interest(**row) for row in interests],
        movement=InterestMovement(type=node_type, names=names, weights=weights.tolist()),
        events=[
            ProfileEvent(time=e.time, item_id=e.item_id, event_type=e.event_type, title=title)
            for e, title in zip(events, titles, strict=True)
        ],
        truncated=document.truncated,
    )
