from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jaxrec.config import EvaluationConfig, SplitConfig
from jaxrec.data.events import build_event_log
from jaxrec.data.splits import split_log
from jaxrec.evaluation import ease
from jaxrec.evaluation.cooccurrence import GRID, Cooccurrence
from jaxrec.evaluation.ease import Ease
from jaxrec.evaluation.metrics import ndcg
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.tuned_baselines import fit_baselines
from jaxrec.types import Queries

NUM_ITEMS = 13


@pytest.fixture(scope="module")
def protocol():
    """Users go through the items in order, mostly."""
    generator, ids = np.random.default_rng(0), [f"i{i}" for i in range(1, NUM_ITEMS)]
    rows = []
    for user in range(30):
        place = int(generator.integers(NUM_ITEMS))
        for step in range(9):
            place = (place + int(generator.choice([1, 1, 1, 2, 5]))) % (NUM_ITEMS - 1)
            rows.append((f"u{user}", ids[place], 1000 * step, "view"))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event"], orient="row")
    log = build_event_log(events, pl.Series([None, *ids], dtype=pl.String))
    everything = np.ones(len(log.items), bool)
    split = split_log(log, SplitConfig(scheme="leave_one_out"), everything)
    valid = np.arange(NUM_ITEMS) > 0
    counts = np.bincount(log.items[split.in_training], minlength=NUM_ITEMS).astype(np.float32)
    return Protocol(split, EvaluationConfig(mask=("none",)), valid, everything, counts)


def with_split(protocol, **changes):
    return replace(protocol, split=replace(protocol.split, **changes))


def with_items(protocol, positions, items):
    """The same data with other items at some positions."""
    changed = protocol.split.log.items.copy()
    changed[positions] = items
    return with_split(protocol, log=replace(protocol.split.log, items=changed))


def rated(protocol, family, point):
    queries = protocol.split.validation
    ranking = protocol.rank(protocol.scorer(family.baseline(point))(queries), queries)
    return ndcg(ranking.ranks, 10).mean()


def test_hyperparameters_are_a_peak_on_validation(protocol):
    """No neighbour on the grid is better there; test events have no say."""
    found = fit_baselines(protocol)
    log, split = protocol.split.log, protocol.split
    users = np.repeat(np.arange(log.num_users), log.lengths)[split.in_training]
    families = {
        "cooccurrence": Cooccurrence(users, log.items[split.in_training], NUM_ITEMS),
        "ease": Ease(users, log.items[split.in_training], NUM_ITEMS),
    }
    for name, family in families.items():
        point = found.hyperparameters[name]
        best = rated(protocol, family, point)
        assert found.validation[name]["ndcg@10"] == pytest.approx(best)
        for key, values in family.grid.items():
            place = values.index(point[key])
            for neighbour in values[max(place - 1, 0) : place + 2]:
                assert rated(protocol, family, {**point, key: neighbour}) <= best
    assert found.best == max(found.validation, key=lambda n: found.validation[n]["ndcg@10"])


def test_test_events_change_no_baseline(protocol):
    """Neither what is counted nor what is chosen: the scores of validation stay the same."""
    found = fit_baselines(protocol)
    after = fit_baselines(with_items(protocol, protocol.split.test["last"].positions, 1))
    assert after.hyperparameters == found.hyperparameters
    assert after.validation == found.validation


def test_validation_events_choose_but_are_not_learned(protocol):
    """The scores of a fixed history depend on training events alone, at equal hyperparameters."""
    no_queries = Queries(np.zeros(0, int), np.zeros(0, int))
    found, after = (
        fit_baselines(with_split(changed, validation=no_queries))
        for changed in (protocol, with_items(protocol, protocol.split.validation.positions, 1))
    )
    assert found.best is None and found.validation == {}
    assert found.hyperparameters["cooccurrence"]["window"] in GRID["window"]
    history = np.zeros(3, int), np.array([2, 5, 3])
    for name, baseline in found.fitted.items():
        expected = baseline(lambda start, stop: history)(0, 1)
        scores = after.fitted[name](lambda start, stop: history)(0, 1)
        np.testing.assert_array_equal(scores, expected)


def test_a_catalogue_beyond_the_limit_of_ease_is_named(protocol, monkeypatch):
    monkeypatch.setattr(ease, "MAX_ITEMS", 3)
    found = fit_baselines(protocol)
    assert "ease" not in found.fitted and "ease" not in found.validation
    assert found.report()["ease"] == {"left_out": "12 items were chosen, and the limit is 3"}
