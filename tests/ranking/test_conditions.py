"""SQL conditions: selected rows, refusals, and texts that must not hang or crash a process."""

import subprocess
import sys
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrec.errors import DataError
from jaxrec.ranking.condition_functions import FUNCTIONS
from jaxrec.ranking.conditions import KEYWORDS, MAX_CONDITION, where

ITEMS = pl.DataFrame(
    {
        "item_id": [None, "a", "b", "c"],
        "price": [None, 10.0, 60.0, None],
        "category": [None, "Nails", "Hair", "select (1), -- 'x'"],
        "tags": [None, ["red", "new"], ["blue"], []],
        "added": [None, date(2024, 1, 1), date(2025, 1, 1), None],
        "shelf no": [None, 1, 2, 3],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("price < 50 AND category = 'Nails'", [1]),
        ("NOT price < 50", [2]),
        ("price BETWEEN 1 AND 20 OR category = 'Hair'", [1, 2]),
        ("category IN ('Hair', 'Skin')", [2]),
        ("lower(category) LIKE 'n%'", [1]),
        ("coalesce(price, 0) * 2 <= 20", [0, 1, 3]),
        ("array_contains(tags, 'blue')", [2]),
        ("added >= DATE '2025-01-01'", [2]),
        ("extract(year FROM added) = 2024", [1]),
        ("CASE WHEN price > 50 THEN false ELSE true END", [0, 1, 3]),
        ('"shelf no" > 2', [3]),
        ("category = 'select (1), -- ''x'''", [3]),
        (r"category = 'a\b'", []),
        (r"category ~ '^N\w+$'", [1]),
        ("price > -'5' AND price < 1e2", [1, 2]),
        ("price = -'-10'", [1]),
        ("true", [0, 1, 2, 3]),
    ],
)
def test_where_selects_the_rows_that_satisfy_the_condition(condition, rows):
    mask = where(ITEMS, condition)

    assert mask.dtype == bool
    assert mask.shape == (4,)
    np.testing.assert_array_equal(np.flatnonzero(mask), rows)


@pytest.mark.parametrize(
    ("condition", "row"),
    [
        ("'x' like 'x'", True),
        ("1 in (2, 3)", False),
        ("'x' ~ 'X' or price < 50", False),
        ("price < 50 and 'x' in ('x')", False),
        ("coalesce(price < 50, 'x' like 'x')", True),
        ("true", True),
    ],
)
def test_constants_count_for_every_row_of_a_table_in_chunks(condition, row):
    chunks = pl.concat([ITEMS, ITEMS.filter(price=60), ITEMS[:0], ITEMS[:1]], rechunk=False)
    assert chunks.n_chunks() > 1
    mask = where(chunks, condition)
    np.testing.assert_array_equal(mask, where(chunks.rechunk(), condition))
    assert mask.shape == (len(chunks),)
    assert mask[0] == row


def test_where_may_use_a_column_of_any_name():
    items = ITEMS.rename({"price": "kept", "category": "select"})

    np.testing.assert_array_equal(
        where(items, """kept < 50 AND "select" = 'Nails'"""), [False, True, False, False]
    )


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("price <", "parse"),
        ("category = 'Nails", "parse"),
        ("", "parse"),
        ("prize < 50", "there is no column 'prize'"),
        ("price < 'cheap'", "cannot compare"),
        ("CAST(category AS int) = 1", "conversion"),
        ("price", "gives Float64"),
        ("null", "gives Null"),
        ("category ~ '('", "regex"),
        ("price < 1e", "'1e' is not a number"),
        ("price < -1e", "'1e' is not a number"),
        ("price IN (-1e)", "'1e' is not a number"),
    ],
)
def test_conditions_that_do_not_fit_the_table_are_refused_with_its_columns(condition, reason):
    with pytest.raises(DataError, match=reason) as caught:
        where(ITEMS, condition)

    assert "item_id, price, category, tags, added, shelf no" in str(caught.value)
    assert "single quotes" not in str(caught.value)


def test_text_in_double_quotes_is_refused_with_a_hint():
    with pytest.raises(DataError, match="single quotes"):
        where(ITEMS, 'category = "Nails"')


pieces = [*KEYWORDS.split(), *(f"{name}(" for name in FUNCTIONS), *"=<>(),+-*/%[]~"]
pieces += ["price", "brand", "category", "item_id", "'x'", "1", "-2.5", "<>", "<=", "::", "NULL"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(pieces), max_size=9).map(" ".join))
def test_any_text_is_either_used_or_refused(condition):
    try:
        assert where(ITEMS, condition).shape == (len(ITEMS),)
    except DataError as error:
        assert "cannot be used" in str(error)


@pytest.mark.parametrize(
    "condition",
    [
        "max(price) > price",
        "price > MIN (price)",
        "count(*) > 1",
        "first(price) > 0",
        "sum(price) OVER (PARTITION BY category) > 1",
        "abs(price) OVER (PARTITION BY category) > 1",
        "row_number() OVER (ORDER BY price) > 1",
        "abs(price) OVER w > 1",
        "unnest(tags) = 'red'",
        "COLUMNS('p.*') > 1",
        "price > ANY (price)",
        "price > (SELECT 1)",
        "price IN (sElEcT price FROM self)",
        "EXISTS (SELECT 1)",
        "price IN (VALUES (1), (2))",
        "price < 50; DROP TABLE self",
        "price < 50, price",
        "price < 50 FROM self",
        "*",
    ],
)
def test_where_reads_only_the_values_of_a_row(condition):
    with pytest.raises(DataError):
        where(ITEMS, condition)


@pytest.mark.parametrize(
    "condition",
    [
        "price IN (SELECT price FROM read_csv('{file}'))",
        "price IN (FROM read_csv('{file}'))",
        "price IN (FROM \"read_csv\"('{file}'))",
        "price IN (FROM \"read_csv\" ('{file}'))",
        "price IN (FROM read_csv/**/('{file}'))",
        "price IN (FROM `read_csv`('{file}'))",
        "EXISTS (FROM read_csv('{file}'))",
        "price < 1 -- '\n OR price IN (FROM read_csv('{file}')) -- '",
        "category = '\\' OR price IN (FROM read_csv('{file}')) --'",
        "category = E'\\'' OR price IN (FROM read_csv('{file}')) -- '",
        "category = $$'$$ OR price IN (FROM read_csv('{file}')) OR category = $$'$$",
        "category = '' OR price IN (FROM read_csv('{file}')) OR category = ''",
    ],
)
def test_where_never_lets_the_parser_see_a_file(condition, tmp_path, monkeypatch):
    """The parser opens the files of a sub-query, so it must not see the condition at all."""
    file = tmp_path / "prices.csv"
    file.write_text("price\n10\n")
    parsed = []
    monkeypatch.setattr(pl, "sql_expr", lambda text: parsed.append(text) or pl.lit(True))

    with pytest.raises(DataError):
        where(ITEMS, condition.replace("{file}", str(file)))

    assert parsed == []


def test_where_and_the_parser_agree_on_string_literals():
    """A backslash escapes nothing, quotes are doubled, and a name may hold a single quote."""
    items = pl.DataFrame({"x'": ["a\\b", "it's", "'"]})

    for row, literal in enumerate([r"'a\b'", "'it''s'", "''''"]):
        np.testing.assert_array_equal(where(items, f'"x\'" = {literal}'), np.arange(3) == row)


@pytest.mark.parametrize(
    "condition", ["least() > 1", "greatest() > 1", "price between 1 and " * 240 + "2"]
)
def test_where_survives_crashes_of_the_parser(condition):
    """A panic is no Exception; every `between` in a chain doubles the time of the parser."""
    with pytest.raises(DataError, match="cannot be used"):
        where(ITEMS, condition)


def test_a_condition_of_excessive_length_is_refused_in_a_short_message():
    condition = "price < 50" + " OR price < 50" * MAX_CONDITION

    with pytest.raises(DataError, match="longer than 4,000") as caught:
        where(ITEMS, condition)

    assert len(str(caught.value)) < 300


def test_the_refusal_of_a_function_names_those_that_can_be_used():
    with pytest.raises(
        DataError, match=f"'max' is not one of the functions {', '.join(FUNCTIONS)}"
    ):
        where(ITEMS, "price < max(price)")


HOSTILE = {
    "500 joined texts": "||".join(["title"] * 500) + " = 'x'",
    "1,900 terms": "+".join(["1"] * 1900) + " > 1",
    "1,000 divisions": "price" + "/1" * 1000 + " > 1",
    "45 of not": "not(" * 45 + "price < 1" + ")" * 45,
    "900 of not": "not " * 900 + "price < 1",
    "1,900 signs": "- " * 1900 + "price < 1",
    "open parentheses": "(" * 3999,
    "1,900 parentheses": "(" * 1900 + "price" + ")" * 1900 + " < 1",
    "nested functions": "abs(" * 700 + "price" + ")" * 700 + " < 1",
    "nested case": "case when " * 390,
    "many branches": "case " + "when price < 1 then 1 " * 170 + "end = 1",
    "between": "price between 1 and " * 190 + "2",
    "comparisons": "=".join(["price"] * 660),
    "casts": "price" + "::int" * 700 + " = 1",
    "remainders": "%".join(["price"] * 660) + " = 1",
    "nested remainders": "MOD(" * 14 + "price" + ",2)" * 14 + " = 1",
    "nested nullif": "nullif(" * 14 + "price" + ",2)" * 14 + " = 1",
    "nested in": "(price in (price, " * 14 + "1" + "))" * 14,
    "nested case of a value": "case " * 14
    + "price"
    + " when 1 then 2 when 2 then 3 end" * 14
    + " = 1",
    "intervals": "interval " + "'1' day " * 440,
    "dots": "a" + ".a" * 1900,
    "comments": "/*" * 1900,
    "quotes": "'" * 3999,
    "templates": "{{" * 1900,
    "huge counts": r"category ~ '((\w{1000}){1000}){1000}'",
    "many patterns": " or ".join(["category like '%a%b%'"] * 140),
    "a long pattern": "category ~ '" + r"\w" * 1900 + "'",
}
LONG = {
    "and": " and ".join(["price < 50"] * 260),
    "or": " or ".join(["price < 50"] * 280),
    "in": "price in (" + ",".join(["10"] * 1200) + ")",
    "mixed": " and ".join(["(price < 50 or category = 'x')"] * 110),
}
IN_A_PROCESS = """
import sys, polars as pl
from jaxrec.errors import DataError
from jaxrec.ranking.conditions import where
names = [None, "Nails", "Hair"]
items = pl.DataFrame({"price": [None, 10.0, 60.0], "category": names, "title": names})
for condition in sys.stdin.read().split(chr(0)):
    try:
        print(where(items, condition).astype(int).tolist())
    except DataError as error:
        print("refused")
"""


def in_a_process(conditions):
    """Results of conditions in a process of its own, which may crash or hang."""
    run = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS],
        input=chr(0).join(conditions),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-1000:]
    return run.stdout.splitlines()


def test_hostile_conditions_are_refused_at_once():
    assert max(map(len, HOSTILE.values())) <= MAX_CONDITION
    results = dict(zip(HOSTILE, in_a_process(HOSTILE.values()), strict=True))

    assert results == dict.fromkeys(HOSTILE, "refused")


def test_long_chains_of_conditions_are_used():
    assert max(map(len, LONG.values())) <= MAX_CONDITION
    results = dict(zip(LONG, in_a_process(LONG.values()), strict=True))

    assert results == dict.fromkeys(LONG, "[0, 1, 0]")


VALUES = ["price", "n", "1", "2.5", "-3", "0", "null"]
ROWS = [
    {"price": None, "n": None, "category": None, "ok": None},
    {"price": 10.0, "n": 1, "category": "Nails", "ok": True},
    {"price": 60.0, "n": -3, "category": "Hair", "ok": False},
    {"price": None, "n": 2, "category": "Nuts", "ok": True},
]


def nested(truths):
    """Larger conditions from smaller ones, beside the function that evaluates a row in Python."""

    def both(pair):
        (left, of_left), (right, of_right) = pair
        return f"({left}) and ({right})", lambda row: conjunction(of_left(row), of_right(row))

    def either(pair):
        (left, of_left), (right, of_right) = pair
        return (
            f"({left}) or ({right})",
            lambda row: negation(conjunction(negation(of_left(row)), negation(of_right(row)))),
        )

    def inverse(part):
        return f"not ({part[0]})", lambda row: negation(part[1](row))

    def chosen(parts):
        (test, of_test), (yes, of_yes), (no, of_no) = parts
        return (
            f"case when {test} then {yes} else {no} end",
            lambda row: of_yes(row) if of_test(row) else of_no(row),
        )

    pairs = st.tuples(truths, truths)
    triples = st.tuples(truths, truths, truths)
    return pairs.map(both) | pairs.map(either) | truths.map(inverse) | triples.map(chosen)


def conjunction(left, right):
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def negation(value):
    return None if value is None else not value


def value_of(text, row):
    return row[text] if text in row else None if text == "null" else float(text)


def compared(operands):
    left, sign, right = operands
    python = {"=": "==", "<>": "!="}.get(sign, sign)

    def evaluate(row):
        a, b = value_of(left, row), value_of(right, row)
        return None if a is None or b is None else eval(f"a {python} b")

    return f"{left} {sign} {right}", evaluate


def between(operands):
    value, low, high = operands

    def evaluate(row):
        a, b, c = (value_of(text, row) for text in operands)
        return conjunction(
            None if a is None or b is None else a >= b, None if a is None or c is None else a <= c
        )

    return f"{value} between {low} and {high}", evaluate


TRUTHS = {
    "ok": lambda row: row["ok"],
    "ok is true": lambda row: row["ok"] is True,
    "price is null": lambda row: row["price"] is None,
    "price is not null": lambda row: row["price"] is not None,
    "category like 'N%'": lambda row: row["category"] and row["category"].startswith("N"),
    "category not like '%s'": lambda row: row["category"] and not row["category"].endswith("s"),
    "n in (1, 2)": lambda row: None if row["n"] is None else row["n"] in (1, 2),
    "n not in (1, null)": lambda row: False if row["n"] == 1 else None,
    "true": lambda row: True,
}
atoms = (
    st.sampled_from(list(TRUTHS.items()))
    | st.tuples(
        st.sampled_from(VALUES),
        st.sampled_from(["=", "<>", "<", "<=", ">", ">="]),
        st.sampled_from(VALUES),
    ).map(compared)
    | st.tuples(*[st.sampled_from(VALUES)] * 3).map(between)
)


@settings(max_examples=300, deadline=None)
@given(st.recursive(atoms, nested, max_leaves=12))
def test_conditions_agree_with_python_under_three_valued_logic(pair):
    condition, evaluate = pair
    schema = {"price": pl.Float64, "n": pl.Int64, "category": pl.String, "ok": pl.Boolean}
    expected = [bool(evaluate(row)) for row in ROWS]
    try:
        kept = where(pl.DataFrame(ROWS, schema=schema), condition)
    except DataError as error:
        assert "nests" in str(error)
    else:
        assert kept.tolist() == expected, condition


grammar = st.lists(st.sampled_from([*pieces, "category", "tags", "added", "("]), max_size=600)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(grammar.map(" ".join).map(lambda text: text[:MAX_CONDITION]), min_size=20, max_size=20)
)
@example(["(" * n + "price < 1" + ")" * n for n in range(1, 20)])
def test_random_conditions_neither_hang_nor_crash(conditions):
    for condition in conditions:
        try:
            assert where(ITEMS, condition).shape == (len(ITEMS),)
        except DataError as error:
            assert "cannot be used" in str(error)
