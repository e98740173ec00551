"""Batches of private training: users by Poisson sampling, each with a window of their history."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.errors import RunError
from jaxrec.training.privacy.budget import Budget
from jaxrec.training.privacy.sampling import user_sampling

USERS, MEAN, MOST, LENGTH = 40, 10, 26, 4


@pytest.fixture(scope="module")
def sampling(tables):
    dataset = prepare(config(), tables)
    split = dataset.split
    budget = Budget(8.0, 1e-5, 1.0, 1.0, USERS, MEAN, MOST, 100)
    without = user_sampling(
        split.log, split.train_lengths, dataset.target_weights, budget, sequence_length=LENGTH
    )
    return replace(without, secret=b"secret")


def drawn(sampling, step):
    """The users of the rows of a batch."""
    batch = sampling.batch(0, step)
    return batch.users[batch.starts[:, 0], 0]


def test_every_row_is_a_window_of_one_user(sampling):
    log, seen = sampling.log, set()
    for step in range(20):
        batch = sampling.batch(1, step)
        assert batch.items.shape == sampling.shape == (32, LENGTH)
        assert len(set(drawn(sampling, step))) == len(drawn(sampling, step)) <= MOST
        targets = 0
        for row in range(len(batch.items)):
            used = np.count_nonzero(batch.items[row])
            assert batch.starts[row].sum() == (used > 0)
            if not used:
                assert not any(np.any(values[row]) for values in (batch.weights, batch.targets))
                continue
            (user,) = set(batch.users[row, :used])
            own = log.items[log.offsets[user] : log.offsets[user + 1]].tolist()
            window = [*batch.items[row, :used].tolist(), int(batch.targets[row, used - 1])]
            starts = [n for n in range(len(own)) if own[n : n + len(window)] == window]
            assert starts
            seen |= {(user, start) for start in starts[:1]}
            targets += np.count_nonzero(batch.weights[row])
        assert targets == sampling.num_targets(1, step)
    by_user = np.bincount([user for user, _ in seen], minlength=USERS)
    assert by_user.max() > 1  # several windows of the users with long histories


def test_users_are_drawn_independently_with_the_same_probability(sampling):
    steps, probability = 600, MEAN / USERS
    present = np.zeros((steps, USERS), bool)
    for step in range(steps):
        present[step, drawn(sampling, step)] = True
    deviation = np.sqrt(probability * (1 - probability) / steps)
    assert np.abs(present.mean(0) - probability).max() < 5 * deviation
    # the variance of the number of users; batches of a fixed size have none
    variance = USERS * probability * (1 - probability)
    assert present.sum(1).var() == pytest.approx(variance, rel=0.3)
    pairs = np.corrcoef(present.T) - np.eye(USERS)
    assert np.abs(pairs).max() < 6 / np.sqrt(steps)


def test_a_batch_depends_on_the_secret_and_its_place_alone(sampling):
    again = replace(sampling)
    jax.tree.map(np.testing.assert_array_equal, sampling.batch(2, 3), again.batch(2, 3))
    others = (replace(sampling, secret=b"another"), 2, 3), (sampling, 3, 3), (sampling, 2, 4)
    users = [np.sort(s.batch(*place).users[:, 0]).tolist() for s, *place in others]
    assert np.sort(sampling.batch(2, 3).users[:, 0]).tolist() not in users


def test_hosts_hold_parts_of_the_same_batch(sampling):
    whole = sampling.batch(0, 0)
    rows = np.array([1, 2, 17])
    parts = (slice(0, 16), slice(16, 32), rows)
    for part in parts:
        jax.tree.map(
            lambda own, all_rows, part=part: np.testing.assert_array_equal(own, all_rows[part]),
            sampling.batch(0, 0, part),
            whole,
        )


def test_rows_without_a_user_are_in_the_last_microbatches(sampling):
    present = sampling.batch(0, 0).starts[:, 0]
    count = len(present) // sampling.microbatch
    # row r is in microbatch r % count
    by_microbatch = present.reshape(-1, count).T.reshape(-1)
    assert by_microbatch[: present.sum()].all()


def test_at_most_so_many_users_are_in_a_step(sampling):
    few = replace(sampling, budget=replace(sampling.budget, most_users=5))
    assert max(len(drawn(few, step)) for step in range(10)) == 5


def test_nothing_is_drawn_without_the_secret(sampling):
    with pytest.raises(RunError, match="the key of this private run is gone"):
        replace(sampling, secret=b"").batch(0, 0)
