"""The live service behind the routes: the served model, its store, reloading and clean-up."""

import asyncio
import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, Request

from jaxrec.artifacts import run_directory
from jaxrec.data.pseudonyms import keyed_hash
from jaxrec.errors import ConfigError, StoreError
from jaxrec.inference import loading
from jaxrec.inference.explanation import Explanation
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.context import Step
from jaxrec.serving.forgetting import PlaceReport, delete_from_store, forget, report_of
from jaxrec.serving.http.batching import RequestBatcher
from jaxrec.serving.http.item_follower import ItemFollower
from jaxrec.serving.http.metrics import Metrics
from jaxrec.serving.live.engine import LiveEngine, time_of_deletion
from jaxrec.serving.live.explanations import explained_list
from jaxrec.serving.live.impression_writer import ImpressionWriter
from jaxrec.serving.live.item_recorder import ItemChange, ItemOutcome, ItemRecorder
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.live.recorder import Recorded, UserEvent
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.opening import open_store

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

EXPLAIN_SECONDS = 60.0  # for an explained list
CHANGES = 64  # requests that change items, recorded together
MANY_ITEMS = 8  # a request of more is recorded alone, so that no price waits behind its texts

Result = TypeVar("Result")


class LiveService:
    """The served model, its store and the request batches.

    One thread computes lists, another records events, so that no list waits behind a write.
    """

    def __init__(self, run: Path, options: LiveOptions, strategy: Sequence[Step]):
        self.run, self.options, self.strategy = run, options, strategy
        self.store = open_store(options.store_of(run))
        self.impressions = ImpressionWriter(self.store)
        self.follower = ItemFollower(self)
        self.replacing = asyncio.Lock()  # one new engine at a time
        self.engine: LiveEngine | None = None  # None until a model is loaded and compiled
        self.tried = asyncio.Event()  # set when the first model is loaded, or cannot be
        self.served = ""  # identity of the served checkpoint
        self.store_failure = ""  # why the last check of the store failed
        self.reload_failure = ""  # why the last checkpoint was not loaded
        self.metrics = Metrics()
        self.store.observe = self.metrics.document_bytes.observe
        metrics = self.metrics
        self.record_batcher = RequestBatcher(
            "events",
            self._record,
            BATCHES[-1],
            metrics.batch_size,
            metrics.total("waiting_events", "Requests that wait for their events to be recorded"),
        )
        self.list_batcher = RequestBatcher(
            "lists",
            self._recommend,
            BATCHES[-2],
            metrics.batch_size,
            metrics.total("waiting_lists", "Requests that wait for their lists"),
        )
        waiting = metrics.total("waiting_items", "Requests that wait for their items")
        self.item_batcher, self.many_items_batcher = (
            RequestBatcher(name, self._change_items, size, metrics.batch_size, waiting)
            for name, size in (("items", CHANGES), ("many items", 1))
        )
        metrics.computed("users", "Users in the store", lambda: self.store.count())
        metrics.computed("store_bytes", "Size of the store", lambda: self.store.size())

    @property
    def ready_engine(self) -> LiveEngine:
        """The engine.

        Raises:
            HTTPException: 503 if no model is loaded yet.
        """
        if self.engine is None:
            reason = self.reload_failure or "the model is still loading; try again later"
            raise HTTPException(503, reason, {"Retry-After": "5"})
        return self.engine

    @property
    def explains(self) -> bool:
        """Whether lists are explained; a public service does so only with `--explain`."""
        return self.options.explain or self.options.is_private

    def close(self) -> None:
        """Wait for the present batches and the waiting impressions; close the store."""
        batchers = (self.record_batcher, self.list_batcher, self.item_batcher)
        for part in (*batchers, self.many_items_batcher, self.impressions, self.store):
            part.close()

    @cached_property
    def id_key(self) -> bytes:
        """The key of user ids, see `run_directory.read_id_key`."""
        return run_directory.read_id_key(run_directory.served(self.run), self.options.id_key)

    def stored_id(self, user_id: str) -> str:
        """The id under which a user is kept: the id itself, or its pseudonym."""
        return keyed_hash(self.id_key, user_id) if self.id_key else user_id

    async def recommend(self, user_id: str, request: ListRequest) -> RecommendationList:
        """The list of a user, from the next batch.

        Raises:
            HTTPException: 503 if the list takes longer than `options.list_timeout`.
        """
        stored = self.stored_id(user_id)
        made = await self._in_time(self.list_batcher.submit((stored, request)))
        return made if stored == user_id else replace(made, user_id=user_id)

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the thread that computes lists; raises as `recommend`."""
        return await self._in_time(self.list_batcher.call(function, *arguments))

    async def explain(
        self, user_id: str, request: ListRequest
    ) -> tuple[RecommendationList, list[Explanation]]:
        """A list and why it holds its items; raises as `explained_list` and `recommend`.

        The first one compiles programs, so it may take longer than a list.
        """
        computed = self.list_batcher.call(self._explain, self.stored_id(user_id), request)
        seconds = max(self.options.list_timeout, EXPLAIN_SECONDS)
        made, reasons = await self._in_time(computed, seconds)
        own = [replace(reason, user_id=user_id) for reason in reasons]
        return replace(made, user_id=user_id), own

    def _explain(
        self, user_id: str, request: ListRequest
    ) -> tuple[RecommendationList, list[Explanation]]:
        made, reasons = explained_list(self.ready_engine, user_id, request, int(time.time()))
        self.impressions.add(self.ready_engine.impressions([made]))
        return made, reasons

    @property
    def item_recorder(self) -> ItemRecorder:
        """Records items; raises as `ready_engine`."""
        catalogue = self.ready_engine.catalogue
        return ItemRecorder(catalogue, self.store.items, self.options.keep_items)

    async def change_items(self, change: ItemChange) -> list[ItemOutcome]:
        """Change items of the shop; raises as `ItemRecorder.record` reports."""
        many = len(change.items) > MANY_ITEMS
        outcomes = await (self.many_items_batcher if many else self.item_batcher).submit(change)
        self.follower.changed.set()
        for outcome in outcomes:
            self.metrics.item_outcomes.labels(outcome).inc()
        return outcomes

    def _change_items(self, changes: list[ItemChange]) -> list[list[ItemOutcome] | Exception]:
        return self.item_recorder.record(changes)

    async def _in_time(self, result: Any, seconds: float | None = None) -> Any:
        seconds = self.options.list_timeout if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):  # `wait_for` makes a task
                return await result
        except TimeoutError:
            raise HTTPException(
                503, f"no answer within {seconds:g} s", {"Retry-After": "1"}
            ) from None

    def load_best(self) -> LiveEngine:
        """Load and compile the run's best model; the present engine if that already serves it."""
        identity = run_directory.identity(self.run)
        if self.engine is not None and identity == self.served:
            return self.engine
        logger.info("loading and compiling %s; a first start takes longest", self.run)
        options = self.options
        # the exact vectors beside codes may stay on disk
        shared = options.workers > 1 or options.item_precision == "int8"
        model = loading.load(self.run, shared=shared, id_key=options.id_key)
        if model.id_key != self.id_key:
            raise ConfigError(
                f"{self.run} has another key of user ids than the run that was served first, so "
                "its users would be new ones; start the service again to serve it"
            )
        engine = self.make_engine(model)
        self.served = identity
        logger.info("serving step %s of %s", engine.model.step, self.run)
        return engine

    def make_engine(self, model: TrainedModel) -> LiveEngine:
        """A compiled engine over the items of the store, up to their last change."""
        options = self.options
        engine = LiveEngine(
            model,
            self.store,
            window=options.window,
            strategy=self.strategy,
            precision=options.state_precision,
            item_precision=options.item_precision,
        )
        engine.warm_up()
        engine.follow()  # items that changed meanwhile must not come back for a moment
        return engine

    async def replace_engine(self, make: Callable[[], LiveEngine]) -> None:
        """Serve from the engine that `make` returns; the present one serves meanwhile."""
        async with self.replacing:
            self.engine = await asyncio.to_thread(make)
        self.metrics.model_step.set(self.engine.model.step)
        self.metrics.items.set(self.engine.num_items)
        # Frozen objects spare the garbage collector pauses of 0.3 s. Those of the
        # previous model are unfrozen first, so that they are freed.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    async def forget(self, user_id: str) -> list[PlaceReport]:
        """Remove a user from everything that the options name, also while no model is loaded.

        The store refuses earlier events from then on, so nothing brings the user back to it.

        Returns:
            What was removed from each place, or why that failed; then it can be repeated.

        Raises:
            StoreError: the store fails.
        """
        if self.engine is None:
            config = await asyncio.to_thread(run_directory.read_config, self.run)
        else:
            config = self.engine.model.config
        deleted_at = time_of_deletion(config)
        users = dict.fromkeys((self.stored_id(user_id), user_id), user_id)
        deletion = self.record_batcher.call(delete_from_store, self.store, users, deleted_at)
        own = report_of("store", self.options.store_of(self.run), users, await deletion)
        places = self.options.places_of(config)
        reports = await asyncio.to_thread(forget, users, places, deleted_at)
        for report in reports:
            if report.failure:
                logger.error("DELETE of a user: %s", report)
        return [own, *reports]

    def _record(self, batches: list[list[UserEvent]]) -> list[list[Recorded]]:
        assert self.engine is not None
        recorded = iter(self.engine.record([event for batch in batches for event in batch]))
        return [list(islice(recorded, len(batch))) for batch in batches]

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
                lists = self.engine.recommend_each(users, settings, int(time.time()))
                made = [answer for answer in lists.values() if not isinstance(answer, StoreError)]
                self.impressions.add(self.engine.impressions(made))
                answers |= {number: lists[requests[number][0]] for number in numbers}
            except Exception as error:
                answers |= dict.fromkeys(numbers, error)
        return [answers[number] for number in range(len(requests))]


def service_of(request: Request) -> LiveService:
    """The service of the application that received a request."""
    return request.app.state.service
