"""Popular items, the search for titles and ids, and the details that a shop shows."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from jaxrec.inference.catalog_index import CatalogIndex
from jaxrec.serving.live.shop_items import ShopItems, detail

TITLES = ["Crème brûlée set", "Ice cream maker", "Cream cheese", "Scream mask", None]
COUNTS = [0, 1, 5, 3, 9, 2, 0, 0]  # of row 0, the items, and padding


@pytest.fixture
def shop():
    return shop_with(COUNTS)


def shop_with(counts):
    items = pl.DataFrame(
        {
            "item_id": [None, "a1", "a2", "b.3", "b4", "CREAM"],
            "title": [None, *TITLES],
            "brand": [None, "Nord", "Nord", None, "Süd", "Nord"],
            "categories": [None, ["Kitchen", "Baking"], ["Kitchen"], [], None, ["Food"]],
            "price": [None, "9.5", "free", "12", None, "inf"],
        }
    )
    catalog = SimpleNamespace(items=items, num_items=len(items))
    empty = np.zeros((0, 0), np.float32)
    index = object.__new__(CatalogIndex)
    fields = {"catalog": catalog, "vectors": empty, "counts": np.array(counts, np.float32)}
    for name, value in fields.items():
        object.__setattr__(index, name, value)
    return ShopItems(index)


def test_without_training_events_items_have_the_order_of_the_catalogue(shop):
    new = shop_with([0] * len(COUNTS))
    assert shop.has_popular and not new.has_popular
    assert new.popular(3) == [1, 2, 3]


def test_popular_items_are_those_chosen_most_often_in_training(shop):
    assert shop.popular(3) == [4, 2, 3]
    assert shop.popular(50) == [4, 2, 3, 5, 1]  # neither the unknown item nor padding


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cream", [2, 3, 5, 4]),  # beginnings of words first, then by popularity
        ("CREME", [1]),
        ("crème ", [1]),
        ("maker ice", [2]),
        ("b.", [3]),  # an id, and no pattern
        ("b.3 cheese", [3]),
        ("cr(", []),
        (".*", []),
        ("\\", []),
        ("ice cream maker for two", []),
        ("   ", [4, 2, 3, 5, 1]),
    ],
)
def test_a_search_finds_parts_of_titles_and_ids(shop, words, expected):
    assert shop.search(words, 50) == expected
    assert shop.search(words, 1) == expected[:1]


def test_items_have_the_details_that_are_columns(shop):
    first, second, *_, last = shop.rows([1, 2, 3, 5])
    assert first == {
        "id": "a1",
        "title": "Crème brûlée set",
        "price": 9.5,
        "brand": "Nord",
        "category": "Baking",
    }
    assert second["price"] is None
    assert last["title"] is None
    assert last["price"] is None  # infinite
    assert shop.details_of([0, 3]) == [
        {"price": None, "brand": None, "category": None},
        {"price": 12, "brand": None, "category": None},
    ]
    assert shop.rows([]) == []


@pytest.mark.parametrize(
    ("column", "name", "expected"),
    [
        (pl.Series("category", ["Food > Sweet > Ice", "Toys"]), "category", ["Ice", "Toys"]),
        (pl.Series("genres", [["Drama", "War"], []]), "category", ["Drama, War", ""]),
        (pl.Series("brand", [["x", "y"], None]), "brand", ["x, y", None]),
        (pl.Series("brand", [7, None]), "brand", ["7", None]),
        (pl.Series("price", [3, None]), "price", [3.0, None]),
    ],
)
def test_details_are_read_from_the_usual_columns(column, name, expected):
    assert detail(column.to_frame(), name).to_list() == expected


@pytest.mark.parametrize(
    ("column", "name"),
    [
        (pl.Series("image_url", [b"\x89PNG"]), "image_url"),
        (pl.Series("image_url", [[0.5, 0.25]]), "image_url"),
        (pl.Series("price", [["9.5"]]), "price"),
        (pl.Series("colour", ["red"]), "brand"),
    ],
)
def test_a_column_of_another_kind_is_no_detail(column, name):
    assert detail(column.to_frame(), name) is None
