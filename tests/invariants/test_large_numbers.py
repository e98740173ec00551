"""Numbers beyond 32 bits: logs of three billion events, tables of more than 2^31 entries."""

import re

import jax
import numpy as np
import polars as pl
import pytest
from helpers.training import config

from jaxrec.config import PlanConfig
from jaxrec.data import packing
from jaxrec.data.graph import check_size
from jaxrec.data.packing import Packing, cut_windows, pack_windows
from jaxrec.errors import DataError
from jaxrec.ranking import adjustments
from jaxrec.ranking.history_bias import HistoryBias, history_adjustments
from jaxrec.sharding import make_mesh
from jaxrec.training.plan import programs
from jaxrec.training.plan.shapes import plan_context
from jaxrec.types import EventLog, Queries

FAR = 3_000_000_000  # events of the user in the middle
OFFSETS = np.array([0, 5, 5 + FAR, 5 + FAR + 4])
FIRST, LAST = [11, 12, 13, 14, 15], [21, 22, 23, 24]  # items of the other users


class Ones:
    """Weights of very many events, all 1."""

    def __gt__(self, other):
        return self

    def __getitem__(self, events):
        return np.ones(len(events), np.float32)


class Numbers:
    """How many of the first events have a weight: all of them."""

    def __getitem__(self, events):
        return events


class Items(np.ndarray):
    """Items whose largest is known, so that not all of them are read."""

    def max(self, *_, **__):
        return max(LAST)


def repeated(value, count):
    """An array of equal values that takes no memory."""
    return np.broadcast_to(value, (count,))


@pytest.fixture
def log(tmp_path):
    """Three users, whose items lie in a sparse file."""
    count = OFFSETS[-1]
    items = np.memmap(tmp_path / "items", np.int32, "w+", shape=(int(count),))
    items[:5], items[-4:] = FIRST, LAST
    return EventLog(
        user_ids=pl.Series(["a", "b", "c"]),
        event_type_names=("view",),
        offsets=OFFSETS,
        items=items.view(Items),
        event_types=repeated(np.int8(0), count),
        times=repeated(np.int64(0), count),
        has_time=False,
    )


@pytest.mark.usefixtures("unchecked")
def test_batches_hold_events_beyond_32_bits(log, monkeypatch):
    monkeypatch.setattr(packing, "counts_before", lambda present: Numbers())
    lengths = np.array([5, 0, 4])
    windows = cut_windows(OFFSETS, lengths, 8)
    assert windows.starts.tolist() == [0, 5 + FAR]
    packed = pack_windows(log, lengths, Ones(), 8)
    batch = Packing(log, Ones(), packed, batch_size=1, sequence_length=8).batch(0, 0)
    used = batch.weights > 0
    assert used.sum() == 7
    inputs = {
        user: (batch.items[used][rows].tolist(), batch.targets[used][rows].tolist())
        for user in (0, 2)
        for rows in [batch.users[used] == user]
    }
    assert inputs == {0: (FIRST[:-1], FIRST[1:]), 2: (LAST[:-1], LAST[1:])}


@pytest.mark.parametrize("max_events", [adjustments.MAX_EVENTS, 1])  # and of long histories
def test_histories_beyond_32_bits_are_masked(log, monkeypatch, max_events):
    monkeypatch.setattr(adjustments, "MAX_EVENTS", max_events)
    queries = Queries(np.array([0, 2]), np.array([5, 5 + FAR + 3]))
    assert log.users_at(queries.positions).tolist() == [1, 2]
    found = history_adjustments(
        log, queries, ("seen",), HistoryBias(np.zeros((1, 64), np.float32))
    )(0, 2)
    assert found.rows.tolist() == [0] * 5 + [1] * 3
    assert found.items.tolist() == FIRST + LAST[:3]


def test_graphs_beyond_32_bits_are_refused():
    check_size(40_000_000, 1_000_000_000)
    for size in ((3_000_000_000, 1), (9, 1_100_000_000)):
        with pytest.raises(DataError, match=r"the graph has .* at most 2,147,483,136 nodes"):
            check_size(*size)


@pytest.mark.slow
def test_programs_of_tables_beyond_32_bits_index_rows():
    """No array is flattened: an axis of more than 2^31 entries cannot be indexed."""
    options = config(
        **{
            "model.experts": ["id"],
            "model.hidden_size": 64,
            "train.loss": "sampled_softmax",
            "train.negatives": 64,
            "train.sparse_rows": True,
        }
    )
    plan = PlanConfig(users=1000, items=40_000_000, events=3 * 10**9)
    context = plan_context(options, plan, make_mesh(1, jax.devices()[:1]))
    for program in (programs.train_step(context), programs.scoring(context, plan, 10)):
        types = re.findall(r"tensor<((?:\d+x)+)", program.lowered.as_text())
        shapes = {tuple(map(int, kind.rstrip("x").split("x"))) for kind in types}
        assert max(np.prod(shape, dtype=np.int64) for shape in shapes) > 2**31
        assert max(max(shape) for shape in shapes) < 2**31
