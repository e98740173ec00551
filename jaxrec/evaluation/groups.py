"""Quality and exposure of groups: segments of queries, and items by popularity and by columns."""

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from jaxrec.errors import ConfigError
from jaxrec.evaluation.metrics import ndcg, ndcg_interval, recall
from jaxrec.ranking.top_k import Ranking

K = 10
LARGEST = 20  # groups of a column
WORSE = 0.8  # of the NDCG of all queries


def check_columns(items: pl.DataFrame, columns: Iterable[str]) -> None:
    """Raise a ConfigError for a column that the items lack or that forms no groups."""
    for name in columns:
        if name not in items.columns:
            has = ", ".join(column for column in items.columns if column != "item_id")
            raise ConfigError(f"report.group_by: items have no column {name!r}; they have {has}")
        dtype = items.schema[name]
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        is_label = inner in (pl.String, pl.Boolean, pl.Categorical, pl.Null)
        if not (is_label or (inner is dtype and dtype.is_numeric())):
            raise ConfigError(
                f"report.group_by: column {name!r} has the type {dtype}; name one of labels or of "
                "numbers"
            )


def popularity_groups(
    counts: Float[np.ndarray, " I"], valid: Bool[np.ndarray, " I"]
) -> dict[str, Bool[np.ndarray, " I"]]:
    """Valid items by deciles of their training events, each a tenth of the items.

    Items with equal counts share a decile, so some may be empty and are left out.
    """
    ranks = np.zeros(len(counts))
    ranks[valid] = pl.Series(counts[valid]).rank("average").to_numpy()
    deciles = np.ceil(10 * ranks / max(int(np.count_nonzero(valid)), 1)).astype(int)
    names = {1: "decile 1 (least popular)", 10: "decile 10 (most popular)"}
    return {
        f"popularity: {names.get(decile, f'decile {decile}')}": deciles == decile
        for decile in np.unique(deciles[valid]).tolist()
    }


def column_groups(
    items: pl.DataFrame, name: str, counts: Float[np.ndarray, " I"], valid: Bool[np.ndarray, " I"]
) -> dict[str, Bool[np.ndarray, " I"]]:
    """Valid items by the values of a column: labels, or quarters of numbers.

    The labels with the most training events have a group each; the others share one. An item with
    a list of labels is in several groups.

    Args:
        items: a row an item, the first of the unknown item; fewer than the padded `valid`.
    """
    known = valid[: len(items)]
    table = pl.DataFrame(
        {
            "item": np.flatnonzero(known),
            "label": _labels(items[name].filter(pl.Series(known))),
            "count": counts[: len(items)][known],
        }
    )
    if isinstance(table.schema["label"], pl.List):
        label = pl.col("label")
        # versions of polars differ in whether an empty list keeps its row
        table = table.with_columns(pl.when(label.list.len() > 0).then(label)).explode("label")
    table = table.with_columns(pl.col("label").cast(pl.String).fill_null("(none)"))
    sizes = table.group_by("label").agg(pl.col("count").sum())
    labels = sizes.sort(["count", "label"], descending=[True, False])["label"].to_list()
    groups = {f"{name}: {label}": [label] for label in labels[:LARGEST]}
    if rest := labels[LARGEST:]:
        groups[f"{name}: {len(rest):,} others"] = rest
    return {
        group: _mask(table.filter(pl.col("label").is_in(members))["item"], len(valid))
        for group, members in groups.items()
    }


def _labels(column: pl.Series) -> pl.Series:
    if not column.dtype.is_numeric():
        return column
    quarters = ["lowest quarter", "second quarter", "third quarter", "highest quarter"]
    ranks = column.rank("average") * 4 / max(column.count(), 1)
    number = ranks.ceil().cast(pl.Int64) - 1
    return number.replace_strict(dict(enumerate(quarters)), return_dtype=pl.String)


def group_rows(
    ranking: Ranking,
    targets: Int[np.ndarray, " Q"],
    segments: Mapping[str, Bool[np.ndarray, " Q"]],
    items: Mapping[str, Bool[np.ndarray, " I"]],
    valid: Bool[np.ndarray, " I"],
) -> dict[str, dict[str, float]]:
    """Quality of the queries of each group, and exposure of each group of items.

    Args:
        segments: named subsets of the queries.
        items: named groups of items; the queries of a group are those whose target is in it.

    Returns:
        The group `all` first. A row has the `count` of queries, `ndcg@10` with the `low` and the
        `high` end of its 95 % interval, and `recall@10`. Groups of items also have their shares of
        the valid items (`items`), of the targets (`targets`) and of the places in lists
        (`exposure`). Groups without queries are left out, but those of items.
    """
    everything = np.ones(len(targets), bool)
    rows = {
        name: _quality(ranking.ranks[mask])
        for name, mask in {"all": everything, **segments}.items()
        if mask.any()
    }
    places = np.bincount(ranking.items[ranking.items > 0], minlength=len(valid))
    for name, members in items.items():
        rows[name] = {
            **_quality(ranking.ranks[members[targets]]),
            "items": _share(members[valid]),
            "targets": _share(members[targets]),
            "exposure": float(places[members].sum() / max(places.sum(), 1)),
        }
    return rows


def clearly_worse(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Groups whose whole interval lies below four fifths of the NDCG of all queries."""
    bar = WORSE * rows["all"]["ndcg@10"]
    return [name for name, row in rows.items() if row["count"] and row["high"] < bar]


def _quality(ranks: Float[np.ndarray, " q"]) -> dict[str, float]:
    values = ndcg(ranks, K)
    hits = recall(ranks, K)
    return {
        "count": len(ranks),
        "ndcg@10": float(values.mean()) if len(values) else 0.0,
        **ndcg_interval(ranks, K),
        "recall@10": float(hits.mean()) if len(hits) else 0.0,
    }


def _share(mask: Bool[np.ndarray, " n"]) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _mask(numbers: pl.Series, size: int) -> Bool[np.ndarray, " I"]:
    mask = np.zeros(size, bool)
    mask[numbers.to_numpy()] = True
    return mask
