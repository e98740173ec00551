"""Values that the Python methods of a model refuse, and those that they take in several forms."""

from functools import partial

import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand
from helpers.shop import HELD_OUT

from jaxrec.errors import InputError
from jaxrec.ranking.steps import Caps, Feedback

STRATEGY = "- where: price < 30\n- caps: {brand: 1}"
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"k": 2.5}, "k=2.5: give a number"),
        ({"k": "3"}, "k='3': give a number"),
        ({"k": True}, "k=True: give a number"),
        ({"target": 5}, "no node type 5"),
        ({"where": 5}, "where: 5 is not text"),
        ({"caps": ["brand"]}, r"caps: \['brand'\] is not a mapping"),
        ({"caps": None}, "caps: None is not a mapping"),
        ({"caps": {"brand": "2"}}, "caps: brand: '2' is not a whole number of 32 bits; it is read"),
        ({"caps": {"brand": 1.5}}, "caps: brand: 1.5 is not a whole number"),
        ({"caps": {1: 2}}, "caps, key: 1 is not text"),
        ({"only": 5}, "only: 5 is neither a file nor a list of ids"),
        ({"only": ["i01", ["i02"]]}, "give ids as text"),
        ({"without": {"i01": 1}}, "neither a file nor a list"),
        ({"only": ["nix", "nada"]}, "none of the 2 listed items .'nix', 'nada'."),
        ({"mask": "seen"}, "mask: 'seen' is one text"),
        ({"mask": 5}, "mask: 5 is not a list of text"),
        ({"popularity": 1e300}, "popularity: 1e.300 is not a number from"),
        ({"diversity": "1"}, "diversity: '1' is not a number"),
        ({"strategy": 5}, "strategy: 5 is neither a YAML file nor a list of steps"),
        ({"strategy": Caps({"brand": 2})}, "neither a YAML file nor a list of steps"),
        ({"strategy": ["caps"]}, "'caps' is not a step"),
        ({"strategy": [Feedback]}, "is not a step"),
        ({"strategy": "missing.yaml"}, "missing.yaml: no such file"),
        ({"target": "brand", "k": 99, "where": "price < 5"}, "rules act on items only"),
    ],
)
def test_recommend_refuses(model, events, unchecked, options, reason):
    with pytest.raises(InputError, match=reason):
        model.recommend(events, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": -1}, "size=-1: give a whole number of 1 or more"),
        ({"size": 0}, "size=0"),
        ({"size": 2.5}, "size=2.5"),
        ({"bid": NAN}, "bid=nan: give a finite price of 0 or more"),
        ({"bid": INF}, "bid=inf"),
        ({"bid": -1}, "bid=-1"),
        ({"bid": "x"}, "bid='x'"),
        ({"mask": "seen"}, "mask: 'seen' is one text"),
        ({"entity": 5}, "5: write TYPE:ID"),
    ],
)
def test_audience_refuses(model, events, unchecked, options, reason):
    with pytest.raises(InputError, match=reason):
        model.audience(events, **{"entity": "brand:brand1", **options})


@pytest.mark.parametrize("k", [2.5, "3", 0, True])
def test_similar_refuses_a_length_that_is_not_whole(model, unchecked, k):
    with pytest.raises(InputError, match="give a number from 1 to 3, the other brands"):
        model.similar("brand:brand1", k=k)


def test_a_list_is_as_long_as_there_are_nodes_if_no_length_is_given(model, events):
    assert len(model.similar("brand:brand1")) == 3
    assert len(model.similar("item:i01")) == 10
    assert len(model.recommend(new_user_of_brand(1), target="brand")) == 4
    assert len(model.recommend(new_user_of_brand(1))) == 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"last": 0}, "last=0: give a whole number of 1 or more"),
        ({"last": -1}, "last=-1"),
        ({"top": 0}, "top=0"),
        ({"path": "x.jpg"}, r"x\.jpg: name a file ending in \.png"),
        ({"user": 5}, "no user 5"),
    ],
)
def test_plots_refuse(model, events, unchecked, tmp_path, options, reason):
    given = {"user": "u003", "path": tmp_path / "x.png", **options}
    with pytest.raises(InputError, match=reason):
        model.plot_profile(events, **given)


def test_a_huge_number_takes_all(model, tmp_path):
    few = new_user_of_brand(1)
    assert len(model.audience(few, "brand:brand1", size=10**30)) == 1
    assert model.profile(few, last=10**30).equals(model.profile(few, last=len(few)))
    model.plot_profile(few, few["user_id"][0], tmp_path / "x.png", last=10**30, top=10**30)


@pytest.mark.parametrize("method", ["recommend", "profile"])
def test_events_are_tables_of_polars(model, events, unchecked, method):
    few = new_user_of_brand(1)
    assert getattr(model, method)(few.lazy()).equals(getattr(model, method)(few))
    with pytest.raises(InputError, match="dict is not a polars DataFrame"):
        getattr(model, method)(few.to_dict())


def test_plots_take_a_path_as_text_and_need_a_column_of_users(model, events, tmp_path):
    model.plot_profile(events, "u003", str(tmp_path / "x.png"), last=3)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no column 'user_id'"):
        model.plot_profile(events.drop("user_id"), "u003", tmp_path / "y.png")


def test_a_strategy_is_a_file_or_a_list_of_steps(model, events, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(STRATEGY)
    plain = model.recommend(events, k=3)
    lists = partial(model.recommend, events, k=3)
    steps = lists(where="price < 30", caps={"brand": 1})
    assert lists(strategy=file).equals(steps)
    assert lists(strategy=str(file)).equals(steps)
    assert not plain.equals(steps)
    assert lists(strategy=[Caps({"brand": 1})]).equals(lists(caps={"brand": 1}))


@pytest.mark.parametrize(
    "ids",
    [["i01", "i02"], ("i01", "i02"), pl.Series(["i01", "i02"]), np.array(["i01", "i02"])],
)
def test_ids_are_listed_in_any_sequence(model, events, unchecked, ids):
    ranked = model.recommend(events, k=2, only=ids, mask=["none"])
    assert set(ranked["item_id"]) == {"i01", "i02"}
    assert model.recommend(events, k=2, only=("i01", "i02"), mask=("none",)).equals(ranked)


@pytest.mark.parametrize("column", ["title", "colour", "item_id"])
def test_new_items_of_python_objects_are_refused(model, shop, column):
    new = shop.items.filter(pl.col("item_id") == HELD_OUT)
    objects = new.with_columns(pl.Series(column, [object()], dtype=pl.Object))
    with pytest.raises(InputError, match=f"column '{column}'"):
        model.with_items(objects)
