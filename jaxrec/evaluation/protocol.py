"""Full-ranking evaluation of held-out events, with baselines and segments beside the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.config import EvaluationConfig
from jaxrec.data.events import user_of_event
from jaxrec.data.splits import Split
from jaxrec.evaluation import metrics
from jaxrec.evaluation.baselines import NEWEST, Baseline, Scorer, newest_events
from jaxrec.evaluation.cooccurrence import Cooccurrence
from jaxrec.ranking.adjustments import history_events, mask_adjustments
from jaxrec.ranking.top_k import Ranking, rank_host_scores
from jaxrec.types import EventLog, Queries

HISTORY_SEGMENTS = {"1-3": (1, 3), "4-10": (4, 10), "11-50": (11, 50), "51+": (51, np.inf)}
RARE = 5  # an item with at most so many training events is rare
MAX_EVENTS = 2**23  # of the histories that baselines read at a time

QueryScorer = Callable[[Queries], Scorer]
"""The scores of a model or a baseline for any queries."""


def summary(
    ranking: Ranking, valid: Bool[np.ndarray, " I"], counts: Float[np.ndarray, " I"]
) -> dict[str, float]:
    """The metrics of a ranking.

    Args:
        valid: rows of the item block that are items.
        counts: training events of every item.
    """
    num_items = int(np.count_nonzero(valid)) + 1
    return {
        **metrics.summarise(ranking.ranks),
        "coverage": metrics.coverage(ranking.items, num_items),
        "gini": metrics.gini(ranking.items, num_items),
        "mean_popularity": metrics.mean_popularity(ranking.items, counts),
    }


@dataclass(frozen=True)
class Protocol:
    """What baselines learn from, and how their scores are ranked: as those of the model.

    Attributes:
        valid: rows of the item block that are items.
        positives: the events that baselines learn from, without returns and impressions.
        counts: training events of every item among them.
    """

    split: Split
    config: EvaluationConfig
    valid: Bool[np.ndarray, " I"]
    positives: Bool[np.ndarray, " M"]
    counts: Float[np.ndarray, " I"]

    @cached_property
    def training(self) -> Int[np.ndarray, " M"]:
        """The numbers of the events that baselines learn from."""
        return np.flatnonzero(self.split.in_training & self.positives)

    @cached_property
    def newest_training(self) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """User and item of these events, of every user the newest."""
        log = self.split.log
        users, items = user_of_event(log)[self.training], log.items[self.training]
        newest = newest_events(users)
        return users[newest], items[newest]

    @cached_property
    def cooccurrence(self) -> Cooccurrence:
        """The co-occurrence baselines of these events."""
        return Cooccurrence(*self.newest_training, len(self.valid))

    def scorer(self, baseline: Baseline) -> QueryScorer:
        """The scores of a baseline, which reads at most the `NEWEST` positive events of a user."""
        log = self.split.log

        def of_queries(queries: Queries) -> Scorer:
            def events(
                start: int, stop: int
            ) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
                rows, numbers = history_events(log, queries, start, stop, NEWEST)
                kept = self.positives[numbers]
                return rows[kept], log.items[numbers[kept]]

            return baseline(events)

        return of_queries

    def rank(self, scorer: Scorer, queries: Queries) -> Ranking:
        """The ranking of scores that the host computes, under the mask of the configuration."""
        log = self.split.log
        longest = (queries.positions - log.offsets[queries.users]).max(initial=1)
        return rank_host_scores(
            scorer,
            log.items[queries.positions],
            mask_adjustments(log, queries, self.config.mask),
            self.valid,
            self.config.k,
            MAX_EVENTS // min(int(longest), NEWEST),
        )

    def evaluate(
        self,
        scorer: Scorer,
        queries: Queries,
        masks: Mapping[str, Bool[np.ndarray, " Q"]] | None = None,
    ) -> dict[str, Any]:
        """Metrics of scores, with the interval of NDCG@10 and the metrics of segments.

        Args:
            masks: the `segment_masks` of the queries; None: no segments.
        """
        ranking = self.rank(scorer, queries)
        interval = metrics.ndcg_interval(ranking.ranks, 10)
        scores = {**summary(ranking, self.valid, self.counts), **interval}
        if masks is None:
            return scores
        return {**scores, "segments": metrics.segments(ranking.ranks, masks)}


def segment_masks(
    log: EventLog,
    queries: Queries,
    positives: Bool[np.ndarray, " M"],
    counts: Float[np.ndarray, " I"],
) -> dict[str, Bool[np.ndarray, " Q"]]:
    """Named subsets of the queries.

    The subsets are by training events of the target, by length of the user's history, and by
    whether the user chose the target before. Arguments as in `Protocol`.
    """
    item_count = counts[log.items[queries.positions]]
    length = queries.positions - log.offsets[queries.users]
    repeat = _first_choices(log, queries, positives) < queries.positions
    return {
        "items: cold": item_count == 0,
        f"items: 1-{RARE} events": (item_count > 0) & (item_count <= RARE),
        f"items: over {RARE} events": item_count > RARE,
        **{
            f"users: {name} events": (length >= low) & (length <= high)
            for name, (low, high) in HISTORY_SEGMENTS.items()
        },
        "targets: repeat": repeat,
        "targets: novel": ~repeat,
    }


def _first_choices(
    log: EventLog, queries: Queries, positives: Bool[np.ndarray, " M"]
) -> Int[np.ndarray, " Q"]:
    """The first event in which the query's user chose its item; without one, the query's own."""
    pair_of_event = user_of_event(log) * (int(log.items.max()) + 1) + log.items
    choices = np.flatnonzero(positives)
    pairs, first = np.unique(pair_of_event[choices], return_index=True)
    queried = pair_of_event[queries.positions]
    place = np.minimum(np.searchsorted(pairs, queried), len(pairs) - 1)
    return np.where(pairs[place] == queried, choices[first[place]], queries.positions)
