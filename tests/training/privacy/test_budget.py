"""The accountant against formulas of the literature that share no code with it."""

from dataclasses import replace
from math import comb, exp, inf, log, sqrt

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom, norm

from jaxrec.config import PrivacyConfig, TrainConfig
from jaxrec.errors import ConfigError
from jaxrec.training.privacy import budget as accounting
from jaxrec.training.privacy.budget import Budget, make_budget, spent


def plan(noise, users, mean, steps, most=None, delta=1e-5):
    return Budget(inf, delta, 1.0, noise, users, mean, most or users, steps)


def renyi_epsilon(budget: Budget) -> float:
    """Epsilon by Renyi differential privacy of the sampled Gaussian mechanism.

    Mironov, Talwar and Zhang, arXiv:1908.10530, section 3.3; conversion of Canonne, Kamath and
    Steinke, arXiv:2004.00010, proposition 12.
    """
    q, noise = budget.mean_users / budget.users, budget.noise_multiplier
    epsilons = []
    for order in range(2, 200):
        terms = [
            log(comb(order, k))
            + (order - k) * log(1 - q)
            + k * log(q)
            + (k * k - k) / (2 * noise**2)
            for k in range(order + 1)
        ]
        renyi = budget.steps * logsumexp(terms) / (order - 1)
        ratio = log((order - 1) / order)
        epsilons.append(renyi + ratio - (log(budget.delta) + log(order)) / (order - 1))
    return min(epsilons)


def gaussian_epsilon(budget: Budget) -> float:
    """The exact epsilon of the Gaussian mechanism, repeated without sampling.

    Balle and Wang, arXiv:1805.06530, theorem 8.
    """
    mu = sqrt(budget.steps) / budget.noise_multiplier

    def excess(epsilon: float) -> float:
        hit = norm.cdf(mu / 2 - epsilon / mu)
        return hit - exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - budget.delta

    return brentq(excess, 1e-3, 100)


@pytest.mark.parametrize(
    "budget",
    [plan(1.5, 943, 256, 100), plan(1.0, 100_000, 1000, 2000), plan(6.0, 943, 512, 60)],
    ids=str,
)
def test_the_spent_epsilon_is_just_below_the_bound_of_renyi(budget):
    bound = renyi_epsilon(budget)
    assert 0.8 * bound < spent(budget, budget.steps) <= bound


@pytest.mark.parametrize("budget", [plan(5.0, 943, 943, 100), plan(20.0, 50, 50, 30)], ids=str)
def test_without_sampling_the_spent_epsilon_is_exact(budget):
    assert spent(budget, budget.steps) == pytest.approx(gaussian_epsilon(budget), rel=2e-3)


def test_steps_spend_and_a_limit_on_the_users_of_a_step_costs():
    budget = plan(1.5, 943, 256, 100)
    by_steps = [spent(budget, steps) for steps in (0, 1, 10, 100)]
    assert by_steps[0] == 0
    assert np.all(np.diff(by_steps) > 0)
    limited = [spent(replace(budget, most_users=most), 100) for most in (340, 300, 270)]
    assert by_steps[-1] <= limited[0] < limited[1] < limited[2]


def test_a_limit_on_the_users_of_a_step_is_within_a_bound_that_counts_every_full_step_as_lost():
    budget = make_budget(TrainConfig(epochs=5, batch_size=256, privacy=PrivacyConfig(2.0)), 943)
    assert budget.most_users < budget.users
    full = budget.steps * binom.sf(
        budget.most_users, budget.users, budget.mean_users / budget.users
    )
    lost = (1 + exp(budget.epsilon)) * full
    assert 0 < lost < budget.delta / 10
    bound = renyi_epsilon(replace(budget, delta=budget.delta - lost))
    assert 0.8 * bound < spent(budget, budget.steps) <= min(bound, budget.epsilon)


@pytest.mark.thorough
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_spends_the_budget_and_no_more(epsilon):
    train = TrainConfig(epochs=5, batch_size=256, privacy=PrivacyConfig(epsilon, clip=0.5))
    budget = make_budget(train, 943)
    assert (budget.clip, budget.steps, budget.steps_per_epoch) == (0.5, 20, 4)
    assert budget.mean_users < budget.most_users < budget.users
    assert 0.99 * epsilon < spent(budget, budget.steps) <= epsilon


def test_a_budget_of_any_size_has_some_noise():
    train = TrainConfig(epochs=1, batch_size=8, privacy=PrivacyConfig(10_000.0))
    budget = make_budget(train, 40)
    assert budget.noise_multiplier == accounting.LEAST_NOISE
    assert spent(budget, budget.steps) < 10_000


def test_a_batch_larger_than_the_shop_takes_every_user():
    budget = make_budget(TrainConfig(epochs=3, batch_size=64, privacy=PrivacyConfig(1.0)), 40)
    assert (budget.mean_users, budget.most_users, budget.steps) == (40, 40, 3)


def test_a_delta_that_protects_nobody_is_refused():
    train = TrainConfig(privacy=PrivacyConfig(1.0, delta=0.01))
    with pytest.raises(ConfigError, match=r"one of 943 users whole; choose less than 0\.001"):
        make_budget(train, 943)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(accounting, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrec\[privacy\]'"):
        make_budget(TrainConfig(privacy=PrivacyConfig(1.0)), 943)
