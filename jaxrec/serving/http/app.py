"""The HTTP service: events in, the next recommendations out.

Requests that arrive while a batch is computed make up the next one, so the load decides the size
of the batches and nobody waits for company. One thread does all computing and storing.
"""

import asyncio
import gc
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)

from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.data.graph import ITEM
from jaxrec.inference import loading
from jaxrec.ranking.context import Step
from jaxrec.ranking.steps import Feedback
from jaxrec.serving.http.middleware import BodyLimit, Observed, guard, problems
from jaxrec.serving.http.schemas import (
    EventIn,
    Interest,
    Movement,
    Problem,
    Profile,
    Recommendations,
    Recommended,
    Recorded,
    Seen,
    ServedModel,
    WordQuery,
)
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import RecommendationList
from jaxrec.serving.live.recommendation_builder import LISTS
from jaxrec.serving.live.recorder import Outcome, UserEvent
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import LiveEvent, open_store

logger = logging.getLogger("uvicorn.error")  # whose format and level the server sets

MAX_EVENTS, MAX_BODY = 1000, 2**20
MOST_WAITING = 10_000  # requests of a event_type
PAGE = Path(__file__).parent.parent / "web" / "index.html"
DAY, HOUR = 86_400, 3600
UserId = Annotated[str, InPath(min_length=1, max_length=256, examples=["A1YJEY40YUW4SE"])]
Asked = TypeVar("Asked")
Given = TypeVar("Given")


PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
PROBLEMS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 413, 422, 429, 503), PROBLEM)


class Wanted(NamedTuple):
    """What lists have in common that are made in one batch."""

    k: int
    target: str = ITEM
    where: str = ""
    event_type: str = ""
    words: str = ""
    strength: float = 0.5


class Batcher(Generic[Asked, Given]):
    """Calls `process` with what has been asked since it was last called."""

    def __init__(
        self,
        process: Callable[[list[Asked]], Sequence[Given | Exception]],
        executor: ThreadPoolExecutor,
        most: int,
        sizes: Histogram,
    ):
        self.process, self.executor, self.most, self.sizes = process, executor, most, sizes
        self.waiting: asyncio.Queue[tuple[Asked, asyncio.Future[Given]]] = asyncio.Queue()

    async def __call__(self, asked: Asked) -> Given:
        """The answer to one question; a queue that grows without end is refused."""
        if self.waiting.qsize() >= MOST_WAITING:
            raise HTTPException(503, "too many requests are waiting", {"Retry-After": "1"})
        future: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        await self.waiting.put((asked, future))
        return await future

    async def run(self) -> None:
        """RecommendationList for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.most and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            self.sizes.observe(len(batch))
            questions = [asked for asked, _ in batch]
            try:
                answers = await loop.run_in_executor(self.executor, self.process, questions)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a library in Rust is no Exception
                refusal = error if isinstance(error, Exception) else RuntimeError(str(error))
                answers = [refusal] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)


class Live:
    """The model being served, its store, and the batches in between."""

    def __init__(self, run: Path, options: LiveOptions, strategy: Sequence[Step]):
        self.run, self.options, self.strategy = run, options, strategy
        self.store = open_store(options.store_of(run))
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.registry = CollectorRegistry()
        self.online: LiveEngine | None = None  # None until it has compiled all its shapes
        self.served: tuple[int | None, bool] | None = None  # step, and whether it was calibrated
        self.seconds = Histogram(
            "jaxrec_request_seconds",
            "Time to answer a request",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
        )
        self.outcomes = Counter(
            "jaxrec_events", "Events by what became of them", ("outcome",), registry=self.registry
        )
        sizes = Histogram(
            "jaxrec_batch_size",
            "Requests that were computed together",
            registry=self.registry,
            buckets=BATCHES,
        )
        self.record = Batcher(self._record, self.executor, BATCHES[-1], sizes)
        self.recommend = Batcher(self._recommend, self.executor, BATCHES[-2], sizes)

    def load_better(self) -> LiveEngine:
        """The run's best model, warm; the one that is served, if it is the best."""
        offered = best_step(self.run), (self.run / checkpoint.CALIBRATION).exists()
        if self.online is not None and offered == self.served:
            return self.online
        online = LiveEngine(
            loading.load(self.run),
            self.store,
            window=self.options.window,
            strategy=self.strategy,
        )
        online.warm_up()
        self.served = offered
        logger.info("serving step %s of %s", online.model.step, self.run)
        return online

    @property
    def ready(self) -> LiveEngine:
        """The model; a request that comes too early is refused."""
        if self.online is None:
            raise HTTPException(503, "the model is still being loaded", {"Retry-After": "5"})
        return self.online

    async def call(self, function: Callable[..., Given], *arguments: Any) -> Given:
        """A function's result, computed where the batches are."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, function, *arguments)

    async def keep_up(self) -> None:
        """Load the model, then every better one; requests go on being served by the one before."""
        seen: set[str] = set()
        while True:
            try:
                found = (
                    *(self.run / "checkpoints").iterdir(),
                    *self.run.glob(checkpoint.CALIBRATION),
                )
                files = {path.name for path in found}
                if files != seen:  # to ask Orbax which is best takes long
                    self.online = await asyncio.to_thread(self.load_better)
                    # else the collector looks through all that stays, again and again, for .3 s
                    gc.unfreeze()  # the model before is to go
                    gc.collect()
                    gc.freeze()
                seen = files
            except Exception:
                logger.exception("the checkpoint cannot be loaded; the one before stays")
            await asyncio.sleep(self.options.refresh)

    async def tidy(self) -> None:
        """Delete the documents that are too old or too many."""
        while True:
            before = time.time() - DAY * self.options.keep_days
            try:
                deleted = await self.call(self.store.expire, before, self.options.keep_users)
                if deleted:
                    logger.info("deleted %d stale documents", deleted)
            except Exception:
                logger.exception("stale documents cannot be deleted now")
            await asyncio.sleep(HOUR)

    def _record(self, batches: list[list[UserEvent]]) -> list[list[Outcome]]:
        assert self.online is not None
        outcomes = iter(self.online.record([report for batch in batches for report in batch]))
        return [[next(outcomes) for _ in batch] for batch in batches]

    def _recommend(self, asked: list[tuple[str, Wanted]]) -> list[RecommendationList | Exception]:
        assert self.online is not None
        rows: dict[Wanted, list[int]] = defaultdict(list)
        for row, (_, wanted) in enumerate(asked):
            rows[wanted].append(row)
        answers: dict[int, RecommendationList | Exception] = {}
        for wanted, group in rows.items():
            users = list(dict.fromkeys(asked[row][0] for row in group))
            try:
                lists = self.online.recommend(users, **wanted._asdict(), now=int(time.time()))
                by_user = {answer.user_id: answer for answer in lists}
                answers |= {row: by_user[asked[row][0]] for row in group}
            except Exception as error:
                answers |= dict.fromkeys(group, error)
        return [answers[row] for row in range(len(asked))]


def best_step(run: Path) -> int | None:
    """The step of the checkpoint that serves best."""
    with checkpoint.open_checkpoints(run, read_only=True) as manager:
        return manager.best_step()


def create_app(
    run: Path, options: LiveOptions | None = None, strategy: Sequence[Step] = (Feedback(),)
) -> FastAPI:
    """The application that serves a run."""
    options = options or LiveOptions()
    live = Live(run, options, strategy)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(work())
            for work in (live.keep_up, live.record.run, live.recommend.run, live.tidy)
        ]
        yield
        for task in tasks:
            task.cancel()
        live.executor.shutdown()  # what was begun is finished
        live.store.close()

    app = FastAPI(
        title="jaxrec",
        description="Recommendations that follow a document's interest, event by event.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.state.live = live
    app.add_middleware(BodyLimit, most=MAX_BODY)
    app.add_middleware(Observed, seconds=live.seconds)
    problems(app)
    guarded = [Depends(guard(options))]
    app.include_router(shopping(live), dependencies=guarded, responses=PROBLEMS)
    app.include_router(operation(live))
    return app


def shopping(live: Live) -> APIRouter:
    """What shops and their documents ask for."""
    router = APIRouter()

    @router.post("/events", tags=["events"])
    async def record(events: EventIn | list[EventIn]) -> Recorded:
        """Record one event or up to 1,000; what is answered is durable.

        An event is a `duplicate` if its `event_id` is known, and `too_late` if it is older than
        the state behind which the user's kept events are folded.
        """
        user_events = user_events_of(events if isinstance(events, list) else [events], live.ready)
        outcomes = await live.record(user_events) if user_events else []
        for outcome in outcomes:
            live.outcomes.labels(outcome).inc()
        return Recorded(outcomes=outcomes)

    @router.get("/users/{user_id:path}/recommendations", tags=["users"])
    async def recommend(
        user_id: UserId,
        k: Annotated[int, Query(ge=1, le=LISTS[-1])] = 10,
        target: Annotated[str, Query(max_length=100, description="`item`, `brand` ...")] = ITEM,
        where: Annotated[str, Query(max_length=4000, examples=["price < 50"])] = "",
        context: Annotated[str, Query(max_length=100, description="the event type wanted")] = "",
    ) -> Recommendations:
        """The best items, brands and so on for a user, known or not, as of the last event."""
        online, wanted = live.ready, Wanted(k, target, where, context)
        return listed(online, await live.recommend((user_id, wanted)))

    @router.post("/query", tags=["users"])
    async def query(asked: WordQuery) -> Recommendations:
        """The best items for a user who looks for something in words."""
        online = live.ready
        wanted = Wanted(asked.k, where=asked.where, words=asked.words, strength=asked.strength)
        return listed(online, await live.recommend((asked.user_id, wanted)))

    @router.get("/users/{user_id:path}/profile", tags=["users"])
    async def profile(
        user_id: UserId,
        last: Annotated[int, Query(ge=1, le=1000)] = 5,
        top: Annotated[int, Query(ge=1, le=100)] = 5,
    ) -> Profile:
        """What a user is interested in now, and how the last events changed that."""
        return await live.call(profile_of, live.ready, user_id, last, top)

    @router.delete("/users/{user_id:path}", status_code=204, tags=["users"])
    async def forget(user_id: UserId) -> None:
        """Forget everything about a user."""
        await live.call(live.store.forget, user_id)

    @router.get("/model", tags=["operation"])
    async def model() -> ServedModel:
        """What is served."""
        online = live.ready
        served = online.model
        event_types = served.artifacts.event_type_names
        return ServedModel(
            step=served.step,
            items=served.index.catalog.num_items - 1,
            event_types=list(event_types),
            feedback=[
                event_type
                for event_type in online.builder.event_types
                if event_type not in event_types
            ],
            strategy=[step.name for step in online.builder.strategy],
            targets=[ITEM, *served.profiled_types],
        )

    return router


def operation(live: Live) -> APIRouter:
    """What the platform asks for, and the page."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @router.get("/health/live", tags=["operation"])
    async def alive() -> dict[Literal["status"], str]:
        """The process answers."""
        return {"status": "alive"}

    @router.get("/health/ready", tags=["operation"], responses={503: PROBLEM})
    async def ready() -> dict[str, str | int]:
        """The model is loaded and compiled; 503 until then."""
        return {"status": "ready", "step": live.ready.model.step}

    @router.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(live.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def serve_http(run: Path, options: LiveOptions, strategy: Sequence[Step] = (Feedback(),)) -> None:
    """Serve until SIGTERM or SIGINT, then answer what has come in.

    Raises:
        ValueError: `options.http` is not HOST:PORT.
    """
    host, separator, port = options.http.rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"--http {options.http}: write HOST:PORT, such as :8080")
    app = create_app(run, options, strategy)
    uvicorn.run(app, host=host or "0.0.0.0", port=int(port), access_log=False)


def user_events_of(events: Sequence[EventIn], online: LiveEngine) -> list[UserEvent]:
    """Events as the model takes them; raises an HTTPException for one that it cannot read."""
    if len(events) > MAX_EVENTS:
        raise HTTPException(413, f"{len(events):,} events; send up to {MAX_EVENTS:,} at a time")
    known = online.model.artifacts.event_type_names
    user_events = []
    for number, event in enumerate(events):
        event_type = event.event or (known[0] if len(known) == 1 else None)
        if event_type not in online.builder.event_types:
            one = ", ".join(online.builder.event_types)
            raise HTTPException(422, f"events[{number}]: the event is one of {one}")
        moment = event.timestamp if event.timestamp is not None else datetime.now(UTC)
        seconds = moment if isinstance(moment, int) else int(moment.timestamp())
        if not 0 <= seconds <= time.time() + DAY:  # one from afar would make all others late
            raise HTTPException(422, f"events[{number}]: the timestamp is before 1970 or to come")
        live_event = LiveEvent(seconds, event.item_id, event_type, event.event_id)
        user_events.append(UserEvent(event.user_id, live_event))
    return user_events


def listed(online: LiveEngine, answer: RecommendationList) -> Recommendations:
    """An answer as it is sent."""
    return Recommendations(
        user_id=answer.user_id,
        target=answer.target,
        items=[Recommended(**place._asdict()) for place in answer.items],
        events=answer.events,
        approximate=answer.approximate,
        model=str(online.model.step),
    )


def profile_of(online: LiveEngine, user_id: str, last: int, top: int) -> Profile:
    """A user's profile as it is sent."""
    document = online.document(user_id)
    kept = sorted((*document.events, *document.feedback), key=lambda event: event.time)
    numbers = [online.updater.item_number.get(event.item_id, 0) for event in kept]
    titles = online.model.index.labels(np.array(numbers, np.int64))
    interests = online.profile(document, last=last, top=top).drop("user_id", "before").to_dicts()
    event_type, names, weights = online.interest_history(document)
    return Profile(
        user_id=user_id,
        interests=[Interest(**row) for row in interests],
        movement=Movement(type=event_type, names=names, weights=weights.tolist()),
        events=[
            Seen(time=e.time, item_id=e.item_id, event_type=e.event_type, title=title)
            for e, title in zip(kept, titles, strict=True)
        ],
        truncated=document.truncated,
    )
