"""Lists for live users: ranked under a strategy, with names and reasons."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, product
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import (
    AdjustmentBlocks,
    ScoreAdjustments,
    as_blocks,
    combine,
    exclude,
    masked_event_types,
    no_adjustments,
    scale,
    select_queries,
)
from jaxrec.ranking.context import RankedLists, Step
from jaxrec.ranking.history_bias import HistoryBias
from jaxrec.ranking.item_table import ItemTable, PreparedItems
from jaxrec.ranking.pipeline import Reranker, RerankPipeline, RerankQueries
from jaxrec.ranking.steps import Epsilon, Session, Where
from jaxrec.ranking.top_k import at_least, best_items, pad_adjustments
from jaxrec.serving.live.lists import ListRequest, RecommendationList, RecommendedItem
from jaxrec.serving.live.reasons import strongest_items
from jaxrec.serving.live.recent import Recent
from jaxrec.serving.live.state_updater import BATCHES, StateUpdater
from jaxrec.serving.stores.base import UserDocument
from jaxrec.types import EventLog, Queries

RANKED = (1, 2, 4, *BATCHES[1:])  # users to rank for at a time: each row takes its own time
LISTS = (64, 256)  # lengths of the rankings that are compiled
ADJUSTMENTS = (1024, 65_536)  # numbers of score adjustments that are compiled
OUTSIDE = 2**30  # no row of a batch
ItemPrecision = Literal["float32", "int8"]
MAX_RERANKERS, RERANKER_BYTES = 16, 2**30  # conditions that stay prepared, and their memory


class RecommendationBuilder:
    """Makes the lists of a batch of users.

    Args:
        updater: holds the model.
        strategy: steps that act on every list of items, in their order.
        random: for steps that depend on chance.
        item_precision: of the tables that items are searched in; see `ItemTable`.
    """

    def __init__(
        self,
        updater: StateUpdater,
        strategy: Sequence[Step],
        random: np.random.Generator,
        item_precision: ItemPrecision = "float32",
    ):
        self.item_precision = item_precision
        self.updater, self.strategy, self.random = updater, tuple(strategy), random
        self.model: TrainedModel = updater.model
        self.is_random = any(isinstance(step, Epsilon) for step in self.strategy)
        feedback_types = sorted(updater.feedback_types)
        self.event_types = self.model.encoder.event_types_with(feedback_types)
        index = self.model.index
        # row 0 stands for no reason
        labels = index.labels(np.arange(index.catalog.num_items)).scatter(0, None)
        self.reason_labels = text_array(labels)
        size = MAX_RERANKERS
        if item_precision == "float32":  # each prepared reranker holds the table once more
            size = max(2, min(MAX_RERANKERS, RERANKER_BYTES // updater.items.nbytes))
        self.item_table = Recent(self._item_table, 2)
        self.reranker = Recent(self._reranker, size)
        self.names = lru_cache(maxsize=16)(self._names)

    def check(self, request: ListRequest) -> None:
        """Raise an InputError for a list that cannot be made."""
        if not 0 <= request.strength <= 1:
            raise InputError(f"strength={request.strength} is not between 0 and 1")
        if request.words and request.target != ITEM:
            raise InputError(f"words steer lists of items, not of {request.target}")
        reranks = bool(request.where or request.mask)
        self.model.ranker.check_request(request.k, request.target, reranks=reranks)
        names = self.model.artifacts.event_type_names
        masked_event_types(request.mask, names)
        if request.event_type and request.event_type not in names:
            raise InputError(
                f"the model does not know the event type {request.event_type}; "
                f"use one of {', '.join(names)}"
            )

    def build(
        self, documents: Sequence[UserDocument], request: ListRequest, now: int | None = None
    ) -> list[RecommendationList]:
        """A list for every document.

        Args:
            now: seconds since the epoch; a session may be over by then, and a model that reads the
                time since the last event needs it. By default the moment of each last event.

        Raises:
            DataError: the condition cannot be used.
            InputError: the model reads no text.
        """
        reranker = None
        if request.target == ITEM:
            reranker = self.reranker(request.where, bool(request.words))
            lists = self._item_lists(reranker, documents, request, now)
        else:
            vectors = self.user_vectors(documents, self.event_type(request), now)
            lists = self._ranked_nodes(vectors, request.target, request.k)
        pipeline = None if reranker is None else reranker.pipeline
        own_lists = RankedLists(*(part[: len(documents)] for part in lists))
        entries = self._entries(request, own_lists, pipeline, documents)
        counts = (own_lists.items > 0).sum(1).tolist()
        return [
            RecommendationList(
                document.user_id,
                request.target,
                [RecommendedItem(rank, *entry) for rank, entry in enumerate(own, 1)],
                events=document.truncated + len(document.events),
                approximate=document.approximate,
            )
            for document, own in zip(documents, split(entries, counts), strict=True)
        ]

    def user_vectors(
        self,
        documents: Sequence[UserDocument],
        event_type: int | None = None,
        now: Int[np.ndarray, " n"] | int | None = None,
    ) -> Float[np.ndarray, "Q F"]:
        """User vectors of documents, followed by rows of padding; `now` as in `build`."""
        states = self.updater.stack([document.state for document in documents])
        seconds = self.updater.seconds_since(documents, now)
        return self.updater.user_vectors(states, event_type, seconds)

    def event_type(self, request: ListRequest) -> int | None:
        """The number of the event type to predict; None: the run's."""
        names = self.model.artifacts.event_type_names
        return names.index(request.event_type) if request.event_type else None

    def _item_lists(
        self,
        reranker: Reranker,
        documents: Sequence[UserDocument],
        request: ListRequest,
        now: int | None,
    ) -> RankedLists:
        """Items under the strategy, with the present session and the words mixed in."""
        count, event_type = len(documents), self.event_type(request)
        vectors, mixed = self.mixed_vectors(reranker, documents, request, now)
        moved = (mixed != vectors).any(1)[:count]
        mask = request.mask or self.model.config.evaluation.mask
        adjustments = self.adjustments(documents, mask, event_type)
        if request.words:
            mixed = self.model.words.steer(mixed, request.words, request.strength)
            adjustments = scale(adjustments, 1 - request.strength)
        lists = self._ranked_items(reranker, documents, mixed, adjustments, request.k)
        is_session = reranker.pipeline.is_step(Session)
        touched = lists.touched | (moved[:, None, None] & is_session & (lists.items > 0)[..., None])
        return lists._replace(touched=touched)

    def mixed_vectors(
        self,
        reranker: Reranker,
        documents: Sequence[UserDocument],
        request: ListRequest,
        now: int | None,
    ) -> tuple[Float[np.ndarray, "Q F"], Float[np.ndarray, "Q F"]]:
        """User vectors, and the same with the present session mixed in, if a step does so."""
        event_type, session = self.event_type(request), reranker.pipeline.session
        vectors = self.user_vectors(documents, event_type, now)
        if not session:
            return vectors, vectors
        moments = None if now is None else np.full(len(documents), now)
        return vectors, self.with_session(documents, vectors, session, moments, event_type)

    def _ranked_items(
        self,
        reranker: Reranker,
        documents: Sequence[UserDocument],
        vectors: Float[np.ndarray, "Q F"],
        adjustments: AdjustmentBlocks,
        k: int,
    ) -> RankedLists:
        """The k best items for documents with given vectors and adjustments."""
        count, histories = len(documents), self.feedback_log(documents)
        queries = RerankQueries(
            vectors[:count],
            # an inner function would make the types of its annotations in every call
            lambda users: padded_blocks(select_queries(adjustments, users, count)),
            histories,
        )
        return reranker.rank(queries, k, self.random).lists

    def _ranked_nodes(self, vectors: Float[np.ndarray, "Q F"], target: str, k: int) -> RankedLists:
        """The k best nodes of a type; no strategy acts on them."""
        length = min(at_least(k, LISTS), self._count(target))
        top = best_items(vectors, self.model.index.table(target), length)
        items, scores = top.items[:, :k], top.scores[:, :k]
        return RankedLists(items, scores, np.zeros((*items.shape, 0), bool), np.ones(items.shape))

    def adjustments(
        self,
        documents: Sequence[UserDocument],
        mask: tuple[str, ...],
        event_type: int | None = None,
    ) -> AdjustmentBlocks:
        """What the users' histories change in the scores: the mask and the history bias."""
        return combine(self.mask(documents, mask), self.history_bias(documents, event_type))

    def history_bias(
        self, documents: Sequence[UserDocument], event_type: int | None = None
    ) -> AdjustmentBlocks:
        """What the kept events add to scores."""
        bias = self.bias(event_type)
        if not bias:  # building the log takes time
            return no_adjustments
        log = self.updater.event_log([document.events for document in documents])
        return bias.adjustments(log, Queries(np.arange(log.num_users), log.offsets[1:]))

    def bias(self, event_type: int | None = None) -> HistoryBias:
        """What events add to scores for an event type to predict; by default the run's."""
        target = self.model.encoder.target_event_type if event_type is None else event_type
        return self.model.ranker.history_bias[target]

    def mask(self, documents: Sequence[UserDocument], mask: tuple[str, ...]) -> AdjustmentBlocks:
        """Leave out the items that users chose by an event type of the mask."""
        item_number = self.updater.item_number
        positives = [
            [
                item_number[item]
                for event_type, items in document.positives.items()
                if event_type in mask or "seen" in mask
                for item in items
                if item in item_number
            ]
            for document in documents
        ]
        rows = np.repeat(np.arange(len(positives)), [len(items) for items in positives])
        items = np.fromiter(chain.from_iterable(positives), np.int64, len(rows))
        return as_blocks(exclude(rows, items))

    def with_session(
        self,
        documents: Sequence[UserDocument],
        vectors: Float[np.ndarray, "Q F"],
        session: Session,
        now: Int[np.ndarray, " n"] | None = None,
        event_type: int | None = None,
    ) -> Float[np.ndarray, "Q F"]:
        """User vectors with the interest of the present session mixed in.

        Args:
            now: when each user asks (s); a session that is over by then changes nothing. By default
                the moment of each last event, as where times are only positions.
        """
        log = session.events(self.updater.event_log([document.events for document in documents]))
        mixed = session.mixed(
            vectors, self.updater.user_vectors(self.updater.update(log), event_type)
        )
        if now is not None and log.has_time:
            last = np.array([document.last_time for document in documents])
            over = session.is_over(last, now)
            mixed[: len(documents)][over] = vectors[: len(documents)][over]
        return mixed

    def warm_up(self, documents: Sequence[UserDocument], vectors: Float[np.ndarray, "Q F"]) -> None:
        """Compile every length of list for a number of users; fill the caches."""
        sizes = [size for size in RANKED if at_least(size, BATCHES) == len(documents)]
        steered = [False, True] if self.model.words.available else [False]
        for target in (ITEM, *self.model.profiled_types):
            self.names(target)
        for with_words in steered:
            queries = self.model.words.steer(vectors, "any", 0.5) if with_words else vectors
            reranker = self.reranker("", with_words)
            for users, length, number in product(sizes, LISTS, ADJUSTMENTS):
                k, void = min(length, self._count(ITEM)), void_adjustments(number)
                self._ranked_items(reranker, documents[:users], queries, void, k)
        for length in LISTS:
            for target in self.model.profiled_types:
                self._ranked_nodes(vectors, target, min(length, self._count(target)))

    def _count(self, target: str) -> int:
        """The number of nodes of a type."""
        return self.model.index.node_type(target).count - 1

    def _entries(
        self,
        request: ListRequest,
        lists: RankedLists,
        pipeline: RerankPipeline | None,
        documents: Sequence[UserDocument],
    ) -> Iterable[tuple]:
        """The fields of a `RecommendedItem` behind its rank, for all lists one after another."""
        listed = lists.items > 0
        items, scores, touched, propensity = (part[listed] for part in lists)
        ids, titles = self.names(request.target)
        bias = self.bias(self.event_type(request))
        reasons = strongest_items(self.updater, request.target, lists.items, documents, bias)
        rules: list[list[str]] = [[] for _ in items]
        if pipeline is not None:
            for number in np.flatnonzero(touched.any(1)):
                rules[number] = pipeline.names(touched[number])
        return zip(
            ids[items].tolist(),
            scores.tolist(),
            titles[items].tolist(),
            self.reason_labels[reasons].tolist(),
            rules,
            propensity.tolist(),
            strict=True,
        )

    def feedback_log(self, documents: Sequence[UserDocument]) -> EventLog | None:
        """The kept events of users who gave feedback; None if none of them did."""
        feedback_types = set(self.updater.feedback_types)
        histories = [
            sorted((*d.events, *d.feedback), key=lambda event: event.time)
            if d.feedback or feedback_types & d.positives.keys()
            else ()
            for d in documents
        ]
        return self.updater.event_log(histories, self.event_types) if any(histories) else None

    def _names(self, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and titles of the nodes of a type."""
        count = self.model.index.node_type(target).count
        ids, *titles = self.model.index.names(target, np.arange(count)).iter_columns()
        untitled = pl.repeat(None, count, dtype=pl.String, eager=True)
        return text_array(ids), text_array(titles[0] if titles else untitled)

    def _item_table(self, with_words: bool) -> ItemTable:
        """The items, or the items and their texts."""
        index = self.model.index
        items = self.model.words.items if with_words else index.items
        if self.item_precision == "float32":
            return items
        return index.coded(items, "text" if with_words else "items")

    @property
    def items(self) -> PreparedItems:
        """The prepared items without the bias of any step."""
        reranker = self.reranker("", False)
        if reranker.pipeline.biases:
            reranker = self.reranker("", False, False)
        return reranker.prepared

    def _reranker(self, where: str, with_words: bool, with_strategy: bool = True) -> Reranker:
        """The strategy behind a condition over the items, or over the items and their texts."""
        strategy = self.strategy if with_strategy else ()
        steps = (Where(where), *strategy) if where else strategy
        return Reranker(
            self.model.ranker.pipeline(steps),
            self.item_table(with_words),
            self.model.mesh,
            lengths=[min(length, self._count(ITEM)) for length in LISTS],
            batch_sizes=RANKED,
        )


def text_array(texts: pl.Series) -> np.ndarray:
    """Texts and nulls as an array: a few are read from it ten times as fast as from a series."""
    return np.array(texts.to_list(), np.dtypes.StringDType(na_object=None))


def split(entries: Iterable[tuple], counts: Sequence[int]) -> Iterator[list[tuple]]:
    """The entries of each list, from those of all lists one after another."""
    remaining = iter(entries)
    return (list(islice(remaining, count)) for count in counts)


def void_adjustments(count: int) -> AdjustmentBlocks:
    """A number of adjustments of the unknown item, to compile a program for that number."""
    return as_blocks(exclude(np.zeros(count, np.int64), np.zeros(count, np.int64)))


def padded_blocks(adjustments: AdjustmentBlocks) -> AdjustmentBlocks:
    """The same adjustments, padded to one of the compiled numbers."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        unpadded = adjustments(start, stop)
        return pad_adjustments(unpadded, at_least(len(unpadded.rows), ADJUSTMENTS), OUTSIDE)

    return block
