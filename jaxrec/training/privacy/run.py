"""The files of a private run: its plan, and the key of its noise and draws while it trains.

privacy.json    the `Budget`; a run that is resumed must have the same one
privacy.key     random text; who knows it can take the noise off the weights, so it is removed after
                the last step. A run that is resumed draws the same users and noise again, which
                spends nothing twice
"""

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import write_json
from jaxrec.data.pseudonyms import new_key, read_key
from jaxrec.errors import RunError
from jaxrec.processes import from_first
from jaxrec.runtime import atomic_path
from jaxrec.sharding import replicated
from jaxrec.training.context import TrainContext
from jaxrec.training.privacy.budget import Budget, spent
from jaxrec.training.privacy.sampling import UserSampling

PLAN, KEY = "privacy.json", "privacy.key"
UNSELECTED = {run_directory.SELECTED_BY: 0.0}  # what checkpoints hold in place of validation


def keyed(context: TrainContext, run: Path, *, resume: bool) -> TrainContext:
    """The context of a private run with its key; any other as it is.

    Args:
        resume: the run has its files already.

    Raises:
        RunError: to resume, the plan is not that of the run.
    """
    if context.budget is None:
        return context
    planned = partial(_read if resume else _begin, run, context.budget)
    plan, key = from_first(planned)
    secret, budget = key.encode(), Budget(**plan)
    assert isinstance(context.packing, UserSampling)
    noise = np.frombuffer(hashlib.sha256(b"noise\0" + secret).digest(), np.uint32)[:2]
    noise_key = jax.device_put(noise, replicated(context.mesh))
    return replace(
        context,
        budget=budget,
        packing=replace(context.packing, budget=budget, secret=secret),
        arrays=replace(context.arrays, noise_key=noise_key),
    )


def account(budget: Budget, steps: int) -> dict[str, Any]:
    """What `metrics.json` says of the privacy of a model after a number of steps."""
    return {
        **asdict(budget),
        "budget": budget.epsilon,
        "epsilon": spent(budget, steps),
        "steps": steps,
        "protects": "all events of a user (add or remove)",
        "sampling": "Poisson",
        "accountant": f"privacy loss distributions, jax-privacy {version('jax-privacy')}",
    }


def drop_key(run: Path) -> None:
    """Remove the key of a run that has taken its last step, if it has one."""
    (run / KEY).unlink(missing_ok=True)


def _begin(run: Path, budget: Budget) -> tuple[dict[str, Any], str]:
    """Write the plan and a new key."""
    key = new_key()
    with atomic_path(run / KEY) as draft:
        draft.touch(0o600)
        draft.write_bytes(key)
    write_json(run / PLAN, asdict(budget))
    return asdict(budget), key.decode()


def _read(run: Path, budget: Budget) -> tuple[dict[str, Any], str]:
    """The plan and the key of a run; the key is empty after the last step."""
    with run_directory.reading(run, PLAN):
        plan = Budget(**json.loads((run / PLAN).read_text()))
    # another version of the accountant may find another noise; that of the first steps stays
    if plan != replace(budget, noise_multiplier=plan.noise_multiplier):
        raise RunError(
            f"{run}: the options or the number of users differ from those in {PLAN}, so the budget "
            "would not hold; restore them, or start a new run"
        )
    return asdict(plan), read_key(run / KEY).decode() if (run / KEY).exists() else ""
