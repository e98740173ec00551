import numpy as np
import polars as pl
import pytest

from jaxrec.data.packing import cut_windows, with_targets
from jaxrec.data.replay import replayed_weights
from jaxrec.types import EventLog

LENGTHS = [40, 30, 2, 50]
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
LOG = EventLog(
    user_ids=pl.Series(list("abcd")),
    event_type_names=("buy",),
    offsets=OFFSETS,
    items=np.ones(122, np.int32),
    event_types=np.zeros(122, np.int8),
    times=np.arange(122),
    has_time=True,
)
NEW = np.arange(122) >= 100  # the last 22 events of the last user
WINDOWS = cut_windows(OFFSETS, np.array(LENGTHS), 8)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_replayed_events_are_the_wanted_share_of_the_targets(share):
    weights = np.full(122, 2.0, np.float32)
    kept = replayed_weights(LOG, weights, NEW, WINDOWS, share=share, seed=(0, 1))
    assert (kept[NEW] == 2).all()
    replayed = np.count_nonzero(kept[~NEW])
    wanted = min(22 * share / (1 - share), 100)
    assert wanted <= replayed <= wanted + (8 if share else 0)
    again = replayed_weights(LOG, weights, NEW, WINDOWS, share=share, seed=(0, 1))
    np.testing.assert_array_equal(kept, again)


def test_windows_without_a_target_are_left_out():
    few = with_targets(WINDOWS, np.where(NEW, 1.0, 0.0).astype(np.float32))
    assert len(few.starts) == 3
    assert (few.starts + few.lengths >= 100).all()
    assert not len(with_targets(WINDOWS, np.zeros(122, np.float32)).starts)
