"""Full-ranking evaluation of held-out events, with baselines and segments beside the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jaxrec.config import EvaluationConfig
from jaxrec.data.events import user_of_event
from jaxrec.data.packing import ranges
from jaxrec.data.splits import Split
from jaxrec.evaluation import metrics
from jaxrec.evaluation.baselines import baseline_scorers
from jaxrec.ranking.top_k import (
    AdjustmentBlocks,
    Ranking,
    ScoreAdjustments,
    combined,
    masked_items,
    no_adjustments,
    rank_host_scores,
    rank_queries,
)
from jaxrec.types import EventLog, Queries

SHOWN = {  # metric -> heading, short enough for a terminal of 80 columns
    "ndcg@10": "N@10",
    "recall@10": "R@10",
    "mrr@10": "MRR@10",
    "coverage": "cover",
    "gini": "Gini",
    "mean_popularity": "popul.",
}
HISTORY_SEGMENTS = ((1, 3), (4, 10), (11, 50), (51, None))
RARE = 5  # training events up to which an item counts as rare


def masked_event_types(
    mask: tuple[str, ...], event_type_names: Sequence[str]
) -> Bool[np.ndarray, " event_types"]:
    """The event types whose items a mask leaves out.

    Args:
        mask: `("none",)`, `("seen",)` for all event_types, or some of them.

    Raises:
        ValueError: a event_type in `mask` is not one of `event_type_names`.
    """
    unknown = [
        event_type for event_type in mask if event_type not in ("none", "seen", *event_type_names)
    ]
    if unknown:
        raise ValueError(
            f"evaluation.mask names {unknown}; give none, seen, or event_types among "
            f"{', '.join(event_type_names)}"
        )
    return np.array(["seen" in mask or event_type in mask for event_type in event_type_names])


def mask_adjustments(
    log: EventLog,
    queries: Queries,
    mask: tuple[str, ...],
    targets: Int[np.ndarray, " Q"] | None = None,
) -> AdjustmentBlocks:
    """Which items of a query's history its ranking leaves out, block by block.

    Args:
        mask: as in `masked_event_types`, which says what it raises.
        targets: an item of each query that is not left out.
    """
    masks = masked_event_types(mask, log.event_type_names)

    def pairs(start: int, stop: int) -> ScoreAdjustments:
        rows, events = _histories(log, queries, start, stop)
        masked = masks[log.event_types[events]]
        if targets is not None:
            masked &= log.items[events] != targets[start:stop][rows]
        return masked_items(rows[masked], log.items[events[masked]])

    return pairs


def repeat_adjustments(
    log: EventLog, queries: Queries, repeat_bias: Float[np.ndarray, "event_types A"]
) -> AdjustmentBlocks:
    """What the events of a query's history add to the scores of their items, block by block.

    Args:
        repeat_bias: by event_type and age of the event; see `Recommender.repeat_bias`.
    """
    if not repeat_bias.any():
        return no_adjustments

    def pairs(start: int, stop: int) -> ScoreAdjustments:
        rows, events = _histories(log, queries, start, stop, repeat_bias.shape[1])
        ages = queries.positions[start:stop][rows] - 1 - events
        return ScoreAdjustments(rows, log.items[events], repeat_bias[log.event_types[events], ages])

    return pairs


def history_adjustments(
    log: EventLog,
    queries: Queries,
    mask: tuple[str, ...],
    repeat_bias: Float[np.ndarray, "event_types A"],
    targets: Int[np.ndarray, " Q"] | None = None,
) -> AdjustmentBlocks:
    """`mask_adjustments` and `repeat_adjustments` together: all that a history changes in the scores of its
    items."""
    masked = mask_adjustments(log, queries, mask, targets)
    return combined(masked, repeat_adjustments(log, queries, repeat_bias))


def segment_masks(
    log: EventLog,
    queries: Queries,
    chosen: Bool[np.ndarray, " M"],
    counts: Float[np.ndarray, " I"],
) -> dict[str, Bool[np.ndarray, " Q"]]:
    """Named subsets of the queries by how known their item is, how active their user is, and
    whether the user had chosen the item before.

    Args:
        chosen, counts: as in `evaluate_baselines`.
    """
    item_count = counts[log.items[queries.positions]]
    length = queries.positions - log.offsets[queries.users]
    repeat = _first_choices(log, queries, chosen) < queries.positions
    return {
        "items: cold": item_count == 0,
        f"items: 1-{RARE} events": (item_count > 0) & (item_count <= RARE),
        f"items: over {RARE} events": item_count > RARE,
        **{
            f"users: {low}-{high} events" if high else f"users: {low}+ events": (length >= low)
            & (length <= (high or np.inf))
            for low, high in HISTORY_SEGMENTS
        },
        "targets: repeat": repeat,
        "targets: novel": ~repeat,
    }


def evaluate(
    targets: Int[np.ndarray, " Q"],
    pairs: AdjustmentBlocks,
    valid: Bool[np.ndarray, " I"],
    counts: Float[np.ndarray, " I"],
    vectors: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    k: int,
    mesh: Mesh | None = None,
) -> tuple[dict[str, float], Ranking]:
    """The model's metrics on a set of queries.

    Args:
        counts: as in `evaluate_baselines`; the others as in `rank_queries`.
    """
    ranking = rank_queries(vectors, items, targets, pairs, valid, k, mesh=mesh)
    return _report(ranking, valid, counts), ranking


def evaluate_baselines(
    split: Split,
    queries: Queries,
    config: EvaluationConfig,
    valid: Bool[np.ndarray, " I"],
    chosen: Bool[np.ndarray, " M"],
    counts: Float[np.ndarray, " I"],
    masks: Mapping[str, Bool[np.ndarray, " Q"]],
) -> dict[str, dict[str, Any]]:
    """Metrics of the four baselines on a set of queries, each with its own segments.

    Args:
        chosen: the events that baselines learn from: no returns, impressions and the like.
        counts: how many of them every item has in training; see `item_counts`.
        masks: the `segment_masks` of the queries.
    """
    log = split.log
    used = split.in_training & chosen

    def histories(start: int, stop: int) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
        rows, events = _histories(log, queries, start, stop)
        return rows[chosen[events]], log.items[events[chosen[events]]]

    scorers = baseline_scorers(
        user_of_event(log)[used],
        log.items[used],
        log.times[used],
        histories,
        len(valid),
        has_time=log.has_time,
    )
    excluded = mask_adjustments(log, queries, config.mask)
    targets = log.items[queries.positions]

    def one(scorer: Callable[[int, int], Float[np.ndarray, "b I"]]) -> dict[str, Any]:
        ranking = rank_host_scores(scorer, targets, excluded, valid, config.k)
        segments = metrics.segments(ranking.ranks, masks)
        return {**_report(ranking, valid, counts), "segments": segments}

    return {name: one(scorer) for name, scorer in scorers.items()}


def item_counts(
    log: EventLog, counted: Bool[np.ndarray, " M"], num_items: int
) -> Float[np.ndarray, " I"]:
    """How many of the counted events every item has."""
    return np.bincount(log.items[counted], minlength=num_items).astype(np.float32)


def results_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A table for the terminal: a row a system, then a row a segment of the model."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("count", *SHOWN.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for system, row in results.items():
        if system != "segments":
            table.add_row(system, *_cells(row))
    table.add_section()
    for segment, row in results["segments"].items():
        if row["count"]:
            table.add_row(segment, *_cells(row))
    return table


def _first_choices(
    log: EventLog, queries: Queries, chosen: Bool[np.ndarray, " M"]
) -> Int[np.ndarray, " Q"]:
    """For every query the first event in which its user chose its item, or its own."""
    pair_of_event = user_of_event(log) * (int(log.items.max()) + 1) + log.items
    choices = np.flatnonzero(chosen)
    pairs, first = np.unique(pair_of_event[choices], return_index=True)
    wanted = pair_of_event[queries.positions]
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return np.where(pairs[place] == wanted, choices[first[place]], queries.positions)


def _histories(
    log: EventLog, queries: Queries, start: int, stop: int, newest: int | None = None
) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """Row of the block and event number of every event in the queries' histories, or of the
    newest of them."""
    ends = queries.positions[start:stop]
    lengths = ends - log.offsets[queries.users[start:stop]]
    if newest is not None:
        lengths = np.minimum(lengths, newest)
    return np.repeat(np.arange(len(lengths)), lengths), ranges(ends - lengths, lengths)


def _report(
    ranking: Ranking, valid: Bool[np.ndarray, " I"], counts: Float[np.ndarray, " I"]
) -> dict[str, float]:
    num_items = int(np.count_nonzero(valid)) + 1
    return {
        **metrics.summarise(ranking.ranks),
        "coverage": metrics.coverage(ranking.items, num_items),
        "gini": metrics.gini(ranking.items, num_items),
        "mean_popularity": metrics.mean_popularity(ranking.items, counts),
    }


def _cells(row: Mapping[str, float]) -> list[str]:
    *names, popularity = SHOWN
    values = [f"{row[name]:.4f}" if name in row else "" for name in names]
    return [f"{row['count']:,}", *values, f"{row[popularity]:.1f}" if popularity in row else ""]
