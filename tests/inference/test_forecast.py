"""Forecasts of a trained model."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import jaxrec
from jaxrec.errors import InputError
from jaxrec.inference.forecast import masks_further_events
from jaxrec.inference.forecast_candidates import (
    CANDIDATES,
    Candidates,
    find_candidates,
    with_nodes,
)
from jaxrec.inference.roll_out import RollOuts, roll_out
from jaxrec.models.sequence.decoder import new_decoder
from jaxrec.ranking.item_table import ItemTable
from jaxrec.types import NEG_INF

STEPS, WEIGHTS = 4, ["weight", "low", "median", "high"]


@pytest.fixture(scope="module")
def model(forecast_run):
    return jaxrec.load(forecast_run)


@pytest.fixture(scope="module")
def users(known_shop):
    """The events of forty users, which are more than are rolled out at a time."""
    return known_shop.events.filter(pl.col("user_id") < "u040")


@pytest.fixture(scope="module")
def forecast(model, users):
    return model.forecast(users, STEPS, k=5)


def test_the_first_step_is_the_ordinary_list(model, users, forecast):
    lists = model.recommend(users, k=5)
    first = forecast.filter(pl.col("step") == 1)
    assert first["item_id"].to_list() == lists["item_id"].to_list()
    assert first["title"].to_list() == lists["title"].to_list()
    np.testing.assert_array_equal(first["rank"], lists["rank"])


def test_the_first_step_of_brands_is_the_profile(model, users):
    brands = model.forecast(users, 1, target="brand")
    profile = model.profile(users, top=10).filter(pl.col("type") == "brand")
    assert brands["brand"].to_list() == profile["id"].to_list()
    np.testing.assert_allclose(brands["weight"], profile["weight"], atol=1e-5)


def test_weights_are_means_of_roll_outs_between_their_quantiles(model, users, forecast):
    assert forecast.columns == [
        *("user_id", "step", "rank", "item_id"),
        *WEIGHTS,
        "title",
    ]
    assert len(forecast) == 40 * STEPS * 5
    low, median, high = (forecast[name] for name in WEIGHTS[1:])
    bounds = np.stack([np.zeros_like(low), low, median, high, np.ones_like(low)])
    assert np.diff(bounds, axis=0).min() > -1e-6
    spread = forecast.with_columns(spread=high - low).group_by("step").agg(pl.mean("spread"))
    spread = spread.sort("step")["spread"]
    assert spread[0] < 1e-6 < spread[1]
    sums = model.forecast(users, 2, k=39)
    sums = sums.group_by("user_id", "step").agg(pl.sum("weight"))["weight"]
    np.testing.assert_allclose(sums, 1, atol=1e-4)


def test_a_user_has_the_same_forecast_alone(model, users, forecast):
    last = users.filter(pl.col("user_id") == "u039")
    alone = model.forecast(last, STEPS, k=5)
    together = forecast.filter(pl.col("user_id") == "u039")
    np.testing.assert_allclose(alone[WEIGHTS], together[WEIGHTS], atol=1e-5)


def test_by_default_all_steps_up_to_five_are_forecast(model, users):
    assert model.forecast(users, k=1)["step"].unique().to_list() == [*range(1, 1 + STEPS)]


def test_a_seed_decides_the_draws(model, users, forecast):
    again, other = (model.forecast(users, STEPS, k=5, seed=seed) for seed in (0, 1))
    assert again["weight"].equals(forecast["weight"])
    assert np.abs(other["weight"] - forecast["weight"]).max() > 1e-4


def test_a_single_roll_out_reads_the_expected_item(model, users):
    expected = model.forecast(users, STEPS, k=5, samples=0)
    for name in WEIGHTS[1:]:
        np.testing.assert_allclose(expected[name], expected["weight"], atol=1e-6)
    # what an untrained decoder reads does not matter
    still = replace(model, decoder=new_decoder(model.decoder.width, STEPS, 0))
    table = still.forecast(users, STEPS, target="brand")
    by_step = table.partition_by("step", include_key=False)
    for later in by_step[1:]:
        np.testing.assert_allclose(later["weight"], by_step[0]["weight"], atol=1e-6)


@pytest.mark.parametrize("samples", [0, 3])
def test_read_items_are_left_out_where_the_mask_covers_them(samples):
    """An untrained decoder leaves the user vector as it is."""
    count, steps = 4, 4
    scores = np.array([[90, 60, 30, 0]], np.float32)
    vectors, user = np.ones((1, count, 2), np.float32), np.ones((1, 2), np.float32)
    rows, rest = np.arange(1, 1 + count)[None], np.full(1, NEG_INF, np.float32)
    for read_once, expected in ((False, [0] * steps), (True, [*range(steps)])):
        (weights,) = roll_out(
            new_decoder(2, steps, 0),
            user,
            1.0,
            [(Candidates(rows, scores, rest), vectors)],
            np.zeros(1, np.uint32),
            RollOuts(steps, samples, read_once),
        )
        np.testing.assert_allclose(weights.mean[0], np.eye(count)[expected], atol=1e-5)


def test_masks_of_all_predicted_events_leave_read_items_out(model):
    assert masks_further_events(model) and masks_further_events(model, ("seen",))
    assert not masks_further_events(model, ("none",))


def test_options_that_do_not_fit_are_refused(model, users, trained_run):
    with pytest.raises(InputError, match=r"no decoder .* jaxrec add-forecast RUN"):
        jaxrec.load(trained_run).forecast(users)
    for options, message in (
        ({"steps": 5}, "steps=5: the decoder was trained for 1 to 4 steps"),
        ({"steps": 0}, "steps=0"),
        ({"k": 41}, "k=41: give a number from 1 to 39"),
        ({"samples": -1}, "samples=-1"),
        ({"target": "shop"}, "no node type 'shop'"),
    ):
        with pytest.raises(InputError, match=message):
            model.forecast(users, **{"steps": 2, **options})


def test_nodes_that_are_not_among_the_likeliest_replace_the_last_ones():
    random = np.random.default_rng(0)
    size = 2 * CANDIDATES
    nodes = ItemTable(random.normal(size=(size, 3)).astype(np.float32), np.arange(size) > 0)
    user = random.normal(size=3).astype(np.float32)
    found = find_candidates(nodes, 2.0, user[None])
    scores = 2 * nodes.vectors @ user
    order = np.argsort(-scores[1:]) + 1
    np.testing.assert_array_equal(found.rows[0], order[:CANDIDATES])
    rest = np.logaddexp.reduce(scores[order[CANDIDATES:]])
    np.testing.assert_allclose(found.rest, rest, atol=1e-3)
    wanted = order[[-1, 3]]
    changed = with_nodes(found, nodes, 2.0, user, wanted)
    np.testing.assert_array_equal(changed.rows[0, :2], wanted)
    assert set(changed.rows[0]) == {*order[: CANDIDATES - 1], order[-1]}
    np.testing.assert_allclose(changed.scores[0], scores[changed.rows[0]], rtol=1e-4)
    total = np.logaddexp(changed.rest, np.logaddexp.reduce(changed.scores, 1))
    np.testing.assert_allclose(total, np.logaddexp.reduce(scores[1:]), atol=1e-3)
