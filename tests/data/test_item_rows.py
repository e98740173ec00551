"""Rows of an item table from JSON values."""

from datetime import date

import polars as pl
import pytest

from jaxrec.data.item_rows import MAX_COLUMNS, item_rows
from jaxrec.errors import DataError

KNOWN = pl.DataFrame(
    {
        "item_id": ["a", "b"],
        "title": ["A", None],
        "price": [1.5, None],
        "size": [3, None],
        "day": [date(2025, 1, 1), None],
        "categories": [["x", "y"], None],
        "empty": pl.Series([None, None], dtype=pl.Null),
    }
)


def rows(*values):
    return item_rows(KNOWN, values, KNOWN.schema)


def test_values_take_the_types_of_their_columns():
    result = rows(
        {"title": "T", "price": 2, "day": "2026-02-03"}, {"categories": "u > v", "size": 4.0}
    )
    assert result.schema == {**KNOWN.schema}
    assert result.rows() == [
        ("a", "T", 2.0, 3, date(2026, 2, 3), ["x", "y"], None),
        ("b", None, None, 4, None, ["u", "v"], None),
    ]


def test_new_columns_take_the_types_of_their_values():
    result = rows({"stock": 3, "empty": "now text"}, {"stock": 2.5, "vector": [1, 2.5]})
    assert result.schema["stock"] == pl.Float64
    assert result.schema["vector"] == pl.List(pl.Float64)
    assert result["empty"].to_list() == ["now text", None]
    assert result["vector"].to_list() == [None, [1.0, 2.5]]


def test_whole_numbers_may_become_fractions():
    assert rows({"size": 2.5}, {})["size"].to_list() == [2.5, None]
    assert rows({"size": 2.0}, {}).schema["size"] == pl.Int64


def test_null_empties_a_value():
    assert rows({"title": None, "categories": None}, {})["title"].to_list() == [None, None]


def test_nothing_to_change():
    assert rows({}, {}).equals(KNOWN)
    assert item_rows(KNOWN[:0], [], KNOWN.schema).is_empty()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"price": "cheap"}, "price"),
        ({"day": "tomorrow"}, "day"),
        ({"Title": "x"}, "same name"),
        ({"own": 1}, None),
        ({f"c{n}": 1 for n in range(MAX_COLUMNS)}, "more than 256 columns"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    if message is None:
        with pytest.raises(DataError, match="different types"):
            rows(values, {"own": "text"})
        return
    with pytest.raises(DataError, match=message):
        rows(values, {})
