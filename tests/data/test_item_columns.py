"""Columns of items as shops write them: prices, labels, and names that jaxrec does not know."""

import polars as pl
import pytest
from helpers.tables import EVENTS

from jaxrec.data.tables import validate_items, validate_tables
from jaxrec.errors import DataError


def validated(**columns):
    ids = [f"i{number}" for number in range(len(next(iter(columns.values()))))]
    return validate_items(pl.DataFrame({"item_id": ids, **columns}), "items.csv")


@pytest.mark.parametrize(
    ("prices", "numbers"),
    [
        (["$9.99", "$1,234.50", None], [9.99, 1234.5, None]),
        (["9,99 €", "1.234,5 €", "-"], [9.99, 1234.5, None]),
        (["EUR 3", "4", ""], [3.0, 4.0, None]),
        (["1 234 567,5", "1'000", None], [1234567.5, 1000.0, None]),
    ],
)
def test_prices_with_currencies_and_decimal_commas_are_numbers(prices, numbers):
    items, warnings, notes = validated(price=prices)
    assert items["price"].to_list() == numbers and not warnings
    assert f"such as {prices[0]!r} as {numbers[0]}" in notes[0]


def test_a_price_of_structs_is_told():
    _, [warning], _ = validated(price=[{"amount": 1.5}])
    assert "1 of 1 prices are no numbers (row 1: {'amount': 1.5})" in warning


@pytest.mark.parametrize(
    ("prices", "count"),
    [
        (["9.99", "free"], 1),
        (["9,99", "9.99"], 2),
        (["1 - 2", "3 - 4"], 2),
        (["(9.99)", "\u22129.99"], 2),
        (["$5", "10%"], 1),
    ],
)
def test_prices_that_are_no_numbers_are_counted(prices, count):
    items, warnings, _ = validated(price=prices)
    assert items["price"].to_list() == prices
    assert f"{count} of 2 prices are no numbers" in warnings[0]


@pytest.mark.parametrize("prices", [[2.5, -1.0], ["$2.5", "-1 $"]])
def test_prices_below_zero_are_counted(prices):
    items, [warning], _ = validated(price=prices)
    assert items["price"].to_list() == [2.5, -1.0]
    assert "1 of 2 prices are below 0 (row 2: -1.0)" in warning


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["Beauty -> Skin"], ["Beauty", "Skin"]),
        (["Beauty » Skin"], ["Beauty", "Skin"]),
        (["['Beauty', ' Skin ']", "nan"], ["Beauty", "Skin"]),
        (["[{'id': 1, 'name': 'Beauty'}, {'id': 2, 'name': 'Skin'}]"], ["Beauty", "Skin"]),
    ],
)
def test_paths_and_lists_in_text_become_labels(values, labels):
    items, *_ = validated(categories=values)
    assert items["categories"].to_list() == [labels] + [None] * (len(values) - 1)


def test_labels_have_no_blanks_at_their_ends():
    items, *_ = validated(brand=[" Acme", "Acme\u00a0"], genres=[["a", " b"], ["b "]])
    assert items["brand"].to_list() == ["Acme", "Acme"]
    assert items["genres"].to_list() == [["a", "b"], ["b"]]


def test_a_title_of_structs_is_refused_with_the_name_of_its_file():
    with pytest.raises(DataError, match=r"items\.csv, column 'title': wrong type Struct"):
        validated(title=[{"en": "Mug"}])


def test_text_in_bytes_is_text():
    items, *_ = validated(description=[b"Mild."])
    assert items["description"].to_list() == ["Mild."]


def warnings_of(events=EVENTS, items=None):
    return validate_tables(events, items, None, origin=("events.csv", "items.csv", "")).warnings


def test_columns_that_have_other_names_are_told():
    events = EVENTS.rename({"event": "event_type"})
    items = pl.DataFrame({"item_id": ["b", "007"], "name": "Mug", "cost": 1.5})
    first, second = warnings_of(events, items)
    assert "columns: {event: event_type}" in first
    assert "no title, price, but name, cost" in second


@pytest.mark.parametrize(
    ("ids", "difference"),
    [
        (["B", "007"], "1 of 1 match without capitals"),
        (["b ", "007"], "1 of 1 match without blanks at their ends"),
        (["b", "7"], "1 of 1 match without zeros at their beginning"),
        (["b", "007.0"], "1 of 1 match without '.0' at their ends"),
        (["b", "\uff10\uff10\uff17"], "1 of 1 match without the forms of Unicode"),
    ],
)
def test_ids_that_two_tables_spell_differently_are_told(ids, difference):
    warnings = warnings_of(items=pl.DataFrame({"item_id": ids}))
    assert any(difference in warning for warning in warnings)


@pytest.mark.parametrize("blank", [" ", "\u00a0", "\u200b", "\ufeff", "\0"])
def test_ids_with_blanks_at_their_ends_are_counted(blank):
    events = EVENTS.with_columns(event=pl.Series(["view", f"view{blank}", "view"]))
    [warning] = warnings_of(events)
    assert "column 'event': 1 of 3 values have blanks at their ends (row 2: 'view" in warning


def test_event_types_that_differ_in_capitals_are_told():
    events = EVENTS.with_columns(event=pl.Series(["view", "View", "buy"]))
    [warning] = warnings_of(events)
    assert "'View', 'view' differ only in capitals" in warning
    assert "`event_types: {View: view}`" in warning


@pytest.mark.parametrize("word", ["Nan", "(null)", "anonymous", "NaT"])
def test_words_for_nobody_are_counted_in_any_case(word):
    events = EVENTS.with_columns(user_id=pl.Series(["u", word, "u"]))
    [warning] = warnings_of(events)
    assert f"1 times {word!r}" in warning
