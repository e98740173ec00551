"""Makes lists of recommendations from user vectors."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxrec.config import Config
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.catalog_index import CatalogIndex
from jaxrec.inference.encoding import repeat_bias
from jaxrec.inference.user_encoder import UserEncoder
from jaxrec.ranking.adjustments import (
    AdjustmentBlocks,
    exclude,
    mask_adjustments,
    masked_event_types,
)
from jaxrec.ranking.context import Step
from jaxrec.ranking.history_bias import HistoryBias, ItemNeighbours, history_adjustments
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.option_types import is_whole
from jaxrec.ranking.pipeline import (
    Reranker,
    RerankPipeline,
    RerankQueries,
    UserAdjustments,
    build_pipeline,
)
from jaxrec.ranking.strategy import Rules, as_steps, steps_of
from jaxrec.ranking.top_k import best_items
from jaxrec.types import ANY_EVENT_TYPE, EventLog, Queries

DEFAULT_K = 10


@dataclass(frozen=True)
class UserBatch:
    """Users to rank for."""

    log: EventLog  # the events that the model reads
    vectors: Float[np.ndarray, "U F"]  # user vectors after them
    histories: EventLog | None = None  # the log with the feedback that only a strategy reads


@dataclass(frozen=True)
class ListOptions:
    """How to rank."""

    k: int = 10
    target: str = ITEM  # the node type to rank
    mask: tuple[str, ...] = ()  # history to leave out; empty: as in the run's evaluation
    approximate: bool = False  # see `best_items`


@dataclass(frozen=True)
class RecommendationTable:
    """Lists of recommendations as a table, and what the rules removed."""

    table: pl.DataFrame  # user_id, rank, item_id, score, title
    removed: dict[str, int]  # rule -> list entries that it passed over
    short: dict[str, int]  # users with fewer than k items left -> number of items


@dataclass(frozen=True)
class Ranker:
    """Ranks the nodes of a catalogue for users."""

    config: Config
    index: CatalogIndex
    encoder: UserEncoder
    correction: Correction
    mesh: Mesh
    neighbours: Mapping[str, ItemNeighbours]

    def pipeline(
        self, strategy: str | Path | Sequence[Step] = (), rules: Rules | None = None
    ) -> RerankPipeline:
        """The steps of a strategy or of rules, prepared for the catalogue.

        Raises:
            InputError: both are given, or `build_pipeline` raises it.
        """
        given, steps = as_steps(strategy), steps_of(rules or Rules())
        if given and steps:
            raise InputError(f"a strategy names its own steps; make {steps[0].name} one of them")
        index = self.index
        return build_pipeline(
            given or steps, index.catalog, index.counts, index.node_type(ITEM).valid, index.links
        )

    def check_request(self, k: int | None, target: str, *, reranks: bool = False) -> int:
        """The length of a list; raises an InputError for a list that cannot be made.

        Args:
            k: None: `DEFAULT_K`, or all nodes if there are fewer.
            reranks: whether rules or a mask act on the list.
        """
        count = int(np.count_nonzero(self.index.node_type(target).valid))
        if target != ITEM and reranks:
            raise InputError(f"rules act on items only; leave them out to rank {target}s")
        return list_length(k, count, f"the number of {target}s")

    def recommend(
        self, users: UserBatch, pipeline: RerankPipeline, options: ListOptions
    ) -> RecommendationTable:
        """The k best nodes for every user of a batch."""
        if options.target == ITEM:
            ranked, scores, removed = self._rank_items(users, pipeline, options)
        else:
            nodes = prepare(self.index.table(options.target), self.mesh)
            top = best_items(users.vectors, nodes, options.k, approximate=options.approximate)
            ranked, scores, removed = top.items, top.scores, {}
        user_ids, counts = users.log.user_ids, (ranked > 0).sum(1)
        rows = np.flatnonzero(counts < options.k)
        short = dict(zip(user_ids.gather(rows).to_list(), counts[rows].tolist(), strict=True))
        table = self.index.list_table(user_ids, ranked, scores, options.target)
        return RecommendationTable(table, removed, short)

    def _rank_items(
        self, users: UserBatch, pipeline: RerankPipeline, options: ListOptions
    ) -> tuple[Int[np.ndarray, "U K"], Float[np.ndarray, "U K"], dict[str, int]]:
        log, vectors = users.log, self.with_session(users.log, users.vectors, pipeline)
        reranker = Reranker(pipeline, self.index.items, self.mesh, approximate=options.approximate)
        queries = RerankQueries(
            vectors, self.adjustments(log, options.mask), users.histories or log
        )
        random = np.random.default_rng(zlib.crc32("\n".join(log.user_ids).encode()))
        result = reranker.rank(queries, options.k, random)
        masked = self.mask(log, options.mask)(0, log.num_users)
        pairs = masked.rows * len(self.index.items) + masked.items
        distinct = np.unique(pairs[masked.items > 0])
        removed = {"mask": len(distinct), **result.removed}
        return result.lists.items, result.lists.scores, removed

    def with_session(
        self, log: EventLog, vectors: Float[np.ndarray, "U F"], pipeline: RerankPipeline
    ) -> Float[np.ndarray, "U F"]:
        """User vectors with the present session mixed in, if a step does so."""
        if not pipeline.session:
            return vectors
        session = self.encoder.states(pipeline.session.events(log))
        return pipeline.session.mixed(vectors, self.encoder.vectors(session))

    def mask(self, log: EventLog, mask: tuple[str, ...] = ()) -> AdjustmentBlocks:
        """The items that a mask, by default the run's, leaves out for the users of a log."""
        queries = Queries(np.arange(log.num_users), log.offsets[1:])
        return mask_adjustments(log, queries, mask or self.config.evaluation.mask)

    def adjustments(self, log: EventLog, mask: tuple[str, ...] = ()) -> UserAdjustments:
        """How the histories of a log's users change scores: the mask and the history bias."""
        mask = mask or self.config.evaluation.mask
        bias = self.history_bias[self.encoder.target_event_type]

        def of_users(users: Int[np.ndarray, " q"]) -> AdjustmentBlocks:
            return history_adjustments(log, Queries(users, log.offsets[users + 1]), mask, bias)

        return of_users

    @cached_property
    def history_bias(self) -> dict[int, HistoryBias]:
        """Target event type -> what events add to scores."""
        names = self.encoder.event_type_names
        counted = ~masked_event_types(self.config.evaluation.mask, names)
        return {
            target: HistoryBias(
                self.correction.repeat_bias(repeat_bias(self.encoder.model, target), counted),
                self.neighbours,
            )
            for target in range(ANY_EVENT_TYPE, len(names))
        }

    def similar(self, entity: str, k: int | None = None) -> pl.DataFrame:
        """The nodes of the same type that are most like one; see `TrainedModel.similar`."""
        name, node = self.index.find(entity)
        others = int(np.count_nonzero(self.index.node_type(name).valid)) - 1
        k = list_length(k, others, f"the other {name}s")
        units = self.index.unit_vectors(name)
        itself = exclude(np.zeros(1, np.int64), np.array([node]))
        table = ItemTable(units, self.index.node_type(name).valid)
        top = best_items(units[[node]], table, k, lambda *_: itself)
        lists = self.index.list_table(pl.Series([entity]), top.items, top.scores, name)
        return lists.drop("user_id").rename({"score": "cosine"})


def list_length(k: int | None, count: int, what: str) -> int:
    """The length of a list of at most `count` nodes: `k`, or by default `DEFAULT_K` at most.

    Raises:
        InputError: `k` is not a whole number from 1 to `count`.
    """
    if count < 1:
        raise InputError(f"there are no {what.removeprefix('the ').removeprefix('number of ')}")
    if k is None:
        k = min(DEFAULT_K, count)
    if not is_whole(k) or not 1 <= k <= count:
        raise InputError(f"k={k!r}: give a number from 1 to {count:,}, {what}")
    return int(k)
