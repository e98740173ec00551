"""What a private training may spend, and the noise that keeps it within that."""

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from jaxrec.config import TrainConfig
from jaxrec.errors import ConfigError

INTERVAL = 1e-3  # to which the accountant rounds privacy losses up
LEAST_NOISE = 0.3  # less would protect nobody
SPREAD = 6  # standard deviations of the number of users in a step, up to which there is room


@dataclass(frozen=True)
class Budget:
    """The plan of a private training, fixed before its first step.

    Each user of the log is in a step with the probability `mean_users / users`, independently of
    all others (Poisson sampling). If more than `most_users` are drawn, a random part of them stays,
    which the accountant knows.
    """

    epsilon: float
    delta: float
    clip: float  # largest norm of what a user adds to the sum of gradients
    noise_multiplier: float  # standard deviation of the noise in that sum, as a multiple of `clip`
    users: int
    mean_users: int
    most_users: int
    steps: int  # of the whole training

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which a user is drawn about once."""
        return -(-self.users // self.mean_users)


def make_budget(train: TrainConfig, users: int) -> Budget:
    """The plan for a number of users, with the least noise that keeps the budget.

    Raises:
        ConfigError: jax-privacy is missing, or delta is too large for so many users.
    """
    if find_spec("jax_privacy") is None:
        raise ConfigError("train.privacy needs jax-privacy: pip install 'jaxrec[privacy]'")
    privacy = train.privacy
    if privacy.delta >= 1 / users:
        raise ConfigError(
            f"train.privacy.delta {privacy.delta:g} would allow to publish one of {users:,} users "
            f"whole; choose less than {1 / users:.1g}"
        )
    mean_users = min(train.batch_size, users)
    deviation = math.sqrt(mean_users * (1 - mean_users / users))
    plan: dict[str, Any] = {
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "clip": privacy.clip,
        "users": users,
        "mean_users": mean_users,
        "most_users": min(math.ceil(mean_users + SPREAD * deviation), users),
        "steps": train.epochs * -(-users // mean_users),
    }
    least = Budget(noise_multiplier=LEAST_NOISE, **plan)
    if spent(least, least.steps) <= privacy.epsilon:
        return least
    return Budget(noise_multiplier=_calibrated(least), **plan)


@cache
def spent(budget: Budget, steps: int) -> float:
    """The epsilon of the first `steps` steps, by the privacy loss distributions of jax-privacy.

    Neighbouring data sets differ in all events of one user (add or remove). The number of users is
    public.
    """
    from jax_privacy import accounting

    parameters = accounting.DpParams(
        noise_multipliers=budget.noise_multiplier,
        delta=budget.delta,
        **_sampling(budget, "batch_size"),
    )
    return float(_accountant().compute_epsilon(steps, parameters))


@cache
def _calibrated(least: Budget) -> float:
    """The least noise multiplier that keeps a budget, which `LEAST_NOISE` exceeds."""
    from jax_privacy import accounting

    return accounting.calibrate_noise_multiplier(
        target_epsilon=least.epsilon,
        target_delta=least.delta,
        num_updates=least.steps,
        accountant=_accountant(),
        initial_min_noise=LEAST_NOISE,
        tol=1e-3,
        **_sampling(least, "batch_sizes"),
    )


def _accountant() -> Any:
    from jax_privacy import accounting

    losses = accounting.PldAccountantConfig(value_discretization_interval=INTERVAL)
    return accounting.DpsgdTrainingAccountant(losses)


def _sampling(budget: Budget, name: str) -> dict[str, Any]:
    """How users are drawn, as the accountant wants it; `name` is that of the batch size."""
    truncated = budget.most_users if budget.most_users < budget.users else None
    return {
        name: budget.mean_users,
        "num_samples": budget.users,
        "truncated_batch_size": truncated,
    }
