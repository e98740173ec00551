"""Ranking under a shop's rules: lists are filled up, however much a rule takes out of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec import rules as rule
from jaxrec.data.graph import first_neighbours
from jaxrec.ranking import Candidates, PairBlocks, best_items
from jaxrec.rules import Rules
from jaxrec.types import Catalog

Cap = tuple[Int[np.ndarray, " I"], int]
Excluded = Callable[[Int[np.ndarray, " R"]], PairBlocks]
"""What to leave out of the rankings of some of the queries."""
Best = Callable[
    [Int[np.ndarray, " R"], int, Float[np.ndarray, " I"]],
    tuple[Int[np.ndarray, "R K"], Float[np.ndarray, "R K"]],
]
"""The best items of some of the queries, so many, under a bias."""
SLICE = 256


@dataclass(frozen=True)
class Selection:
    """Rules in the item numbers of a catalogue."""

    rules: Rules
    bias: Float[np.ndarray, " I"]  # added to the scores; -inf keeps an item out
    caps: tuple[Cap, ...]
    new: Bool[np.ndarray, " I"]  # items that exploration is for
    removed: dict[str, int]  # rule -> items that it keeps out of every list


@dataclass(frozen=True)
class Shortlists:
    """A list a query, best first, and what the rules did to them."""

    items: Int[np.ndarray, "Q K"]  # 0 where no item is left
    scores: Float[np.ndarray, "Q K"]  # with the popularity correction; -inf where none is left
    removed: dict[str, int] = field(default_factory=dict)  # rule -> entries passed over


def select(
    rules: Rules, catalog: Catalog, counts: Float[np.ndarray, " n"], valid: Bool[np.ndarray, " I"]
) -> Selection:
    """Rules applied to a catalogue.

    Args:
        counts: training events of the items, row 0 included; of later rows there are none.
        valid: rows of the item block that are items.

    Raises:
        DataError: a condition or a list of ids cannot be used.
        ValueError: a cap names no node type of the graph.
    """
    padding = (0, len(valid) - catalog.num_items)
    counts = np.pad(counts, (0, catalog.num_items - len(counts)))
    ids = catalog.item_ids
    filters = {}
    if rules.where:
        filters["where"] = rule.where(catalog.items, rules.where)
    for name, keep in (("only", rule.only), ("without", rule.without)):
        source: Path | tuple[str, ...] | None = getattr(rules, name)
        if source is not None:
            filters[name] = keep(ids, rule.listed_ids(source))
    filters = {name: np.pad(kept, padding) for name, kept in filters.items()}
    allowed = np.logical_and.reduce([valid, *filters.values()])
    bias = np.pad(rule.popularity_bias(counts, rules.popularity), padding)
    return Selection(
        rules=rules,
        bias=np.where(allowed, bias, -np.inf).astype(np.float32),
        caps=tuple(
            (first_neighbours(catalog.graph, name), limit) for name, limit in rules.caps.items()
        ),
        new=allowed & (np.pad(counts, padding) <= rules.explore_events),
        removed={name: int((valid & ~kept).sum()) for name, kept in filters.items()},
    )


def shortlist(
    queries: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    excluded: Excluded,
    valid: Bool[np.ndarray, " I"],
    k: int,
    selection: Selection,
    *,
    ready: Candidates | None = None,
    approximate: bool = False,
    mesh: Mesh | None = None,
) -> Shortlists:
    """The k best items of every query that the rules allow.

    Args:
        ready: the items with the selection's bias, for who ranks them again and again.

    Filters, exclusions and the popularity correction act on all scores; then caps, on as long a
    ranking as fills the lists; then diversity, on the pool that the caps leave; then exploration,
    whose items caps do not count.
    """
    rules = selection.rules
    size = max(k, min(rules.pool, int(valid.sum()))) if rules.diversity else k
    # over-fetched pools and their vectors are large, so few users have theirs at a time
    width = SLICE if rules.caps or rules.diversity or rules.explore else max(len(queries), 1)

    def best(rows: Int[np.ndarray, " R"], size: int, bias: Float[np.ndarray, " I"]):
        top = best_items(
            queries[rows],
            ready if ready is not None and bias is selection.bias else items,
            excluded(rows),
            valid,
            size,
            bias=bias,
            with_log_z=False,
            approximate=approximate,
            mesh=mesh,
        )
        return top.items, top.scores

    slices = [
        _shortlist(
            np.arange(start, min(start + width, len(queries))), best, items, k, size, selection
        )
        for start in range(0, max(len(queries), 1), width)
    ]
    removed: Counter[str] = Counter()
    for part in slices:
        removed.update(part.removed)
    return Shortlists(
        np.concatenate([part.items for part in slices]),
        np.concatenate([part.scores for part in slices]),
        dict(removed),
    )


def _shortlist(
    users: Int[np.ndarray, " R"],
    best: Best,
    items: Float[Array, "I D"],
    k: int,
    size: int,
    selection: Selection,
) -> Shortlists:
    """`shortlist` of some of the queries, from pools of `size` items."""
    rules = selection.rules
    ranked, scores, removed = _capped(
        lambda rows, fetch: best(rows, fetch, selection.bias), users, size, selection.caps
    )
    if rules.diversity:
        places = rule.diversify(ranked, scores, np.asarray(items)[ranked], k, rules.diversity)
        removed["diversity"] = int(((places >= k) & (_take(ranked, places) > 0)).sum())
        ranked, scores = _take(ranked, places), _take(scores, places)
    if rules.explore:
        new_ranked, new_scores = best(
            users, k, np.where(selection.new, selection.bias, -np.inf).astype(np.float32)
        )
        before = ranked
        ranked, scores = rule.explore(ranked, scores, new_ranked, new_scores, rules.explore)
        stayed = (ranked[:, :, None] == before[:, None, :]).any(1) & (before > 0)
        removed["explore"] = int(((before > 0) & ~stayed).sum())
    return Shortlists(ranked, scores, removed)


def _capped(
    best: Callable[[Int[np.ndarray, " R"], int], tuple[np.ndarray, np.ndarray]],
    rows: Int[np.ndarray, " R"],
    size: int,
    caps: tuple[Cap, ...],
    fetch: int = 0,
) -> tuple[Int[np.ndarray, "R size"], Float[np.ndarray, "R size"], dict[str, int]]:
    """Lists of `size` items within the caps, fetching twice as many until they are full."""
    ranked, scores = best(rows, max(fetch, size))
    if not caps:
        return ranked, scores, {}
    kept = rule.within_caps(ranked, caps)
    unfinished = np.flatnonzero((kept.sum(1) < size) & (ranked[:, -1] > 0))
    seen = (kept.cumsum(1) - kept < size) & (ranked > 0)
    seen[unfinished] = False
    removed = int((seen & ~kept).sum())
    full, full_scores = rule.compact(kept, ranked, scores, size)
    if len(unfinished):
        again, again_scores, more = _capped(
            best, rows[unfinished], size, caps, 2 * max(fetch, size)
        )
        full[unfinished], full_scores[unfinished] = again, again_scores
        removed += more["caps"]
    return full, full_scores, {"caps": removed}


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, places, axis=1)
