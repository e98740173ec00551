"""The replay of a held-out period."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.config import parse
from jaxrec.errors import ConfigError
from jaxrec.inference import loading
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.options import ReplayOptions
from jaxrec.serving.replay import in_time_order, replay, rounds
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.training.fit import fit


@pytest.mark.thorough
def test_a_session_that_is_over_changes_no_rank(model, known_shop):
    """Users of the shop come at most once a day, so every event begins a session."""
    log = model.encoder.validated_log(known_shop.events)
    result = replay(model, log, since=0.7, weights=[1.0])
    whole = replay(model, log, since=0.7, weights=[0.0], gap_minutes=1e6)
    for name, ranks in (result.ranks | whole.ranks).items():
        if name != "frozen":
            np.testing.assert_array_equal(ranks, result.ranks["live"])


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("quantile", [2.0, -1.0, float("nan"), float("inf")])
def test_a_period_begins_and_ends_at_a_quantile(model, known_shop, name, quantile):
    log = model.encoder.validated_log(known_shop.events)
    with pytest.raises(ConfigError, match=f"{name} must be"):
        replay(model, log, **{name: quantile})
    with pytest.raises(ConfigError, match=f"{name} must be"):
        ReplayOptions(run=Path("run"), **{name: quantile})


def test_the_events_after_a_period_are_not_ranked(model, known_shop):
    log = model.encoder.validated_log(known_shop.events)
    whole = replay(model, log, since=0.9, weights=[])
    first = replay(model, log, since=0.9, until=0.95, weights=[])
    assert 0 < len(first.first) < len(whole.first)
    with pytest.raises(ValueError, match="leaves no event"):
        replay(model, log, since=0.9, until=0.8)


@pytest.mark.slow
def test_a_model_with_time_since_last_gets_the_time_of_the_request(known_shop, tmp_path):
    options = {
        "split.scheme": "leave_one_out",
        "model.experts": ["id"],
        "model.hidden_size": 8,
        "model.num_layers": 1,
        "model.time_since_last": True,
        "train.epochs": 2,
        "train.learning_rate": 0.01,
    }
    fit(parse(layers=[options]), tmp_path / "run", tables=known_shop)
    model = loading.load(tmp_path / "run")
    log = model.encoder.validated_log(known_shop.events)
    result = replay(model, log, since=0.7, weights=[])
    assert list(result.ranks) == ["frozen", "live", "live, with time"]
    assert (result.ranks["live"] != result.ranks["live, with time"]).any()
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"))
    engine.recorder.import_users(known_shop.events)
    last = engine.document("u001").last_time
    without_time, with_time, new_user = (
        engine.recommend([user], k=5, now=now)[0].table["score"].to_list()
        for user, now in (("u001", None), ("u001", last + 60), ("unknown", last + 60))
    )
    assert without_time != with_time
    assert new_user == engine.recommend(["unknown"], k=5)[0].table["score"].to_list()


def test_a_period_without_an_event_to_rank_is_refused(model, known_shop):
    elsewhere = known_shop.events.with_columns(item_id=pl.lit("elsewhere"))
    with pytest.raises(ValueError, match="no event of a known item"):
        replay(model, model.encoder.validated_log(elsewhere))


def test_rounds_hold_one_event_a_user_and_lose_none(model, known_shop):
    user_events = in_time_order(model, model.encoder.validated_log(known_shop.events))
    times = [user_event.event.time for user_event in user_events]
    assert times == sorted(times)
    split = list(rounds(user_events))
    together = [user_event for round_events in split for user_event in round_events]
    for user in {user_event.user_id for user_event in user_events}:
        of_user = [[r for r in some if r.user_id == user] for some in (user_events, together)]
        assert of_user[0] == of_user[1]
    assert len(together) == len(user_events)
    assert all(
        len({r.user_id for r in round_events}) == len(round_events) for round_events in split
    )


def test_a_period_without_events_is_refused(model, known_shop):
    with pytest.raises(ValueError, match="leaves no event"):
        replay(model, model.encoder.validated_log(known_shop.events), since=1.0)
