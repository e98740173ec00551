"""Packed batches hold every target once and depend on (seed, epoch, step) alone."""

from collections import Counter

import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.packing import Packing, cut_windows, event_gaps, pack, pack_windows
from jaxrec.types import NO_GAP, Batch, EventLog

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda n: max(n) > 1)
FEW = settings(max_examples=30, deadline=None)


def make_log(lengths, has_time: bool = True) -> EventLog:
    """Event e has item e + 1 and second e squared, so an item or a gap identifies its event."""
    events = np.arange(sum(lengths))
    return EventLog(
        user_ids=pl.Series(map(str, range(len(lengths)))),
        event_type_names=("buy", "view", "cart"),
        offsets=np.append(0, np.cumsum(lengths)),
        items=(events + 1).astype(np.int32),
        event_types=(events % 3).astype(np.int8),
        times=events**2,
        has_time=has_time,
    )


def make_packing(
    lengths, *, sequence_length=8, burn_in=0, batch_size=3, seed=0, train_lengths=None
) -> Packing:
    log = make_log(lengths)
    train_lengths = log.lengths if train_lengths is None else np.array(train_lengths)
    weights = (1 + np.arange(len(log.items)) % 5).astype(np.float32)
    packed = pack_windows(log, train_lengths, weights, sequence_length, burn_in)
    shape = {"batch_size": batch_size, "sequence_length": sequence_length}
    return Packing(log, weights, packed, **shape, seed=seed)


def gaps_of(log, numbers, last_times=None):
    return event_gaps(log, numbers, log.users_at(numbers), last_times)


def epoch_batches(packing: Packing, epoch: int = 0) -> list[Batch]:
    return [packing.batch(epoch, step) for step in range(packing.steps_per_epoch)]


def target_items(batches: list[Batch]) -> list[int]:
    return [int(item) for batch in batches for item in batch.targets[batch.weights > 0]]


def assert_equal(left: Batch, right: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@st.composite
def packings(draw) -> Packing:
    lengths = draw(LENGTHS)
    sequence_length = draw(st.integers(1, 12))
    return make_packing(
        lengths,
        sequence_length=sequence_length,
        burn_in=draw(st.integers(0, sequence_length - 1)),
        batch_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 3)),
    )


@FEW
@given(packings(), st.integers(0, 3))
def test_an_epoch_predicts_every_target_once(packing, epoch):
    log = packing.log
    expected = set(log.items.tolist()) - set(log.items[log.offsets[:-1][log.lengths > 0]].tolist())
    assert Counter(target_items(epoch_batches(packing, epoch))) == Counter(expected)


@FEW
@given(packings(), st.integers(0, 3))
def test_time_steps_hold_the_events_of_one_history_in_order(packing, epoch):
    log = packing.log
    for batch in epoch_batches(packing, epoch):
        assert batch.items.shape == packing.shape
        used = batch.items > 0
        events = batch.items - 1
        users = np.searchsorted(log.offsets, events, side="right") - 1
        np.testing.assert_array_equal(batch.users[used], users[used])
        np.testing.assert_array_equal(batch.event_types[used], events[used] % 3)
        np.testing.assert_array_equal(batch.targets[used], batch.items[used] + 1)
        np.testing.assert_array_equal(batch.target_event_types[used], (events[used] + 1) % 3)
        targeted = batch.weights > 0
        np.testing.assert_array_equal(batch.weights[targeted], 1 + (events[targeted] + 1) % 5)
        assert not targeted[~used].any()
        assert not batch.starts[~used].any()
        follows = np.zeros_like(used)
        follows[:, 1:] = (
            used[:, :-1] & (events[:, 1:] == events[:, :-1] + 1) & (users[:, 1:] == users[:, :-1])
        )
        # unless the state is reset, the previous time step holds the previous event
        assert (follows | batch.starts)[used].all()


@FEW
@given(packings())
def test_a_window_is_read_with_burn_in_or_from_the_beginning(packing):
    sequence_length, burn_in = packing.shape[1], int(packing.packed.burn_ins.max(initial=0))
    first_items = set(packing.log.items[packing.log.offsets[:-1][packing.log.lengths > 0]].tolist())
    for batch in epoch_batches(packing):
        for row, step in zip(*np.nonzero(batch.starts), strict=True):
            warm = batch.weights[row, step : min(step + burn_in, sequence_length)]
            assert batch.items[row, step] in first_items or not warm.any()


@FEW
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 30))
def test_packed_windows_neither_overlap_nor_exceed_the_row(lengths, sequence_length):
    lengths = -np.sort(-np.array(lengths, int))
    rows, first_steps = pack(lengths, sequence_length)
    taken = np.zeros((int(rows.max(initial=-1)) + 1, sequence_length), int)
    for row, step, length in zip(rows, first_steps, lengths, strict=True):
        assert step + length <= sequence_length
        taken[row, step : step + length] += 1
    assert taken.max(initial=0) <= 1
    assert taken.any(axis=1).all()


def test_a_window_goes_to_the_fullest_row_that_holds_it():
    rows, first_steps = pack(np.array([6, 5, 4]), 10)
    assert rows.tolist() == [0, 1, 0]
    assert first_steps.tolist() == [0, 0, 6]


@FEW
@given(packings(), st.integers(0, 2), st.data())
def test_parts_of_hosts_make_up_the_whole_batch(packing, epoch, data):
    batch_size = packing.shape[0]
    cut = data.draw(st.integers(0, batch_size))
    step = data.draw(st.integers(0, packing.steps_per_epoch - 1))
    parts = [packing.batch(epoch, step, part) for part in (slice(0, cut), slice(cut, batch_size))]
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    assert_equal(whole, packing.batch(epoch, step))
    odd = np.arange(1, batch_size, 2)
    assert_equal(jax.tree.map(lambda array: array[odd], whole), packing.batch(epoch, step, odd))
    assert packing.num_targets(epoch, step) == np.count_nonzero(whole.weights)


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    lengths = np.arange(2, 40)
    expected = [make_packing(lengths).batch(epoch, 2) for epoch in range(4)]
    packing = make_packing(lengths)
    for epoch in (3, 0, 2, 1):  # another order, and steps in between
        packing.batch(epoch, 0)
        assert_equal(packing.batch(epoch, 2), expected[epoch])
    other = make_packing(lengths, seed=1).batch(0, 2)
    assert (other.items != expected[0].items).any()


def test_epochs_hold_the_same_targets_in_another_order():
    packing = make_packing([7, 3, 3, 9, 2, 30, 5, 5, 5, 12])
    first, second = (target_items(epoch_batches(packing, epoch)) for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_rows_change_their_order_between_epochs():
    lengths = range(2, 30)  # no two windows of equal length
    packing = make_packing(lengths, sequence_length=64, batch_size=1)
    first, second = ([b.items.tobytes() for b in epoch_batches(packing, e)] for e in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_windows_of_one_length_change_places_between_epochs():
    packing = make_packing([4] * 40, sequence_length=6, batch_size=10)

    def neighbours(epoch: int) -> set[frozenset[int]]:
        return {
            frozenset(users[items > 0].tolist())
            for batch in epoch_batches(packing, epoch)
            for users, items in zip(batch.users, batch.items, strict=True)
        }

    assert all(len(users) == 2 for users in neighbours(0))
    assert neighbours(0) != neighbours(1)


@pytest.mark.parametrize("burn_in", [0, 16])
def test_rows_of_a_shop_are_nearly_full(burn_in):
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.0, 1.0, 5000), 2, 2000).astype(int)
    packing = make_packing(lengths, sequence_length=64, burn_in=burn_in)
    assert packing.packed.lengths.sum() / (packing.num_rows * 64) >= 0.97


def test_only_training_events_are_read_or_predicted():
    packing = make_packing([6, 3, 4], train_lengths=[4, 0, 2])
    (batch,) = epoch_batches(packing)
    assert sorted(batch.items[batch.items > 0].tolist()) == [1, 2, 3, 10]
    assert sorted(target_items([batch])) == [2, 3, 4, 11]


def test_windows_are_laid_from_the_end_with_their_burn_in():
    windows = cut_windows(np.array([0, 12]), np.array([12]), sequence_length=5, burn_in=2)
    ends = windows.starts + windows.lengths
    assert windows.starts.tolist() == [6, 3, 0]
    assert ends.tolist() == [11, 8, 5]
    assert windows.burn_ins.tolist() == [2, 2, 0]


@pytest.mark.parametrize("burn_in", [-1, 8, 9])
def test_burn_in_must_leave_a_time_step(burn_in):
    with pytest.raises(ValueError, match=f"below sequence_length=8, not {burn_in}"):
        make_packing([5], sequence_length=8, burn_in=burn_in)


def test_gaps_are_seconds_since_the_users_event_before():
    log = make_log([3, 0, 1, 2, 0])  # at seconds 0, 1, 4; 9; 16, 25
    numbers = np.arange(6)
    assert gaps_of(log, numbers).tolist() == [NO_GAP, 1, 3, NO_GAP, NO_GAP, 9]
    assert gaps_of(log, numbers[::-2]).tolist() == [9, NO_GAP, 1]
    no_time = make_log([3, 2], has_time=False)
    assert gaps_of(no_time, numbers[:5]).tolist() == [NO_GAP] * 5


def test_the_gap_of_a_first_event_reaches_back_to_the_time_before_the_log():
    log = make_log([3, 0, 1, 2])
    before = np.array([-1, 5, 9, 6])
    gaps = gaps_of(log, np.arange(6), before)
    assert gaps.tolist() == [NO_GAP, 1, 3, 0, 10, 9]


def test_a_window_inside_a_history_keeps_the_gap_before_it():
    packing = make_packing([9], sequence_length=4, batch_size=2)
    (batch,) = epoch_batches(packing)
    used = batch.items > 0
    np.testing.assert_array_equal(batch.gaps[used], gaps_of(packing.log, batch.items[used] - 1))
    assert (batch.gaps[batch.starts] == NO_GAP).tolist().count(True) == 1
    assert (batch.gaps[~used] == NO_GAP).all()
    np.testing.assert_array_equal(batch.target_gaps[used], gaps_of(packing.log, batch.items[used]))


def test_gaps_beyond_the_largest_integer_are_cut():
    log = make_log([2])
    log.times[1] = 2**40
    assert gaps_of(log, np.arange(2)).tolist() == [NO_GAP, 2**31 - 1]


def test_only_the_first_event_of_a_user_counts_as_first_with_its_weight():
    lengths = [20, 3, 9]  # the first and the last are cut into windows of 4
    (batch,) = epoch_batches(make_packing(lengths, sequence_length=4, batch_size=40))
    assert batch.starts.sum() > len(lengths)
    is_first = batch.first_weights > 0
    result = dict(zip(batch.items[is_first], batch.first_weights[is_first], strict=True))
    assert result == {1: 1, 21: 1, 24: 4}
