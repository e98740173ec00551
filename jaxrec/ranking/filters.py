"""What a shop does to a ranking beside the model's scores: which items, how many alike, which new.

A ranked list holds item numbers, best first, and 0 where no item is left (then its score is
-inf). Letters besides the dimension key: P places of a pool that is longer than the list,
J places of a ranking of new items.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from jaxrec.data.columns import as_ids, require
from jaxrec.data.files import read_table
from jaxrec.errors import DataError

# A quoted name before a parenthesis would be a function, and E'...' has other escapes.
QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|''|\\(?!'))*+'|"[^"]*+"(?!\s*\())""")
NOT_AN_EXPRESSION = re.compile(r"--|/\*|\bselect\b|[^\w\s<>=!+*/%.,()\[\]:|&~^-]")
CALL = re.compile(r"(\w+)\s*\(")
KEYWORDS = "and between case else ilike in like not or regexp rlike then when"
# All of them look at one row. Aggregates, windows and readers of files are left out, and
# `replace`, which makes texts of any length.
FUNCTIONS = (
    "abs array_contains array_length array_to_string cast ceil char_length coalesce concat date "
    "date_part ends_with exp extract floor greatest if ifnull initcap least left length ln log "
    "lower ltrim mod nullif pow regexp_like right round rtrim sign sqrt starts_with "
    "strpos substr trim try_cast upper"
)
MAX_CONDITION = 4000  # characters; the parser overflows its stack on some that are far longer
MAX_BETWEENS = 8  # each that follows another doubles what the parser takes
SINGLE_QUOTES = " Text stands in single quotes ('Nails'), double quotes name a column."
FILE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".inter", ".item")
BEHIND = -4.0  # the gain of a real entry lies within [-1, 1]


@dataclass(frozen=True)
class Rules:
    """What to do to the ranking of the model."""

    mask: tuple[str, ...] = ()
    """What of a user's own history to leave out: `none`, `seen`, or event types such as `buy`
    (empty: as in the run's evaluation)."""
    where: str = ""
    """Recommend only items whose columns satisfy this SQL condition, such as
    `price < 50 AND category = 'Nails'`."""
    only: Path | tuple[str, ...] | None = None
    """Recommend only these items: a file with a column item_id, or ids. One word without a file
    ending is an id, unless there is such a file."""
    without: Path | tuple[str, ...] | None = None
    """Never recommend these items; given as in `only`."""
    caps: dict[str, int] = field(default_factory=dict)
    """Node type and the most items of one such entity in a list: `brand 2 category 3`. Of several
    entities of an item the first counts."""
    diversity: float = 0.0
    """0: by score alone; 1: by unlikeness to the items before alone (maximal marginal
    relevance)."""
    pool: int = 100
    """Best items of a user that diversity chooses from."""
    popularity: float = 0.0
    """How strongly to correct for popularity, beside what validation has corrected (0: no more;
    1: the logQ correction)."""
    explore: float = 0.0
    """Share of a list that is reserved for new items, between 0 and 1."""
    explore_events: int = 0
    """Items that were chosen at most so often in training are new."""

    def __post_init__(self) -> None:
        """Raise a ValueError for an option that is out of range."""
        if isinstance(self.mask, str):
            raise ValueError(f"mask: {self.mask!r} is one text; give a tuple such as ('seen',)")
        for entity, limit in self.caps.items():
            if limit < 1:
                raise ValueError(f"caps: {entity} {limit} lets no item pass; give 1 or more")
        for name in ("diversity", "explore"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not between 0 and 1")
        if self.pool < 1:
            raise ValueError(f"pool: {self.pool} leaves nothing to choose from; give 1 or more")
        if not 0 <= self.popularity < float("inf"):
            raise ValueError(f"popularity: {self.popularity} is not a number of 0 or more")
        if self.explore_events < 0:
            raise ValueError(f"explore_events: {self.explore_events} is below 0")


def where(items: pl.DataFrame, condition: str) -> Bool[np.ndarray, " I"]:
    """Rows of the item table that satisfy an SQL condition; null counts as false.

    The condition sees one row at a time: columns, literals, operators and `FUNCTIONS`.

    Raises:
        DataError: the condition is not valid, names an unknown column, compares different types,
            is not a truth value, or uses anything beyond its row (sub-queries, aggregates,
            windows, files), `MAX_CONDITION` or `MAX_BETWEENS`; the message lists the columns.
    """
    problem = _beyond_the_row(condition)
    if problem:
        raise _refused(items, condition, problem)
    try:
        kept = items.with_columns(pl.sql_expr(condition).alias("kept"))["kept"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).strip().splitlines() or ["it cannot be read"]
        raise _refused(items, condition, reason[0]) from error
    if kept.dtype != pl.Boolean:
        raise _refused(items, condition, f"it gives {kept.dtype}, not true or false")
    return kept.fill_null(False).to_numpy()


def listed_ids(source: str | Path | Sequence[str], column: str = "item_id") -> pl.Series:
    """The ids in a column of a file, or of a sequence of ids, as strings.

    One text or path is a file, unless it has no ending of a table and no such file exists: then
    it is an id, because the command line cannot tell one id from a path.

    Raises:
        DataError: the file cannot be read or has no such column, or an id is empty.
    """
    if not isinstance(source, str | Path):
        return as_ids(pl.Series(column, list(source)), "listed ids")
    path = Path(source)
    if path.suffix not in FILE_SUFFIXES and not path.is_file():
        return as_ids(pl.Series(column, [str(source)]), "listed ids")
    return as_ids(require(read_table(path), column, str(path)), str(path))


def only(item_ids: pl.Series, listed: pl.Series) -> Bool[np.ndarray, " I"]:
    """Items whose id is listed; a null id never is."""
    return item_ids.is_in(listed.implode()).fill_null(False).to_numpy()


def without(item_ids: pl.Series, listed: pl.Series) -> Bool[np.ndarray, " I"]:
    """Items whose id is not listed, with those whose id is null."""
    return ~only(item_ids, listed)


def popularity_bias(counts: Float[np.ndarray, " I"], strength: float) -> Float[np.ndarray, " I"]:
    """What to add to every item's score: -strength * log((count + 1) / mean(count + 1)).

    The logQ correction of retrieval models (Yi et al., 2019) at strength 1, applied after
    training, as in logit adjustment (Menon et al., 2021, arXiv:2007.07314). Q is the item's
    share of the events, smoothed by one event an item. An item of average count gets 0.
    """
    smoothed = np.asarray(counts, np.float64) + 1
    return (-strength * np.log(smoothed / smoothed.mean())).astype(np.float32)


def within_caps(
    ranked: Int[np.ndarray, "Q P"], caps: Sequence[tuple[Int[np.ndarray, " I"], int]]
) -> Bool[np.ndarray, "Q P"]:
    """Which entries stay if no list may hold more than `limit` items of one group.

    Greedy from the best: an entry stays if every cap still has room for it, and only entries
    that stay take room.

    Args:
        ranked: ranked lists.
        caps: of every cap the group of every item and the limit. Group 0 means none and is
            never capped.
    """
    kept = ranked > 0
    if not caps:
        return kept
    groups = np.stack([group_of_item[ranked] for group_of_item, _ in caps])
    limits = np.array([limit for _, limit in caps])[:, None]
    slots = _dense_codes(groups)
    taken = np.zeros_like(slots)
    for place in range(ranked.shape[1]):
        slot = slots[:, :, place, None]
        before = np.take_along_axis(taken, slot, axis=2)[:, :, 0]
        room = (before < limits) | (groups[:, :, place] == 0)
        kept[:, place] &= room.all(axis=0)
        np.put_along_axis(taken, slot, (before + kept[:, place])[:, :, None], axis=2)
    return kept


def compact(
    kept: Bool[np.ndarray, "Q P"],
    ranked: Int[np.ndarray, "Q P"],
    scores: Float[np.ndarray, "Q P"],
    k: int,
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """The first k kept entries of every list and their scores; 0 and -inf behind them."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    filled = np.take_along_axis(kept, order, axis=1)
    items = np.where(filled, np.take_along_axis(ranked, order, axis=1), 0)
    values = np.where(filled, np.take_along_axis(scores, order, axis=1), -np.inf)
    behind = ((0, 0), (0, k - order.shape[1]))
    return np.pad(items, behind), np.pad(values, behind, constant_values=-np.inf)


def diversify(
    ranked: Int[np.ndarray, "Q P"],
    scores: Float[np.ndarray, "Q P"],
    vectors: Float[np.ndarray, "Q P D"],
    k: int,
    strength: float,
) -> Int[np.ndarray, "Q k"]:
    """Places of every pool in the order of maximal marginal relevance.

    Carbonell & Goldstein (1998): each next entry has the largest (1 - strength) * relevance -
    strength * (largest cosine to the entries chosen before). Relevance is the score, min-max
    scaled over the real entries of the list's own pool (0 if they are all equal). Ties go to
    the better rank; missing entries (item 0) come last.

    Raises:
        ValueError: k is more than P.
    """
    if k > ranked.shape[1]:
        raise ValueError(f"{k} places of a pool of {ranked.shape[1]}; make the pool larger")
    rows, missing = np.arange(len(ranked)), ranked == 0
    norms = np.linalg.norm(vectors, axis=2, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    relevance = _min_max_scaled(scores, ~missing)
    gains = np.where(missing, BEHIND, (1 - strength) * relevance)
    nearest = np.full_like(gains, -np.inf)
    free = np.ones_like(missing)
    places = np.zeros((len(ranked), k), np.int64)
    for step in range(k):
        best = np.where(free, gains, -np.inf).argmax(axis=1)
        places[:, step] = best
        free[rows, best] = False
        cosines = np.einsum("qpd,qd->qp", units, units[rows, best])
        nearest = np.maximum(nearest, cosines)
        gains = np.where(missing, BEHIND, (1 - strength) * relevance - strength * nearest)
    return places


def explore(
    ranked: Int[np.ndarray, "Q K"],
    scores: Float[np.ndarray, "Q K"],
    new_ranked: Int[np.ndarray, "Q J"],
    new_scores: Float[np.ndarray, "Q J"],
    share: float,
) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
    """Lists of which at least round(share * K) entries are new, and one if share is positive.

    Entries that are new already count. Only the number that lacks is added, from the best of
    `new_ranked`, in the last places: in free ones first, then in place of the last entries that
    are not new. There are fewer new entries only where `new_ranked` is too short.

    Args:
        ranked, scores: ranked lists; none holds an item twice.
        new_ranked, new_scores: ranked lists of the new items alone, at least round(share * K)
            long, so that every new entry of a list is counted.
        share: between 0 and 1.
    """
    num_places = ranked.shape[1]
    wanted = max(round(share * num_places), 1) if share > 0 else 0
    is_new = _among(ranked, new_ranked)
    num_new = is_new.sum(axis=1, keepdims=True)
    added = _first(~_among(new_ranked, ranked) & (new_ranked > 0), wanted - num_new)
    room = num_places - num_new - added.sum(axis=1, keepdims=True)
    stays = is_new | _first((ranked > 0) & ~is_new, room)
    return compact(
        np.concatenate([stays, added], axis=1),
        np.concatenate([ranked, new_ranked], axis=1),
        np.concatenate([scores, new_scores], axis=1),
        num_places,
    )


def epsilon_greedy(
    ranked: Int[np.ndarray, "Q P"], k: int, rate: float, random: np.random.Generator
) -> tuple[Int[np.ndarray, "Q k"], Float[np.ndarray, "Q k"]]:
    """Places of every pool, drawn one after another, and the chance of each.

    With a chance of 1 - rate the next entry is the best that is left, otherwise any that is left
    (epsilon-greedy; Sutton & Barto, 2018). The chance is that of the entry at its place given
    those before it, as inverse propensity scoring needs it; missing entries (item 0) come last,
    with a chance of 1.

    Raises:
        ValueError: k is more than P.
    """
    if k > ranked.shape[1]:
        raise ValueError(f"{k} places of a pool of {ranked.shape[1]}; make the pool larger")
    rows, left = np.arange(len(ranked)), ranked > 0
    places = np.zeros((len(ranked), k), np.int64)
    chances = np.ones((len(ranked), k))
    taken = np.zeros_like(left)
    for step in range(k):
        count = left.sum(axis=1)
        best = left.argmax(axis=1)
        nth = (random.random(len(ranked)) * count).astype(np.int64)
        drawn = (left.cumsum(axis=1) > nth[:, None]).argmax(axis=1)
        chosen = np.where(random.random(len(ranked)) < rate, drawn, best)
        chosen = np.where(count > 0, chosen, (~taken).argmax(axis=1))
        chance = (1 - rate) * (chosen == best) + rate / np.maximum(count, 1)
        places[:, step], chances[:, step] = chosen, np.where(count > 0, chance, 1)
        left[rows, chosen], taken[rows, chosen] = False, True
    return places, chances


def _beyond_the_row(condition: str) -> str:
    """What in a condition could look at more than the values of its row; empty if nothing.

    Decided on the text, because parsing a sub-query opens the files that it names.
    """
    if len(condition) > MAX_CONDITION:
        return f"it is longer than {MAX_CONDITION:,} characters"
    bare = QUOTED.sub(" ", condition).lower()
    wrong = NOT_AN_EXPRESSION.search(bare)
    if wrong:
        return f"unexpected {wrong[0]!r}"
    if len(re.findall(r"\bbetween\b", bare)) > MAX_BETWEENS:
        return f"it holds more than {MAX_BETWEENS} of `between`"
    known = f"{KEYWORDS} {FUNCTIONS}".split()
    refused = [name for name in CALL.findall(bare) if name not in known]
    if refused:
        return f"{refused[0]!r} is not one of the functions {FUNCTIONS}"
    return ""


def _refused(items: pl.DataFrame, condition: str, reason: str) -> DataError:
    shown = condition if len(condition) <= MAX_CONDITION else f"{condition[:40]} ..."
    hint = SINGLE_QUOTES if '"' in condition else ""
    columns = ", ".join(items.columns)
    return DataError(
        f"the condition {shown!r} cannot be used: {reason}. Columns of the items: {columns}.{hint}"
    )


def _dense_codes(values: Int[np.ndarray, "*rows P"]) -> Int[np.ndarray, "*rows P"]:
    """Numbers below P, equal where the values of a row are."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    steps = np.diff(ordered, axis=-1, prepend=ordered[..., :1]) != 0
    codes = np.empty(values.shape, np.int64)
    np.put_along_axis(codes, order, steps.cumsum(axis=-1), axis=-1)
    return codes


def _min_max_scaled(
    scores: Float[np.ndarray, "Q P"], real: Bool[np.ndarray, "Q P"]
) -> Float[np.ndarray, "Q P"]:
    """Scores from 0 to 1 within the real entries of every row; 0 for the others."""
    low = scores.min(axis=1, keepdims=True, where=real, initial=np.inf)
    high = scores.max(axis=1, keepdims=True, where=real, initial=-np.inf)
    scalable = real & (high > low)
    return np.divide(scores - low, high - low, out=np.zeros_like(scores), where=scalable)


def _among(
    items: Int[np.ndarray, "Q A"], others: Int[np.ndarray, "Q B"]
) -> Bool[np.ndarray, "Q A"]:
    """Which entries are real and stand in the other list of the same row."""
    return (items[:, :, None] == others[:, None, :]).any(axis=2) & (items > 0)


def _first(
    chosen: Bool[np.ndarray, "Q A"], count: Int[np.ndarray, "Q 1"]
) -> Bool[np.ndarray, "Q A"]:
    """The first `count` of the chosen entries of every row."""
    return chosen & (chosen.cumsum(axis=1) <= count)
