"""Filters, caps, diversity and exploration against plain loops, and conditions that are refused."""

from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.errors import DataError
from jaxrec.ranking.filters import (
    FUNCTIONS,
    KEYWORDS,
    MAX_CONDITION,
    Rules,
    compact,
    diversify,
    explore,
    listed_ids,
    only,
    popularity_bias,
    where,
    within_caps,
    without,
)

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
seeds = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=50)


def ranked_lists(generator, num_lists, num_places, num_items):
    """Lists of distinct items, some of them short, with scores that fall."""
    items = np.stack(
        [generator.permutation(np.arange(1, num_items))[:num_places] for _ in range(num_lists)]
    )
    scores = -np.sort(-generator.normal(size=items.shape).astype(np.float32), axis=1)
    missing = np.arange(num_places) >= generator.integers(0, 2 * num_places, (num_lists, 1))
    return np.where(missing, 0, items), np.where(missing, -np.inf, scores)


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
        ("true", [0, 1, 2, 3]),
    ],
)
def test_where_finds_the_rows_that_satisfy_the_condition(condition, rows):
    mask = where(ITEMS, condition)

    assert mask.dtype == bool
    assert mask.shape == (4,)
    np.testing.assert_array_equal(np.flatnonzero(mask), rows)


def test_where_may_use_a_column_of_any_name():
    items = ITEMS.rename({"price": "kept", "category": "select"})

    np.testing.assert_array_equal(
        where(items, """kept < 50 AND "select" = 'Nails'"""), [False, True, False, False]
    )


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("price <", "parse"),
        ("category = 'Nails", "unexpected"),
        ("", "parse"),
        ("prize < 50", "unable to find column"),
        ("price < 'cheap'", "cannot compare"),
        ("CAST(category AS int) = 1", "conversion"),
        ("price", "gives Float64"),
        ("null", "gives Null"),
        ("category ~ '('", "regex"),
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


pieces = [*KEYWORDS.split(), *(f"{name}(" for name in FUNCTIONS.split()), *"=<>(),+-*/%[]~"]
pieces += ["price", "brand", "category", "item_id", "'x'", "1", "-2.5", "<>", "<=", "::", "NULL"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(pieces), max_size=9).map(" ".join))
def test_whatever_is_written_a_condition_is_used_or_told(condition):
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
def test_where_looks_at_nothing_but_the_values_of_a_row(condition):
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


def test_strings_end_where_where_believes_they_do():
    """A backslash escapes nothing, quotes are doubled, and a name may hold a single quote."""
    items = pl.DataFrame({"x'": ["a\\b", "it's", "'"]})

    for row, literal in enumerate([r"'a\b'", "'it''s'", "''''"]):
        np.testing.assert_array_equal(where(items, f'"x\'" = {literal}'), np.arange(3) == row)


@pytest.mark.parametrize(
    "condition", ["least() > 1", "greatest() > 1", "price between 1 and " * 240 + "2"]
)
def test_where_survives_what_the_parser_does_not(condition):
    """A panic is no Exception; chains of `between` take twice as long with each."""
    with pytest.raises(DataError, match="cannot be used"):
        where(ITEMS, condition)


def test_a_condition_of_excessive_length_is_refused_in_a_short_message():
    condition = "price < 50" + " OR price < 50" * MAX_CONDITION

    with pytest.raises(DataError, match="longer than 4,000") as caught:
        where(ITEMS, condition)

    assert len(str(caught.value)) < 300


def test_the_refusal_of_a_function_names_those_that_can_be_used():
    with pytest.raises(DataError, match=f"'max' is not one of the functions {FUNCTIONS}"):
        where(ITEMS, "price < max(price)")


def test_only_and_without_part_the_catalogue():
    listed = pl.Series(["c", "a", "a", "elsewhere"])

    np.testing.assert_array_equal(only(ITEMS["item_id"], listed), [False, True, False, True])
    np.testing.assert_array_equal(without(ITEMS["item_id"], listed), [True, False, True, False])


def test_an_empty_list_of_ids_lists_nothing():
    nothing = listed_ids(())

    assert not only(ITEMS["item_id"], nothing).any()
    assert without(ITEMS["item_id"], nothing).all()


def test_ids_are_read_from_a_file_as_text(tmp_path):
    file = tmp_path / "ids.csv"
    file.write_text("item_id,note\n007,x\n12,y\n")

    assert listed_ids(file).to_list() == ["007", "12"]
    assert listed_ids(str(file)).to_list() == ["007", "12"]


@pytest.mark.parametrize("source", [("007", "b"), ["007", "b"]])
def test_ids_are_taken_from_a_sequence(source):
    assert listed_ids(source).to_list() == ["007", "b"]


@pytest.mark.parametrize("source", [Path("B001"), "B001"])
def test_one_word_that_is_no_file_is_an_id(source):
    assert listed_ids(source).to_list() == ["B001"]


def test_lists_of_ids_that_cannot_be_used_are_refused(tmp_path):
    unnamed = tmp_path / "ids.csv"
    unnamed.write_text("id\n1\n")
    without_ending = tmp_path / "ids"
    without_ending.write_text("item_id\n1\n")

    with pytest.raises(DataError, match=r"ids\.csv: no column 'item_id'"):
        listed_ids(unnamed)
    with pytest.raises(DataError, match="known event_type"):
        listed_ids(without_ending)
    with pytest.raises(DataError, match="cannot be read"):
        listed_ids(tmp_path / "missing.csv")
    with pytest.raises(DataError, match="null or empty"):
        listed_ids(("a", ""))


def test_popularity_bias_at_strength_one_is_the_negative_log_of_popularity():
    counts = np.array([0, 1, 3, 4])

    bias = popularity_bias(counts, 1.0)

    assert bias.dtype == np.float32
    np.testing.assert_allclose(bias, -np.log([1 / 3, 2 / 3, 4 / 3, 5 / 3]), rtol=1e-6)
    np.testing.assert_allclose(popularity_bias(counts, 0.5), bias / 2, rtol=1e-6)


def test_popularity_bias_vanishes_at_strength_zero_and_for_equal_counts():
    np.testing.assert_array_equal(popularity_bias(np.array([0, 9, 2]), 0.0), np.zeros(3))
    np.testing.assert_array_equal(popularity_bias(np.full(3, 7), 2.0), np.zeros(3))


def capped_by_a_loop(ranked, caps):
    kept = np.zeros(ranked.shape, bool)
    for row, items in enumerate(ranked):
        taken: list[dict[int, int]] = [{} for _ in caps]
        for place, item in enumerate(items):
            groups = [of_item[item] for of_item, _ in caps]
            room = all(
                group == 0 or counts.get(group, 0) < limit
                for group, counts, (_, limit) in zip(groups, taken, caps, strict=True)
            )
            kept[row, place] = item > 0 and room
            if kept[row, place]:
                for group, counts in zip(groups, taken, strict=True):
                    counts[group] = counts.get(group, 0) + 1
    return kept


def test_a_cap_keeps_the_best_of_every_group():
    brands = np.array([0, 5, 5, 5, 9, 0, 0])

    kept = within_caps(np.array([[3, 5, 1, 2, 4, 6], [2, 4, 3, 0, 0, 0]]), [(brands, 1)])

    np.testing.assert_array_equal(kept, [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]])


def test_entries_that_one_cap_drops_take_no_room_of_another():
    """Item 2 is a second of its brand, so it does not use up the category of item 3."""
    brands, categories = np.array([0, 1, 1, 2]), np.array([0, 7, 8, 8])

    kept = within_caps(np.array([[1, 2, 3]]), [(brands, 1), (categories, 1)])

    np.testing.assert_array_equal(kept, [[True, False, True]])


def test_without_caps_every_item_stays():
    np.testing.assert_array_equal(within_caps(np.array([[3, 1, 0]]), []), [[True, True, False]])


@many
@given(seeds, st.integers(1, 3))
def test_caps_agree_with_a_loop(seed, num_caps):
    generator = np.random.default_rng(seed)
    ranked, _ = ranked_lists(generator, 4, 9, 12)
    caps = [
        (generator.integers(0, 4, 12) * 10**9, int(generator.integers(1, 4)))
        for _ in range(num_caps)
    ]

    np.testing.assert_array_equal(within_caps(ranked, caps), capped_by_a_loop(ranked, caps))


def test_compact_moves_kept_entries_to_the_front():
    kept = np.array([[False, True, False, True], [False] * 4, [True] * 4])
    ranked = np.arange(1, 13).reshape(3, 4)
    scores = -ranked.astype(np.float32)

    items, values = compact(kept, ranked, scores, 3)

    np.testing.assert_array_equal(items, [[2, 4, 0], [0, 0, 0], [9, 10, 11]])
    np.testing.assert_array_equal(values, [[-2, -4, -np.inf], [-np.inf] * 3, [-9, -10, -11]])
    assert values.dtype == np.float32


def test_compact_pads_lists_that_are_longer_than_the_pool():
    items, values = compact(np.ones((1, 1), bool), np.array([[4]]), np.ones((1, 1)), 3)

    np.testing.assert_array_equal(items, [[4, 0, 0]])
    np.testing.assert_array_equal(values, [[1, -np.inf, -np.inf]])


def diversified_by_a_loop(ranked, scores, vectors, k, strength):
    chosen: list[int] = []
    real = [place for place, item in enumerate(ranked) if item]
    low, high = min(scores[real], default=0), max(scores[real], default=0)

    def cosine(a, b):
        norms = np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b])
        return vectors[a] @ vectors[b] / norms if norms else 0.0

    def gain(place):
        relevance = (scores[place] - low) / (high - low) if high > low else 0.0
        nearest = max((cosine(place, other) for other in chosen), default=0.0)
        return (1 - strength) * relevance - strength * nearest

    while len(chosen) < k:
        left = [place for place in real if place not in chosen]
        missing = [place for place in range(len(ranked)) if place not in real + chosen]
        chosen.append(max(left, key=gain) if left else missing[0])
    return chosen


@many
@given(seeds, st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(1, 7))
def test_diversify_agrees_with_a_loop(seed, strength, k):
    generator = np.random.default_rng(seed)
    ranked, scores = ranked_lists(generator, 4, 7, 20)
    vectors = generator.normal(size=(4, 7, 3))
    scores = scores.astype(np.float64)

    places = diversify(ranked, scores, vectors, k, strength)

    for row in range(4):
        expected = diversified_by_a_loop(ranked[row], scores[row], vectors[row], k, strength)
        np.testing.assert_array_equal(places[row], expected)


def test_diversify_puts_the_unlike_before_the_alike():
    """The vectors of items 1 and 2 point the same way."""
    vectors = np.array([[[1, 0], [2, 0], [0, 1]]], float)
    ranked, scores = np.array([[1, 2, 3]]), np.array([[3.0, 2.0, 1.0]])

    np.testing.assert_array_equal(diversify(ranked, scores, vectors, 3, 0.5), [[0, 2, 1]])
    np.testing.assert_array_equal(diversify(ranked, scores, vectors, 3, 0.2), [[0, 1, 2]])


def test_opposite_vectors_attract():
    """The largest cosine to the chosen may be negative, and then it counts for an entry."""
    vectors = np.array([[[1, 0], [0, 1], [-1, 0]]], float)

    places = diversify(np.array([[1, 2, 3]]), np.ones((1, 3)), vectors, 2, 1.0)

    np.testing.assert_array_equal(places, [[0, 2]])


@many
@given(seeds, st.integers(1, 6))
def test_diversify_of_no_strength_keeps_the_order(seed, k):
    generator = np.random.default_rng(seed)
    ranked, scores = ranked_lists(generator, 5, 6, 9)
    vectors = generator.normal(size=(5, 6, 2)).astype(np.float32)

    places = diversify(ranked, scores, vectors, k, 0.0)

    np.testing.assert_array_equal(places, np.tile(np.arange(k), (5, 1)))


def test_ties_go_to_the_better_rank_and_vectors_of_zeros_are_unlike_all():
    ranked, scores = np.array([[5, 0, 4, 3]]), np.array([[1.0, -np.inf, 1.0, 1.0]])

    places = diversify(ranked, scores, np.zeros((1, 4, 2)), 4, 0.5)

    np.testing.assert_array_equal(places, [[0, 2, 3, 1]])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_missing_entries_are_chosen_last(strength):
    ranked = np.array([[0, 7, 0, 8], [0, 0, 0, 0]])
    scores = np.where(ranked > 0, 1.0, -np.inf) * [4, 3, 2, 1]

    places = diversify(ranked, scores, np.ones((2, 4, 2)), 4, strength)

    np.testing.assert_array_equal(places, [[1, 3, 0, 2], [0, 1, 2, 3]])


def test_diversify_refuses_a_pool_that_is_smaller_than_the_list():
    with pytest.raises(ValueError, match="4 places of a pool of 3"):
        diversify(np.ones((1, 3), int), np.ones((1, 3)), np.ones((1, 3, 2)), 4, 0.5)


def explored(ranked, new_ranked, share):
    ranked, new_ranked = np.array([ranked]), np.array([new_ranked])
    scores = np.where(ranked > 0, 100.0 - ranked, -np.inf)
    new_scores = np.where(new_ranked > 0, 100.0 - new_ranked, -np.inf)
    items, values = explore(ranked, scores, new_ranked, new_scores, share)
    np.testing.assert_array_equal(values, np.where(items > 0, 100.0 - items, -np.inf))
    return items[0].tolist()


@pytest.mark.parametrize(
    ("ranked", "new_ranked", "share", "expected"),
    [
        ([1, 2, 3, 4], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([1, 2, 3, 4], [11, 12, 13], 0.01, [1, 2, 3, 11]),
        ([1, 2, 3, 4], [11, 12, 13], 0.0, [1, 2, 3, 4]),
        ([1, 2, 3, 4], [11, 12, 13, 14], 1.0, [11, 12, 13, 14]),
        ([1, 11, 3, 4], [11, 12, 13], 0.5, [1, 11, 3, 12]),
        ([1, 2, 3, 11], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([11, 12, 13, 4], [11, 12, 13], 0.5, [11, 12, 13, 4]),
        ([1, 2, 0, 0], [11, 12, 13], 0.25, [1, 2, 11, 0]),
        ([1, 2, 3, 0], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([0, 0, 0, 0], [11, 12, 0], 1.0, [11, 12, 0, 0]),
        ([1, 2, 3, 4], [11, 0, 0], 0.75, [1, 2, 3, 11]),
        ([1, 2, 3, 4], [0, 0, 0], 0.5, [1, 2, 3, 4]),
    ],
    ids=[
        "last places",
        "at least one",
        "no share",
        "all",
        "one new is there already",
        "new entries are not displaced",
        "enough are there already",
        "free places first",
        "free places, then the last",
        "empty list",
        "too few new items",
        "no new items",
    ],
)
def test_explore_fills_the_reserved_places(ranked, new_ranked, share, expected):
    assert explored(ranked, new_ranked, share) == expected


def top(scores, k):
    order = np.argsort(-scores, axis=1)[:, :k]
    values = np.take_along_axis(scores, order, axis=1)
    return np.where(values > -np.inf, order, 0), values


@many
@given(seeds, st.floats(0, 1))
def test_explore_adds_what_lacks_of_the_share_and_never_repeats_an_item(seed, share):
    generator = np.random.default_rng(seed)
    num_places, is_new = 6, np.arange(16) > 9
    all_scores = generator.normal(size=(5, 16))
    all_scores[generator.random((5, 16)) < generator.random((5, 1))] = -np.inf
    all_scores[:, 0] = -np.inf
    ranked, scores = top(all_scores, num_places)
    new_ranked, new_scores = top(np.where(is_new, all_scores, -np.inf), 7)

    items, values = explore(ranked, scores, new_ranked, new_scores, share)

    wanted = max(round(share * num_places), 1) if share else 0
    for row, (before, new) in enumerate(zip(ranked, new_ranked, strict=True)):
        before, new = before[before > 0], new[new > 0]
        lacking = max(min(wanted, len(new)) - is_new[before].sum(), 0)
        added = [item for item in new if item not in before][:lacking]
        old = [item for item in before if not is_new[item]]
        dropped = old[len(old) - max(len(before) + len(added) - num_places, 0) :]
        expected = [item for item in before if item not in dropped] + added
        assert len(set(expected)) == len(expected) <= num_places
        missing = num_places - len(expected)
        np.testing.assert_array_equal(items[row], expected + [0] * missing)
        np.testing.assert_array_equal(
            values[row], [*all_scores[row, expected], *[-np.inf] * missing]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "seen"}, "mask: 'seen' is one text"),
        ({"caps": {"brand": 2, "category": 0}}, "caps: category 0"),
        ({"diversity": 1.1}, "diversity: 1.1"),
        ({"diversity": float("nan")}, "diversity: nan"),
        ({"explore": -0.1}, "explore: -0.1"),
        ({"pool": 0}, "pool: 0"),
        ({"popularity": -1.0}, "popularity: -1.0"),
        ({"popularity": float("inf")}, "popularity: inf"),
        ({"explore_events": -1}, "explore_events: -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rules(**options)


def test_options_at_the_ends_of_their_ranges_are_taken():
    low = Rules(caps={"brand": 1}, diversity=0, explore=0, pool=1, popularity=0, explore_events=0)

    assert replace(low, diversity=1, explore=1).caps == {"brand": 1}


@dataclass(frozen=True)
class Command:
    """A command with options of its own beside the rules."""

    k: int = 10
    rules: tyro.conf.OmitArgPrefixes[Rules] = field(default_factory=Rules)


def from_flags(*flags):
    return tyro.cli(
        Command, args=flags, config=(tyro.conf.FlagConversionOff,), use_underscores=True
    )


def test_rules_are_flags_of_a_command():
    command = from_flags(
        *("--mask", "buy", "cart", "--where", "price < 50 AND brand = 'A'", "--only", "ids.csv"),
        *("--without", "a", "b", "--caps", "brand", "2", "category", "3", "--diversity", "0.3"),
        *("--pool", "50", "--popularity", "0.5", "--explore", "0.1", "--explore_events", "2"),
    )

    assert command.rules == Rules(
        mask=("buy", "cart"),
        where="price < 50 AND brand = 'A'",
        only=Path("ids.csv"),
        without=("a", "b"),
        caps={"brand": 2, "category": 3},
        diversity=0.3,
        pool=50,
        popularity=0.5,
        explore=0.1,
        explore_events=2,
    )
    assert from_flags().rules == Rules()


def test_flags_out_of_range_stop_the_command_with_the_reason(capsys):
    with pytest.raises(SystemExit):
        from_flags("--diversity", "2")

    assert "diversity: 2.0 is not between 0 and 1" in " ".join(capsys.readouterr().err.split())
