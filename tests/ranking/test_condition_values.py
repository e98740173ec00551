"""Numbers, texts and dates of SQL conditions: exact, and without surprise beside each other."""

from datetime import date, datetime

import polars as pl
import pytest

from jaxrec.errors import DataError
from jaxrec.ranking.conditions import MAX_ROWS, where

BIG = 1234567890123456789
ITEMS = pl.DataFrame(
    {
        "big": [BIG, BIG - 1, 2**53],
        "u64": pl.Series([2**64 - 1, 1, None], dtype=pl.UInt64),
        "i8": pl.Series([100, 1, -128], dtype=pl.Int8),
        "u8": pl.Series([1, 200, 5], dtype=pl.UInt8),
        "i16": pl.Series([32767, -1, 0], dtype=pl.Int16),
        "u32": pl.Series([1, 10, 5], dtype=pl.UInt32),
        "i32": pl.Series([2_000_000_000, 1, None], dtype=pl.Int32),
        "f32": pl.Series([0.1, 0.2, None], dtype=pl.Float32),
        "f32s": pl.Series([[0.1], [0.2], []], dtype=pl.List(pl.Float32)),
        "cost": pl.Series(["0.10", "2.50", None]).cast(pl.Decimal(10, 2)),
        "price": [2.0, 5.0, None],
        "ok": [True, False, None],
        "title": ["Nail zzz", "", None],
        "day": [date(2024, 1, 1), date(2024, 6, 1), None],
        "at": [datetime(2024, 1, 1, 12), datetime(2024, 6, 1), None],
        "utc": pl.Series(
            [datetime(2024, 1, 1, 12), datetime(2024, 6, 1), None]
        ).dt.replace_time_zone("UTC"),
    }
)


def rows(condition):
    return "".join("FT"[int(kept)] for kept in where(ITEMS, condition))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (f"big = {BIG}", "TFF"),
        (f"big > {BIG - 1}", "TFF"),
        (f"big IN ({BIG})", "TFF"),
        (f"big IN ({BIG}, 2.5)", "TFF"),
        (f"big NOT IN ({BIG}, 2.5)", "FTT"),
        ("big IN (9007199254740993, 2.5)", "FFF"),
        ("big IN (9007199254740992.0, 1e999)", "FFT"),
        (f"big BETWEEN {BIG} AND {BIG}", "TFF"),
        (f"CASE big WHEN {BIG} THEN true ELSE false END", "TFF"),
        (f"nullif(big, {BIG}) IS NULL", "TFF"),
        (f"greatest(big, 1) = {BIG}", "TFF"),
        (f"big - 1 = {BIG - 1}", "TFF"),
        (f"big * 1 = {BIG}", "TFF"),
        (f"big // 1 = {BIG}", "TFF"),
        (f"big % 10 = {BIG % 10}", "TFF"),
        (f"u64 = {2**64 - 1}", "TFF"),
        (f"u64 IN ({2**64 - 1}, 7)", "TFF"),
        ("u64 IN (1)", "FTF"),
        ("u64 > 1", "TFF"),
        ("big < 1" + "0" * 400, "TTT"),
    ],
)
def test_whole_numbers_of_64_bits_are_exact(condition, expected):
    assert rows(condition) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("i8 * 100 > 200", "TFF"),
        ("-i8 = 128", "FFT"),
        ("abs(i8) = 128", "FFT"),
        ("i8 // 2 = -64", "FFT"),
        ("i8 % 100 = -28", "FFT"),
        ("mod(i8, 100) = -28", "FFT"),
        ("pow(i8, 2) = 16384", "FFT"),
        ("u8 - 5 < 0", "TFF"),
        ("-u8 < 0", "TTT"),
        ("u32 - 5 < 0", "TFF"),
        ("i16 + 1 > 0", "TFT"),
        ("i32 * 2 > 3000000000", "TFF"),
        ("i32::int * 2 > 3000000000", "TFF"),
        ("2000000000 + 2000000000 > 0", "TTT"),
        ("length(title) - 5 < 0", "FTF"),
        ("extract(month FROM day) * 100 > 500", "FTF"),
        ("big * big > 0", "TTT"),
        ("big * 1000 > 0 AND big * 1000 * 1000 * 1000 > 0", "TTT"),
        ("u64 + u64 > 18446744073709551615", "TFF"),
        ("u64 * 2 > 3", "TFF"),
        ("i8 // 0 = 1 OR i8 % 0 = 1", "FFF"),
    ],
)
def test_arithmetic_of_whole_numbers_does_not_wrap(condition, expected):
    assert rows(condition) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("f32 = 0.1", "TFF"),
        ("f32 IN (0.1)", "TFF"),
        ("f32 BETWEEN 0.1 AND 0.1", "TFF"),
        ("f32 * 2 = 0.2", "TFF"),
        ("price / 20 = f32", "TFF"),
        ("-f32 = -0.1", "TFF"),
        ("price::real / 20 = 0.1", "TFF"),
        ("array_contains(f32s, 0.1)", "TFF"),
        ("cost = 0.1", "TFF"),
        ("cost IN (0.1, 7)", "TFF"),
        ("price IN (2, 2.5)", "TFF"),
    ],
)
def test_fractions_of_32_bits_equal_what_they_show(condition, expected):
    assert rows(condition) == expected


@pytest.mark.parametrize(
    "condition",
    [
        "1 < price < 3",
        "(1 < price) < 3",
        "1 = price = true",
        "price > 1 IS TRUE = true",
        "3 > price BETWEEN 1 AND 2",
    ],
)
def test_a_comparison_inside_another_is_refused(condition):
    with pytest.raises(DataError, match="cannot be used"):
        where(ITEMS, condition)


def test_truth_values_are_compared_in_parentheses():
    assert rows("(price < 3) = ok") == "TTF"
    assert rows("(price < 3) <> (price > 1)") == "FTF"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("strpos(title, 'zzz') = 0", "FTF"),
        ("strpos(title, 'zzz') = 6", "TFF"),
        ("strpos('zzz', title) = 1", "FTF"),
        ("strpos(title, 'zzz') IS NULL", "FFT"),
    ],
)
def test_the_place_in_a_null_text_is_null(condition, expected):
    assert rows(condition) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("day > '2024-01-01'", "FTF"),
        ("'2024-01-01' < day", "FTF"),
        ("day = '2024-01-01'", "TFF"),
        ("day < '2024-01-01 12:00'", "TFF"),
        ("day IN ('2024-01-01', '2025-01-01')", "TFF"),
        ("day NOT IN ('2024-01-01')", "FTF"),
        ("day BETWEEN '2024-01-01' AND '2024-02-01'", "TFF"),
        ("CASE day WHEN '2024-01-01' THEN true ELSE false END", "TFF"),
        ("at > '2024-01-01T11:59:59'", "TTF"),
        ("at = '2024-01-01T14:00:00+02:00'", "TFF"),
        ("at IN ('2024-01-01 12:00')", "TFF"),
        ("utc > '2024-01-01 12:00'", "FTF"),
        ("utc IN ('2024-01-01T12:00:00Z')", "TFF"),
        ("coalesce(day, DATE '2020-01-01') < '2024-01-01'", "FFT"),
        ("title = '2024-01-01'", "FFF"),
    ],
)
def test_text_beside_a_date_is_read_as_one(condition, expected):
    assert rows(condition) == expected


@pytest.mark.parametrize(
    "condition", ["day > 'soon'", "day IN ('2024-13-01')", "at = ''", "DATE '2024-02-30' < day"]
)
def test_text_that_is_no_date_is_refused_with_an_example(condition):
    with pytest.raises(DataError, match="is not a date such as '2025-01-31'"):
        where(ITEMS, condition)


@pytest.mark.parametrize("condition", [5, None, b"price < 1", "title = '\ud800'"])
def test_only_text_is_a_condition(condition, unchecked):
    with pytest.raises(DataError, match="cannot be used"):
        where(ITEMS, condition)


def test_a_large_table_is_read_in_parts():
    items = pl.DataFrame({"n": range(2 * MAX_ROWS + 1)})

    assert where(items, f"n >= {MAX_ROWS}").sum() == MAX_ROWS + 1
    for constant in ("true", "concat('a', 'b') = 'ab'", "'a' || 'b' = 'ab'", "length('ab') = 2"):
        assert where(items, constant).all()
        assert where(items, constant).shape == (len(items),)
    assert where(items.clear(), "n > 1").shape == (0,)
