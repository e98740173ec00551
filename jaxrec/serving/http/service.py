"""The live service behind the routes: the served model, its store, reloading and clean-up."""

import asyncio
import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram

from jaxrec.artifacts import run_directory
from jaxrec.inference import loading
from jaxrec.ranking.context import Step
from jaxrec.serving.http.batching import RequestBatcher
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.live.recorder import Outcome, UserEvent
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.opening import open_store

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

DAY, HOUR = 86_400, 3600
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds

Result = TypeVar("Result")


class LiveService:
    """The served model, its store and the request batches.

    One thread does all model and store work.
    """

    def __init__(self, run: Path, options: LiveOptions, strategy: Sequence[Step]):
        self.run, self.options, self.strategy = run, options, strategy
        self.store = open_store(options.store_of(run))
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.engine: LiveEngine | None = None  # None until a model is loaded and compiled
        self.served: tuple[int | None, bool] | None = None  # checkpoint step, has a calibration
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "jaxrec_request_seconds",
            "Time to answer a request",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=LATENCY_BUCKETS,
        )
        self.outcomes = Counter(
            "jaxrec_events", "Received events by outcome", ("outcome",), registry=self.registry
        )
        sizes = Histogram(
            "jaxrec_batch_size",
            "Requests that were computed together",
            registry=self.registry,
            buckets=BATCHES,
        )
        self.record_batcher = RequestBatcher(self._record, self.executor, BATCHES[-1], sizes)
        self.list_batcher = RequestBatcher(self._recommend, self.executor, BATCHES[-2], sizes)

    @property
    def ready_engine(self) -> LiveEngine:
        """The engine.

        Raises:
            HTTPException: 503 if no model is loaded yet.
        """
        if self.engine is None:
            raise HTTPException(
                503, "the model is still loading; try again later", {"Retry-After": "5"}
            )
        return self.engine

    async def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the thread that does all model and store work."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, function, *arguments)

    def load_best(self) -> LiveEngine:
        """Load and compile the run's best model; the present engine if that already serves it."""
        best = best_step(self.run), (self.run / run_directory.CALIBRATION).exists()
        if self.engine is not None and best == self.served:
            return self.engine
        model = loading.load(self.run)
        window = self.options.window
        engine = LiveEngine(model, self.store, window=window, strategy=self.strategy)
        engine.warm_up()
        self.served = best
        logger.info("serving step %s of %s", engine.model.step, self.run)
        return engine

    async def watch_run(self) -> None:
        """Load the best model, then every better one; the present one serves meanwhile."""
        seen: set[str] = set()
        while True:
            try:
                checkpoints = (self.run / "checkpoints").iterdir()
                calibration = self.run.glob(run_directory.CALIBRATION)
                files = {path.name for path in (*checkpoints, *calibration)}
                if files != seen:  # asking Orbax for the best step is slow
                    self.engine = await asyncio.to_thread(self.load_best)
                    # Frozen objects spare the garbage collector pauses of 0.3 s. Those of the
                    # previous model are unfrozen first, so that they are freed.
                    gc.unfreeze()
                    gc.collect()
                    gc.freeze()
                seen = files
            except Exception:
                logger.exception("cannot load the checkpoint; the previous model stays")
            await asyncio.sleep(self.options.refresh)

    async def expire_documents(self) -> None:
        """Delete documents that are too old or too many, every hour."""
        while True:
            before = time.time() - DAY * self.options.keep_days
            try:
                deleted = await self.call(self.store.expire, before, self.options.keep_users)
                if deleted:
                    logger.info("deleted %d expired documents", deleted)
            except Exception:
                logger.exception("cannot delete expired documents; next try in an hour")
            await asyncio.sleep(HOUR)

    def _record(self, batches: list[list[UserEvent]]) -> list[list[Outcome]]:
        assert self.engine is not None
        outcomes = iter(self.engine.record([event for batch in batches for event in batch]))
        return [[next(outcomes) for _ in batch] for batch in batches]

    def _recommend(
        self, requests: list[tuple[str, ListRequest]]
    ) -> list[RecommendationList | Exception]:
        """Rank once per distinct settings; a failure concerns only the requests that share them."""
        assert self.engine is not None
        groups: dict[ListRequest, list[int]] = defaultdict(list)
        for number, (_, settings) in enumerate(requests):
            groups[settings].append(number)
        answers: dict[int, RecommendationList | Exception] = {}
        for settings, numbers in groups.items():
            users = list(dict.fromkeys(requests[number][0] for number in numbers))
            try:
                lists = self.engine.recommend(users, **settings._asdict(), now=int(time.time()))
                by_user = {answer.user_id: answer for answer in lists}
                answers |= {number: by_user[requests[number][0]] for number in numbers}
            except Exception as error:
                answers |= dict.fromkeys(numbers, error)
        return [answers[number] for number in range(len(requests))]


def best_step(run: Path) -> int | None:
    """Step of the run's best checkpoint."""
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        return manager.best_step()
