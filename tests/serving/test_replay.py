"""The replay of a held-out period, against batch evaluation of the same events."""

import numpy as np
import polars as pl
import pytest

from jaxrec.config import parse
from jaxrec.inference import loading
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.replay import in_time_order, replay, rounds
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.training import loop as training


@pytest.fixture(scope="module")
def model(trained_run):
    return loading.load(trained_run)


def test_a_session_that_is_over_changes_no_rank(model, known_shop):
    """The shop's users come once a day or more rarely, so every event begins a session."""
    log = model.encoder.validated_log(known_shop.events)
    found = replay(model, log, since=0.7, weights=[1.0])
    whole = replay(model, log, since=0.7, weights=[0.0], gap_minutes=1e9)
    for name, ranks in (found.ranks | whole.ranks).items():
        if name != "frozen":
            np.testing.assert_array_equal(ranks, found.ranks["live"])


def test_a_model_that_has_learned_it_is_told_the_time_since_the_last_event(known_shop, tmp_path):
    options = {
        "split.scheme": "leave_one_out",
        "model.experts": ["id"],
        "model.hidden_size": 8,
        "model.num_layers": 1,
        "model.time_since_last": True,
        "train.epochs": 2,
        "train.learning_rate": 0.01,
    }
    training.fit(parse(layers=[options]), tmp_path / "run", tables=known_shop)
    model = loading.load(tmp_path / "run")
    log = model.encoder.validated_log(known_shop.events)
    found = replay(model, log, since=0.7, weights=[])
    assert list(found.ranks) == ["frozen", "live", "live, with time"]
    assert (found.ranks["live"] != found.ranks["live, with time"]).any()
    online = LiveEngine(model, SQLiteStore(tmp_path / "store.db"))
    online.recorder.import_users(known_shop.events)
    last = online.document("u001").last_time
    untold, told, newcomer = (
        online.recommend([user], k=5, now=now)[0].table["score"].to_list()
        for user, now in (("u001", None), ("u001", last + 60), ("nobody", last + 60))
    )
    assert untold != told
    assert newcomer == online.recommend(["nobody"], k=5)[0].table["score"].to_list()


def test_a_period_without_an_event_to_rank_is_refused(model, known_shop):
    elsewhere = known_shop.events.with_columns(item_id=pl.lit("elsewhere"))
    with pytest.raises(ValueError, match="no event of a known item"):
        replay(model, model.encoder.validated_log(elsewhere))


def test_no_wave_holds_two_events_of_a_user_and_none_is_lost(model, known_shop):
    user_events = in_time_order(model, model.encoder.validated_log(known_shop.events))
    times = [report.event.time for report in user_events]
    assert times == sorted(times)
    split = list(rounds(user_events))
    together = [report for round_events in split for report in round_events]
    for user in {report.user_id for report in user_events}:
        of_user = [[r for r in some if r.user_id == user] for some in (user_events, together)]
        assert of_user[0] == of_user[1]
    assert len(together) == len(user_events)
    assert all(
        len({r.user_id for r in round_events}) == len(round_events) for round_events in split
    )


def test_a_period_without_events_is_refused(model, known_shop):
    with pytest.raises(ValueError, match="leaves no event"):
        replay(model, model.encoder.validated_log(known_shop.events), since=1.0)
