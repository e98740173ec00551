"""Batches of users for private training, as a pure function of (log, secret, epoch, step)."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from jaxrec.data.packing import (
    Windows,
    cut_windows,
    filled_batch,
    target_counts,
    with_targets,
)
from jaxrec.errors import RunError
from jaxrec.training.privacy.budget import Budget
from jaxrec.types import Batch, EventLog

MICROBATCH = 16  # users whose gradients are in memory at a time, on one device


@dataclass(frozen=True)
class UserSampling:
    """Batches whose rows are users, drawn by Poisson sampling; the counterpart of `Packing`.

    A user who is drawn brings one random window of their history, so nothing else of the batch
    depends on them. Rows without a user are empty.

    Attributes:
        weights: target weight of every event of the log.
        windows: of all users, in the order of users.
        microbatch: divides the number of rows.
        secret: what draws depend on. It tells which users were drawn.
    """

    log: EventLog
    weights: Float[np.ndarray, " M"]
    windows: Windows
    budget: Budget
    sequence_length: int
    microbatch: int
    secret: bytes = b""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and time steps of a batch."""
        return -(-self.budget.most_users // self.microbatch) * self.microbatch, self.sequence_length

    @property
    def num_rows(self) -> int:
        """Rows that may be drawn in an epoch."""
        return self.budget.users

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which a user is drawn about once."""
        return self.budget.steps_per_epoch

    def batch(
        self, epoch: int, step: int, part: slice | Int[np.ndarray, " rows"] = slice(None)
    ) -> Batch:
        """The rows `part` of the batch at a step of an epoch, in ascending order.

        Raises:
            RunError: there is no secret.
        """
        windows = self._drawn(epoch, step)
        # full microbatches come first; jax-privacy puts row r into microbatch r % count
        numbers, count = np.arange(len(windows)), self.shape[0] // self.microbatch
        rows = numbers // self.microbatch + numbers % self.microbatch * count
        own = np.arange(self.shape[0])[part]
        places = np.full(self.shape[0], -1)
        places[own] = np.arange(len(own))
        present = places[rows] >= 0
        return filled_batch(
            self.log,
            self.weights,
            self.windows[windows[present]],
            rows=places[rows[present]],
            first_steps=np.zeros(np.count_nonzero(present), np.int64),
            shape=(len(own), self.sequence_length),
        )

    def num_targets(self, epoch: int, step: int) -> int:
        """Targets with a weight in the whole batch at a step of an epoch."""
        return int(self._targets[self._drawn(epoch, step)].sum())

    def _drawn(self, epoch: int, step: int) -> Int[np.ndarray, " drawn"]:
        """A window of each user who is drawn and has one."""
        from jax_privacy.batch_selection import CyclicPoissonSampling

        if not self.secret:
            raise RunError(
                "the key of this private run is gone, so nothing can be drawn; start a new run"
            )
        digest = hashlib.sha256(b"users\0" + self.secret).digest()
        random = np.random.default_rng([*np.frombuffer(digest, np.uint32), epoch, step])
        budget = self.budget
        once = CyclicPoissonSampling(
            sampling_prob=budget.mean_users / budget.users,
            iterations=1,
            truncated_batch_size=budget.most_users,
        )
        users = next(once.batch_iterator(budget.users, random))
        counts = np.diff(self._first_windows)[users]
        numbers = (random.random(len(users)) * counts).astype(np.int64)
        return (self._first_windows[users] + numbers)[counts > 0]

    @cached_property
    def _first_windows(self) -> Int[np.ndarray, " offsets"]:
        """The first window of every user, and the end of the last one's."""
        users = self.log.users_at(self.windows.starts)
        return np.searchsorted(users, np.arange(self.log.num_users + 1))

    @cached_property
    def _targets(self) -> Int[np.ndarray, " W"]:
        return target_counts(self.windows, self.weights)


def user_sampling(
    log: EventLog,
    train_lengths: Int[np.ndarray, " U"],
    weights: Float[np.ndarray, " M"],
    budget: Budget,
    *,
    sequence_length: int,
    burn_in: int = 0,
    devices: int = 1,
) -> UserSampling:
    """The sampling of a log, without its secret.

    Args:
        train_lengths: number of events of each user that may be used.
        weights: target weight of every event of the log.
        devices: that share the rows of a batch.
    """
    windows = cut_windows(log.offsets, train_lengths, sequence_length, burn_in)
    return UserSampling(
        log,
        weights,
        with_targets(windows, weights),
        budget,
        sequence_length,
        users_at_a_time(devices),
    )


def users_at_a_time(devices: int) -> int:
    """Users whose gradients are in memory at a time, on all devices together."""
    return -(-MICROBATCH // devices) * devices
