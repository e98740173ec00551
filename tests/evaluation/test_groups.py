"""Groups of items and users: who is in them, and how well they are served."""

import numpy as np
import polars as pl
import pytest

from jaxrec.errors import ConfigError
from jaxrec.evaluation import groups
from jaxrec.evaluation.metrics import mean_interval
from jaxrec.ranking.top_k import Ranking

VALID = np.array([False, *[True] * 8, False])  # the unknown item, eight items, padding
COUNTS = np.array([9, 0, 0, 1, 2, 3, 4, 5, 6, 0], np.float32)
ITEMS = pl.DataFrame(
    {
        "item_id": [None, *"abcdefgh"],
        "brand": [None, "x", "x", "y", "y", "y", None, "z", "z"],
        "tags": [None, ["p"], ["p", "q"], [], ["q"], None, ["p"], ["p"], ["p"]],
        "price": [None, 1.0, 2, 3, 4, 5, 6, 7, None],
        "days": [None, *[None] * 8],
    },
    schema_overrides={"days": pl.List(pl.Float64)},
)


def members(found):
    return {
        name: "".join("-abcdefgh"[n] for n in np.flatnonzero(mask)) for name, mask in found.items()
    }


def test_deciles_cover_every_valid_item_once_and_equal_counts_share_one():
    found = groups.popularity_groups(COUNTS, VALID)
    assert sum(mask.astype(int) for mask in found.values()).tolist() == VALID.tolist()
    assert members(found)["popularity: decile 2"] == "ab"
    assert members(found)["popularity: decile 10 (most popular)"] == "h"


def test_labels_lists_and_numbers_form_groups():
    def of(name):
        return members(groups.column_groups(ITEMS, name, COUNTS, VALID))

    assert of("brand") == {
        "brand: z": "gh",
        "brand: y": "cde",
        "brand: (none)": "f",
        "brand: x": "ab",
    }
    assert of("tags")["tags: p"] == "abfgh"
    assert of("tags")["tags: (none)"] == "ce"
    price = of("price")
    assert price["price: lowest quarter"] == "a" and price["price: highest quarter"] == "fg"
    assert price["price: (none)"] == "h"


def test_rare_labels_share_a_group(monkeypatch):
    monkeypatch.setattr(groups, "LARGEST", 1)
    assert members(groups.column_groups(ITEMS, "brand", COUNTS, VALID)) == {
        "brand: z": "gh",
        "brand: 3 others": "abcdef",
    }


def test_a_column_that_forms_no_groups_is_refused():
    groups.check_columns(ITEMS, ["brand", "tags", "price"])
    with pytest.raises(ConfigError, match="no column 'colour'; they have brand, tags"):
        groups.check_columns(ITEMS, ["colour"])
    with pytest.raises(ConfigError, match="'days' has the type"):
        groups.check_columns(ITEMS, ["days"])


def test_rows_tell_quality_and_exposure():
    targets = np.array([1, 3, 3, 8])
    lists = np.array([[3, 4], [3, 8], [4, 3], [8, 0]])
    ranking = Ranking(np.array([50.0, 0, 1, 0]), lists, np.zeros(lists.shape))
    items = groups.column_groups(ITEMS, "brand", COUNTS, VALID)
    rows = groups.group_rows(
        ranking, targets, {"old": targets > 1, "none": targets > 9}, items, VALID
    )
    assert list(rows) == ["all", "old", "brand: z", "brand: y", "brand: (none)", "brand: x"]
    assert rows["all"]["recall@10"] == 0.75 and rows["old"]["recall@10"] == 1
    y = rows["brand: y"]
    assert y["count"] == 2 and y["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert (y["items"], y["targets"], y["exposure"]) == (3 / 8, 2 / 4, 5 / 7)
    assert rows["brand: (none)"]["count"] == 0


def test_only_groups_that_are_surely_below_the_mean_are_worse():
    def row(count, ndcg, high):
        return {"count": count, "ndcg@10": ndcg, "high": high}

    rows = {"all": row(900, 0.5, 0.51), "worse": row(99, 0.2, 0.3), "few": row(3, 0.0, 1.0)}
    assert groups.clearly_worse(rows | {"empty": row(0, 0.0, 0.0)}) == ["worse"]


def test_the_interval_of_a_mean_holds_it_in_most_samples():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        low, high = mean_interval((random.random(200) < 0.1).astype(float))
        inside += low <= 0.1 <= high
    assert inside / 400 > 0.9
    assert mean_interval(np.zeros(30)) == (0.0, 0.1)
    assert mean_interval(np.zeros(1)) == (0.0, 1.0)
