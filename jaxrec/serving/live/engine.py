"""Live scoring: an event is one step of the user's state, and the next list reflects it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.config import Config
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError, StoreError
from jaxrec.inference.history_rows import chunk_steps
from jaxrec.inference.live_index import is_scarce, live_index
from jaxrec.inference.profiles import profile_table
from jaxrec.inference.text_features import LENGTH_BUCKETS
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import AdjustmentBlocks
from jaxrec.ranking.context import Step
from jaxrec.ranking.steps import Feedback, feedback_types
from jaxrec.ranking.top_k import at_least
from jaxrec.serving.live import forecast
from jaxrec.serving.live.lists import ListRequest, RecommendationList
from jaxrec.serving.live.live_catalogue import CatalogueUpdate, LiveCatalogue
from jaxrec.serving.live.live_tables import Pipelines, update_lists, update_pipelines
from jaxrec.serving.live.recommendation_builder import (
    ADJUSTMENTS,
    LISTS,
    ItemPrecision,
    RecommendationBuilder,
    padded_blocks,
    void_adjustments,
)
from jaxrec.serving.live.recorder import EventRecorder, Recorded, UserEvent
from jaxrec.serving.live.shop_items import ShopItems
from jaxrec.serving.live.state_updater import BATCHES, Precision, StateUpdater
from jaxrec.serving.stores.base import Impression, LiveEvent, Store, UserDocument
from jaxrec.serving.stores.sqlite import SQLiteStore

UPDATE_ITEMS = 4096  # changed items that take effect at once


class EngineUpdate(NamedTuple):
    """A change of the items, ready to take effect."""

    catalogue: CatalogueUpdate
    pipelines: Pipelines


class LiveEngine:
    """A trained model and a store of live users.

    A state is that of all events, as in batch scoring. Where the run's `evaluation.history` cuts
    histories, live states see longer ones. Users are kept under the ids that come in; for a run
    with a key, give pseudonyms.

    Args:
        model: what `jaxrec.load` returns.
        store: shared by all processes that serve these users.
        window: the least number of newest events that a document keeps; it holds up to twice as
            many. Events before all kept ones, or before a loaded state, are refused.
        strategy: steps that act on every list of items, in their order. The event types that its
            feedback names are recorded although the model does not know them.
        random: for steps that depend on chance.
        precision: of the states in the store; float16 makes documents smaller and scores less
            exact.
        item_precision: of the tables that items are searched in; see `ItemTable`.

    Raises:
        InputError: the window is not positive, or the run cannot be served live.
    """

    def __init__(
        self,
        model: TrainedModel,
        store: Store,
        *,
        window: int = 64,
        strategy: Sequence[Step] = (Feedback(),),
        random: np.random.Generator | None = None,
        precision: Precision = "float32",
        item_precision: ItemPrecision = "float32",
    ):
        if window < 1:
            raise InputError(f"window={window}: keep 1 event or more")
        check_live_run(model.config)
        self.trained, self.store = model, store
        trained_ids = set(model.catalog.item_ids)
        new_items = sum(item_id not in trained_ids for item_id in store.items.ids())
        self.index = live_index(model.index, new_items, model.features)
        self.model = replace(model, index=self.index)
        self.updater = StateUpdater(self.model, window, feedback_types(strategy), precision)
        self.builder = RecommendationBuilder(
            self.updater, strategy, random or np.random.default_rng(), item_precision
        )
        self.recorder = EventRecorder(self.updater, store, self.builder.event_types)
        shop_items = ShopItems(self.model.index)
        self.catalogue = LiveCatalogue(self.model, self.updater.item_number, shop_items)
        if model.index.mapped is not None:  # tables that processes share are those of the run
            for with_words in {False, self.model.words.available}:
                self.builder.item_table(with_words)
        self.follow()
        self.model.ranker.pipeline(strategy)  # raises for one that does not fit

    @property
    def shop_items(self) -> ShopItems:
        """The items as the shop shows them."""
        return self.catalogue.shop_items

    @property
    def num_items(self) -> int:
        """Items that may be listed."""
        return self.index.num_listed

    @property
    def needs_room(self) -> bool:
        """Whether rows for new items are scarce, so that a larger engine should be made."""
        room = self.index.capacity - 1 - self.index.num_trained
        return is_scarce(room, self.catalogue.new_items)

    def follow(self) -> int:
        """Bring all changes of the store's items into effect; returns how many items failed.

        While lists are made, only their thread may call this.
        """
        failed = 0
        while (update := self.next_update()) is not None:
            self.apply(update)
            failed += update.catalogue.failed
        return failed

    def next_update(self) -> EngineUpdate | None:
        """The next changes of the store's items, prepared; None if all are in effect.

        Lists may be made meanwhile. One thread at a time may call this.
        """
        if self.store.items.sequence() == self.catalogue.sequence:
            return None
        documents = self.store.items.since(self.catalogue.sequence, UPDATE_ITEMS)
        if not documents:
            return None
        update = self.catalogue.prepare(documents)
        return EngineUpdate(update, update_pipelines(self.builder, update))

    def apply(self, update: EngineUpdate) -> None:
        """Bring an update into effect: between two lists, in their thread."""
        self.catalogue.apply(update.catalogue)
        try:
            update_lists(self.builder, *update)
        except BaseException:
            self.builder.reranker.results.clear()  # what is half changed is prepared again
            raise

    def record(self, user_events: Sequence[UserEvent]) -> list[Recorded]:
        """Record events and update states; see `EventRecorder.record`."""
        return self.recorder.record(user_events)

    def recommend(
        self, user_ids: Sequence[str], k: int = 10, *, now: int | None = None, **options: Any
    ) -> list[RecommendationList]:
        """The k best items for every user, known or not.

        Args:
            now: seconds since the epoch; see `RecommendationBuilder.build`.
            options: other fields of `ListRequest`, such as `where="price < 50"`.

        Raises:
            DataError: the condition cannot be used.
            InputError: an option does not fit the model.
            StoreError: the store fails, or the document of a user cannot be read.
        """
        by_user = dict[str, RecommendationList]()
        for user_id, made in self.recommend_each(user_ids, ListRequest(k, **options), now).items():
            if isinstance(made, StoreError):
                raise made
            by_user[user_id] = made
        shown = self.impressions(list(by_user.values()))
        if shown:
            self.store.add_impressions(shown)
        return [by_user[user_id] for user_id in user_ids]

    def recommend_each(
        self, user_ids: Sequence[str], request: ListRequest, now: int | None = None
    ) -> dict[str, RecommendationList | StoreError]:
        """A list for every user, or why the document of that user cannot be read.

        Nothing is written: `impressions` gives what the store should keep of the lists.

        Raises:
            DataError, InputError: as in `recommend`.
            StoreError: the store fails.
        """
        self.builder.check(request)
        loaded = self.recorder.load(user_ids)
        documents = list(loaded.documents.values())
        lists = self.builder.build(documents, request, now) if documents else []
        return {made.user_id: made for made in lists} | loaded.damaged

    def impressions(self, lists: Sequence[RecommendationList]) -> list[Impression]:
        """What the store should keep of lists: those of items whose strategy depends on chance."""
        if not self.builder.is_random:
            return []
        return [
            Impression(
                made.user_id,
                int(time.time()),
                self.model.version,
                tuple(item.id for item in made.items),
                tuple(item.propensity for item in made.items),
            )
            for made in lists
            if made.target == ITEM
        ]

    def document(self, user_id: str) -> UserDocument:
        """What is kept of a user, with a state of this model."""
        return self.recorder.documents([user_id])[user_id]

    def profile(self, document: UserDocument, *, last: int = 10, top: int = 5) -> pl.DataFrame:
        """What a user is interested in now, and how that changed; columns as in batch scoring.

        Args:
            document: what `document` returns.
            last: number of kept events over which the change is measured.
            top: nodes of a type.
        """
        if last < 1 or top < 1:
            raise InputError(f"last={last}, top={top}: give 1 or more of both")
        masked = self.builder.mask([document], self.model.config.evaluation.mask)
        return self._profile(document, masked, last, top)

    def _profile(
        self, document: UserDocument, masked: AdjustmentBlocks, last: int, top: int
    ) -> pl.DataFrame:
        earlier = self.updater.earlier_state(document, last)
        states = self.updater.stack([document.state, earlier.state])
        now, before = self.updater.user_vectors(states)[:2, None]
        user_ids, length = pl.Series([document.user_id]), at_least(top, LISTS)
        masked = padded_blocks(masked)
        items = self.builder.items
        table = profile_table(self.model, user_ids, (now, before), length, masked, items)
        return table.filter(pl.col("rank") <= top)

    def interest_history(
        self, document: UserDocument
    ) -> tuple[str, list[str], Float[np.ndarray, "T K"]]:
        """How interest changed over the newest kept events.

        Returns:
            A node type, the names of its strongest nodes, and their weights after each of the last
            events.
        """
        name, rows, weights = forecast.interest_history(self.updater, document)
        return name, self.model.index.names(name, rows).to_series(-1).to_list(), weights

    def warm_up(self, sizes: Sequence[int] = BATCHES) -> None:
        """Compile every shape and load the text encoder, so that no user waits for it.

        Args:
            sizes: the numbers of users at a time; fewer make a start quicker, and a larger batch is
                compiled when it comes.
        """
        words = self.model.words
        if words.available:
            longest = words.encoder.max_tokens
            for length in (length for length in LENGTH_BUCKETS if length <= longest):
                words.text_vector("a " * (length - 2))  # with the two special tokens
        store = SQLiteStore(":memory:")
        recorder = EventRecorder(self.updater, store, self.builder.event_types)
        event = LiveEvent(0, "", self.model.artifacts.event_type_names[0])
        two_chunks = 2 * chunk_steps(len(self.updater.new_user))
        for size in sizes:
            users = [str(number) for number in range(size)]
            self.updater.update(self.updater.event_log([[event]] * size))  # as of sessions
            # states of a store and states of the chunk before need different programs
            for events in (1, two_chunks + 1):
                recorder.record([UserEvent(user, event) for user in users for _ in range(events)])
            documents = list(recorder.documents(users).values())
            self.builder.build(documents, ListRequest(k=1))
            self.builder.warm_up(documents, self.builder.user_vectors(documents))
        for length, count in product(LISTS, ADJUSTMENTS):
            self._profile(documents[0], void_adjustments(count), 1, length)
        forecast.warm_up(self, documents[0])
        self.catalogue.encoder.warm_up()
        self.catalogue.text.warm_up()
        unknown = np.zeros(1, np.int64)
        self.builder.reranker.replace(lambda _, r: r.with_rows(r.pipeline, unknown))
        store.close()


def check_live_run(config: Config) -> None:
    """Raise an InputError for a run that cannot be served live."""
    if config.data.drop_repeats:
        raise InputError("the run dropped repeated events (data.drop_repeats); train without that")


def time_of_deletion(config: Config) -> int | None:
    """The time of a tombstone that is set now (s); None where times are only positions."""
    return int(time.time()) if config.data.time == "timestamp" else None
