"""Functions that reorder ranked lists: caps, diversity and exploration.

A ranked list holds item numbers, best first. An empty place has item 0 and score -inf.
Letters: Q queries, P places of the pool to choose from, K places of the new list.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

EMPTY_GAIN = -4.0  # of an empty place; the gain of an item lies within [-1, 1]


def within_caps(
    ranked: Int[np.ndarray, "Q P"], caps: Sequence[tuple[Int[np.ndarray, " I"], int]]
) -> Bool[np.ndarray, "Q P"]:
    """Entries that stay if no list may hold more than `limit` items of one group.

    Greedy from the best: an entry stays if every cap has room for it, and only entries that stay
    take room.

    Args:
        caps: for each cap, the group of every item (0: no group, never capped) and the limit.
    """
    kept = ranked > 0
    if not caps:
        return kept
    groups = np.stack([group_of_item[ranked] for group_of_item, _ in caps])
    limits = np.array([limit for _, limit in caps])[:, None]
    codes = _dense_codes(groups)
    counts = np.zeros_like(codes)
    for place in range(ranked.shape[1]):
        code = codes[:, :, place, None]
        count = np.take_along_axis(counts, code, axis=2)[:, :, 0]
        has_room = (count < limits) | (groups[:, :, place] == 0)
        kept[:, place] &= has_room.all(axis=0)
        np.put_along_axis(counts, code, (count + kept[:, place])[:, :, None], axis=2)
    return kept


def compact(
    kept: Bool[np.ndarray, "Q P"],
    ranked: Int[np.ndarray, "Q P"],
    scores: Float[np.ndarray, "Q P"],
    k: int,
) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
    """The first k kept entries of every list and their scores; then 0 and -inf."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    is_filled = take(kept, order)
    items = np.where(is_filled, take(ranked, order), 0)
    values = np.where(is_filled, take(scores, order), -np.inf)
    padding = ((0, 0), (0, k - order.shape[1]))
    return np.pad(items, padding), np.pad(values, padding, constant_values=-np.inf)


def diversify(
    ranked: Int[np.ndarray, "Q P"],
    scores: Float[np.ndarray, "Q P"],
    vectors: Float[np.ndarray, "Q P D"],
    k: int,
    strength: float,
) -> Int[np.ndarray, "Q K"]:
    """Places of every pool in the order of maximal marginal relevance.

    Each next entry has the largest (1 - strength) * relevance - strength * (largest cosine to the
    entries chosen before); Carbonell & Goldstein, 1998. Relevance is the score, min-max scaled over
    the items of the pool (0 if all scores are equal). Ties go to the better rank; empty places come
    last.

    Raises:
        ValueError: k is more than P.
    """
    _check_pool(ranked, k)
    queries, empty = np.arange(len(ranked)), ranked == 0
    norms = np.linalg.norm(vectors, axis=2, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    relevance = _min_max_scaled(scores, ~empty)
    gains = np.where(empty, EMPTY_GAIN, (1 - strength) * relevance)
    largest_cosine = np.full_like(gains, -np.inf)
    free = np.ones_like(empty)
    places = np.zeros((len(ranked), k), np.int64)
    for step in range(k):
        best = np.where(free, gains, -np.inf).argmax(axis=1)
        places[:, step] = best
        free[queries, best] = False
        cosines = np.einsum("qpd,qd->qp", units, units[queries, best])
        largest_cosine = np.maximum(largest_cosine, cosines)
        marginal = (1 - strength) * relevance - strength * largest_cosine
        gains = np.where(empty, EMPTY_GAIN, marginal)
    return places


def explore(
    ranked: Int[np.ndarray, "Q K"],
    scores: Float[np.ndarray, "Q K"],
    new_ranked: Int[np.ndarray, "Q P"],
    new_scores: Float[np.ndarray, "Q P"],
    share: float,
) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
    """Lists with at least round(share * K) new items, and at least one if share is positive.

    New items that are in a list already count. The best other new items are added at the end: in
    empty places, then in place of the last items that are not new. A list has fewer new items only
    if `new_ranked` is too short.

    Args:
        ranked, scores: ranked lists; none holds an item twice.
        new_ranked, new_scores: ranked lists of the new items alone, with P of at least
            round(share * K), so that every new item of a list is counted.
        share: between 0 and 1.
    """
    num_places = ranked.shape[1]
    reserved = max(round(share * num_places), 1) if share > 0 else 0
    is_new = is_in_row(ranked, new_ranked)
    num_new = is_new.sum(axis=1, keepdims=True)
    added = _first(~is_in_row(new_ranked, ranked) & (new_ranked > 0), reserved - num_new)
    room = num_places - num_new - added.sum(axis=1, keepdims=True)
    kept = is_new | _first((ranked > 0) & ~is_new, room)
    return compact(
        np.concatenate([kept, added], axis=1),
        np.concatenate([ranked, new_ranked], axis=1),
        np.concatenate([scores, new_scores], axis=1),
        num_places,
    )


def epsilon_greedy(
    ranked: Int[np.ndarray, "Q P"], k: int, rate: float, random: np.random.Generator
) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
    """Places of every pool, drawn one after another, and the probability of each.

    With probability 1 - rate the next entry is the best remaining item, otherwise any remaining
    item (epsilon-greedy; Sutton & Barto, 2018). The probability is conditional on the entries
    before, as inverse propensity scoring needs it. Empty places come last, with probability 1.

    Raises:
        ValueError: k is more than P.
    """
    _check_pool(ranked, k)
    queries, remaining = np.arange(len(ranked)), ranked > 0
    places = np.zeros((len(ranked), k), np.int64)
    probabilities = np.ones((len(ranked), k))
    taken = np.zeros_like(remaining)
    for step in range(k):
        count = remaining.sum(axis=1)
        best = remaining.argmax(axis=1)
        nth = (random.random(len(ranked)) * count).astype(np.int64)
        drawn = (remaining.cumsum(axis=1) > nth[:, None]).argmax(axis=1)
        chosen = np.where(random.random(len(ranked)) < rate, drawn, best)
        chosen = np.where(count > 0, chosen, (~taken).argmax(axis=1))
        probability = (1 - rate) * (chosen == best) + rate / np.maximum(count, 1)
        places[:, step], probabilities[:, step] = chosen, np.where(count > 0, probability, 1)
        remaining[queries, chosen], taken[queries, chosen] = False, True
    return places, probabilities


def _check_pool(ranked: Int[np.ndarray, "Q P"], k: int) -> None:
    if k > ranked.shape[1]:
        raise ValueError(f"{k} places of a pool of {ranked.shape[1]}; make the pool larger")


def _dense_codes(values: Int[np.ndarray, "... P"]) -> Int[np.ndarray, "... P"]:
    """Numbers below P, equal where the values of a row are equal."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    changes = np.diff(ordered, axis=-1, prepend=ordered[..., :1]) != 0
    codes = np.empty(values.shape, np.int64)
    np.put_along_axis(codes, order, changes.cumsum(axis=-1), axis=-1)
    return codes


def _min_max_scaled(
    scores: Float[np.ndarray, "Q P"], is_item: Bool[np.ndarray, "Q P"]
) -> Float[np.ndarray, "Q P"]:
    """Scores from 0 to 1 among the items of every row; 0 at empty places."""
    low = scores.min(axis=1, keepdims=True, where=is_item, initial=np.inf)
    high = scores.max(axis=1, keepdims=True, where=is_item, initial=-np.inf)
    scalable = is_item & (high > low)
    return np.divide(scores - low, high - low, out=np.zeros_like(scores), where=scalable)


def is_in_row(
    items: Int[np.ndarray, "Q P"], others: Int[np.ndarray, "Q K"]
) -> Bool[np.ndarray, "Q P"]:
    """Whether an item is in the other list of the same row; empty places are not."""
    return (items[:, :, None] == others[:, None, :]).any(axis=2) & (items > 0)


def take(values: np.ndarray, places: Int[np.ndarray, "Q K"]) -> np.ndarray:
    """Values at the given places of every row."""
    return np.take_along_axis(values, places, axis=1)


def _first(
    chosen: Bool[np.ndarray, "Q P"], count: Int[np.ndarray, "Q 1"]
) -> Bool[np.ndarray, "Q P"]:
    """The first `count` chosen entries of every row."""
    return chosen & (chosen.cumsum(axis=1) <= count)
