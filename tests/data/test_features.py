"""Columns of vectors and numbers in an items table."""

import numpy as np
import polars as pl
import pytest
from helpers.tables import SECOND

from jaxrec.config import parse
from jaxrec.data.dataset import prepare
from jaxrec.data.features import FeatureColumns, feature_arrays, feature_columns, vector_columns
from jaxrec.data.sources import load_source
from jaxrec.data.tables import validate_items, validate_tables
from jaxrec.errors import ConfigError, DataError

EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 3}" for n in range(12)],
        "item_id": ["b", "007"] * 6,
        "timestamp": [SECOND + n for n in range(12)],
    }
)
ITEMS = pl.DataFrame(
    {
        "item_id": ["b", "007", "unsold"],
        "image": [[1.0, 2.0], None, [0.5, 0.25]],
        "sizes": [[38, 39], [40], None],
        "tags": [["red"], [], None],
        "price": [1.5, None, 3.0],
    }
)


def config(*experts, **options):
    return parse(
        layers=[
            {"model.experts": list(experts), "split.scheme": "leave_one_out", **options},
        ]
    )


def problem(items, *experts, **options) -> str:
    tables = validate_tables(EVENTS, items, None)
    with pytest.raises((DataError, ConfigError)) as error:
        prepare(config(*experts, **options), tables)
    return str(error.value)


def test_lists_of_numbers_of_one_length_are_vectors():
    assert vector_columns(ITEMS) == ("image",)


def test_an_expert_reads_the_columns_that_it_names_or_all():
    assert feature_columns(ITEMS, config("id+image")).vectors == ("image",)
    assert feature_columns(ITEMS, config("id", "text+vectors")).vectors == ("image",)
    assert feature_columns(ITEMS, config("id+text")) == FeatureColumns()
    options = {"data.numeric_columns": ["price"]}
    assert feature_columns(ITEMS, config("id+numbers", **options)).numbers == ("price",)
    assert feature_columns(ITEMS, config("id", **options)).numbers == ()


def test_missing_values_are_nan():
    arrays = feature_arrays(ITEMS, FeatureColumns(("image",), ("price",)))
    np.testing.assert_array_equal(arrays["image"], [[1, 2], [np.nan, np.nan], [0.5, 0.25]])
    np.testing.assert_array_equal(arrays["price"], [1.5, np.nan, 3])
    assert feature_arrays(ITEMS[["item_id"]], FeatureColumns(("image",)), {"image": 2})[
        "image"
    ].shape == (3, 2)


@pytest.mark.parametrize("write", ["parquet", "fixed", "jsonl", "csv"])
def test_vectors_are_read_from_every_format(tmp_path, write):
    EVENTS.write_parquet(tmp_path / "events.parquet")
    items = ITEMS.select("item_id", "image")
    match write:
        case "parquet":
            items.write_parquet(tmp_path / "items.parquet")
        case "fixed":
            fixed = items.with_columns(pl.col("image").cast(pl.Array(pl.Float32, 2)))
            fixed.write_parquet(tmp_path / "items.parquet")
        case "jsonl":
            items.write_ndjson(tmp_path / "items.jsonl")
        case "csv":
            text = pl.Series(["[1.0, 2e0, 0, 0]", None, "[0.5,0.25,0,0]"])
            items.with_columns(image=text).write_csv(tmp_path / "items.csv")
    tables = load_source(str(tmp_path))
    vectors = prepare(config("id+image"), tables).catalog.items["image"]
    assert vectors.list.head(2).to_list() == [None, [1, 2], None, [0.5, 0.25]]
    assert vectors.dtype == pl.List(pl.Float32)


def test_text_with_brackets_stays_text():
    for text in ("[sold, out, for, now]", "[1,,2,3,4]", "1, 2, 3, 4", "[38, 40]", "", " , , , "):
        items = pl.DataFrame({"item_id": ["a"], "note": [text]})
        assert validate_items(items, "items")[0]["note"][0] == text
    items = pl.DataFrame({"item_id": ["a"], "title": ["[1, 2, 3, 4]"]})
    assert validate_items(items, "items")[0]["title"][0] == "[1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0], [1.0]], "row 3, item 'unsold': 1 numbers"),
        ([[1.0, 2.0], [1.0, float("nan")], None], "row 2, item '007': number 2"),
        ([[float("inf"), 2.0], None, None], "row 1, item 'b': number 1"),
        ([[None, 2.0], None, [1.0, 1.0]], "row 1, item 'b': number 1"),
    ],
)
def test_a_broken_vector_is_named(vectors, message):
    items = ITEMS.with_columns(image=pl.Series(vectors))
    assert message in problem(items, "id+image")


def test_a_value_that_is_no_number_is_named():
    items = ITEMS.with_columns(price=pl.Series(["1", "cheap", ""]))
    text = problem(items, "id+numbers", **{"data.numeric_columns": ["price"]})
    assert "row 2, item '007': 'cheap'" in text


def test_names_that_the_items_lack_are_refused_with_those_that_they_have():
    assert "vector columns of the items, which are: image" in problem(ITEMS, "id+picture")
    text = problem(ITEMS, "id+numbers", **{"data.numeric_columns": ["weight"]})
    assert "names weight; the items have item_id, image" in text
    with pytest.raises(ConfigError, match=r"data\.numeric_columns names no column"):
        config("numbers")


def test_vectors_of_another_length_than_in_training_are_refused():
    with pytest.raises(DataError, match="do not have 3 numbers as in training"):
        feature_arrays(ITEMS, FeatureColumns(("image",)), {"image": 3}, "new items")
