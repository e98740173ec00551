"""The routes of the HTTP service: requests in, responses out."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from jaxrec.data.graph import ITEM
from jaxrec.errors import StoreError
from jaxrec.serving.forgetting import summary
from jaxrec.serving.http.direct import DirectRoute, directly
from jaxrec.serving.http.page import PAGE, content_policy
from jaxrec.serving.http.problems import problem
from jaxrec.serving.http.schemas import (
    DeletionProblem,
    DeletionReport,
    EventOutcome,
    EventRequest,
    Events,
    Interest,
    InterestMovement,
    ItemDetails,
    ListQuery,
    ModelResponse,
    Problem,
    ProfileEvent,
    ProfileResponse,
    RecommendationsResponse,
    RecordedResponse,
    SearchRequest,
    Text,
)
from jaxrec.serving.http.service import LiveService, service_of
from jaxrec.serving.http.upkeep import DAY
from jaxrec.serving.ids import is_id
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.base import LiveEvent

PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 404, 408, 413, 422, 429, 503), PROBLEM
)

UserId = Annotated[Text, PathParameter(examples=["A1YJEY40YUW4SE"])]

NO_DETAILS = dict.fromkeys(ItemDetails.model_fields)
EVENTS: TypeAdapter[EventRequest | list[EventRequest]] = TypeAdapter(Events)

user_routes = APIRouter(route_class=DirectRoute)  # behind the API key and the rate limit
operation_routes = APIRouter()  # open to everyone


async def record_directly(request: Request) -> Response | None:
    """`record` for events that are valid JSON."""
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        events = EVENTS.validate_json(await request.body())
    except (ValidationError, ClientDisconnect):
        return None
    return await record(request, events)


@user_routes.post("/events", tags=["events"], response_model=RecordedResponse)
@directly(record_directly)
async def record(request: Request, events: Events) -> Response:
    """Record one event, or up to 1,000. Accepted events are durable when this answers.

    The outcome of an event is `accepted`, `duplicate` (its `event_id` is known), `too_late` (it is
    older than the events that the service no longer keeps one by one, or than the user's deletion)
    or `failed` (what is stored of its user cannot be read; delete the user to start again).
    """
    service = service_of(request)
    listed = events if isinstance(events, list) else [events]
    user_events = parse_events(listed, service)
    recorded = await service.record_batcher.submit(user_events) if user_events else []
    failures = [outcome for outcome in recorded if isinstance(outcome, StoreError)]
    if failures and len(failures) == len(recorded):
        raise failures[0]
    outcomes: list[EventOutcome] = [
        "failed" if isinstance(outcome, StoreError) else outcome for outcome in recorded
    ]
    for outcome in outcomes:
        service.metrics.outcomes.labels(outcome).inc()
    return json_response({"outcomes": outcomes})


async def recommend_directly(request: Request) -> Response | None:
    """`recommend` with valid parameters."""
    user_id = request.path_params["user_id"]
    if not is_id(user_id):
        return None
    try:
        query = ListQuery.model_validate(dict(request.query_params))
    except ValidationError:
        return None
    return await recommend(request, user_id, query)


@user_routes.get(
    "/users/{user_id:path}/recommendations",
    tags=["users"],
    response_model=RecommendationsResponse,
    responses={403: PROBLEM},
)
@directly(recommend_directly)
async def recommend(
    request: Request, user_id: UserId, query: Annotated[ListQuery, Query()]
) -> Response:
    """Recommend items, brands or other nodes to a user, known or new, as of the last event."""
    settings = ListRequest(query.k, query.target, query.where, event_type=query.context)
    if not query.explain:
        return await answer_list(request, user_id, settings)
    service = service_of(request)
    if not service.explains:
        raise HTTPException(403, "explanations are off: start the service with --explain")
    engine = service.ready_engine
    answer, reasons = await service.explain(user_id, settings)
    content = list_content(engine, answer)
    for entry, reason in zip(content["items"], reasons, strict=True):
        entry["explanation"] = reason
    return json_response(content)


@user_routes.post("/query", tags=["users"], response_model=RecommendationsResponse)
async def search(request: Request, query: SearchRequest) -> Response:
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
    stored = service.stored_id(user_id)
    made = await service.read(profile_response, service.ready_engine, stored, last, top)
    return made.model_copy(update={"user_id": user_id})


@user_routes.delete(
    "/users/{user_id:path}",
    status_code=204,
    tags=["users"],
    responses={200: {"model": DeletionReport}, 503: PROBLEM | {"model": DeletionProblem}},
)
async def delete(
    request: Request,
    user_id: UserId,
    report: Annotated[
        bool, Query(description="answer 200 with what was removed from each place")
    ] = False,
) -> Response:
    """Delete everything stored about a user, also in the outputs that the service was pointed at.

    If this answers 503, some of it may remain: send the request again.
    """
    places = await service_of(request).forget(user_id)
    content = summary(places, users=1)
    if content["complete"]:
        return json_response(content) if report else Response(status_code=204)
    kinds = ", ".join(sorted({place.kind for place in places if place.failure}))
    detail = f"the user is not removed from every place ({kinds}); send the request again"
    return problem(503, "request refused", detail, **({"report": content} if report else {}))


@user_routes.get("/model", tags=["operation"])
async def model(request: Request) -> ModelResponse:
    """Describe the served model: event types, targets, strategy."""
    engine = service_of(request).ready_engine
    event_types = engine.model.artifacts.event_type_names
    return ModelResponse(
        step=engine.model.step,
        items=engine.num_items,
        event_types=list(event_types),
        feedback=[name for name in engine.builder.event_types if name not in event_types],
        strategy=[step.name for step in engine.builder.strategy],
        targets=[ITEM, *engine.model.profiled_types],
        words=engine.model.words.available,
        forecast=engine.model.decoder.steps if engine.model.decoder else 0,
        explain=service_of(request).explains,
        popularity=engine.shop_items.has_popular,
    )


@operation_routes.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Send the page that shows one user live."""
    policy = content_policy(PAGE, service_of(request).options.image_hosts)
    return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": policy})


@operation_routes.head("/health/live", include_in_schema=False)
@operation_routes.get("/health/live", tags=["operation"])
async def alive() -> dict[Literal["status"], str]:
    """Answer as long as the process runs."""
    return {"status": "alive"}


@operation_routes.head("/health/ready", include_in_schema=False)
@operation_routes.get("/health/ready", tags=["operation"], responses={503: PROBLEM})
async def ready(request: Request) -> dict[str, str | int]:
    """Answer 200 once the model is compiled and while the store can be read and written, else 503.

    `reload` says why a newer checkpoint is not served, or `ok`; the previous one is served then.
    """
    service = service_of(request)
    step = service.ready_engine.model.step
    if service.store_failure:
        raise HTTPException(503, service.store_failure, {"Retry-After": "5"})
    return {"status": "ready", "step": step, "reload": service.reload_failure or "ok"}


@operation_routes.get("/metrics", tags=["operation"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    # some are read from the store, which may make its reader wait
    content = await asyncio.to_thread(generate_latest, service_of(request).metrics.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


def parse_events(events: Sequence[EventRequest], service: LiveService) -> list[UserEvent]:
    """Convert events to those of the engine, with the ids under which users are kept.

    Raises:
        HTTPException: 422 for an unknown event type or a time in the future.
    """
    engine = service.ready_engine
    known = engine.model.artifacts.event_type_names
    user_events = []
    for number, event in enumerate(events):
        event_type = event.event or (known[0] if len(known) == 1 else None)
        if event_type not in engine.builder.event_types:
            names = ", ".join(engine.builder.event_types)
            raise HTTPException(422, f"events[{number}].event: send one of {names}")
        seconds = int(time.time()) if event.timestamp is None else event.timestamp
        if seconds > time.time() + DAY:  # later events would then all be too late
            raise HTTPException(422, f"events[{number}].timestamp: send a time not in the future")
        live_event = LiveEvent(seconds, event.item_id, event_type, event.event_id)
        user_events.append(UserEvent(service.stored_id(event.user_id), live_event))
    return user_events


async def answer_list(request: Request, user_id: str, settings: ListRequest) -> Response:
    """Rank a list in the next batch; answers with a `RecommendationsResponse`."""
    service = service_of(request)
    engine = service.ready_engine
    return json_response(list_content(engine, await service.recommend(user_id, settings)))


def list_content(engine: LiveEngine, answer: RecommendationList) -> dict[str, Any]:
    """A list as a `RecommendationsResponse`."""
    return {
        "user_id": answer.user_id,
        "target": answer.target,
        "items": item_entries(engine, answer),
        "events": answer.events,
        "approximate": answer.approximate,
        "model": str(engine.model.step),
    }


def item_entries(engine: LiveEngine, answer: RecommendationList) -> list[dict[str, Any]]:
    """The entries of a list, each a `RecommendedItemResponse`."""
    details: Iterable[dict[str, Any]] = repeat(NO_DETAILS)
    if answer.target == ITEM:
        numbers = [engine.updater.item_number.get(item.id, 0) for item in answer.items]
        details = engine.shop_items.details_of(numbers)
    return [
        NO_DETAILS | own | item._asdict() for item, own in zip(answer.items, details, strict=False)
    ]


def json_response(content: dict[str, Any]) -> Response:
    """A response of content that has the documented form, so that nothing needs to check it."""
    return Response(to_json(content, inf_nan_mode="null"), media_type="application/json")


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
