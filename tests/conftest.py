"""Four CPU devices, strict flags, and a small shop."""

import os
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# programs this small cost more to optimise than to run
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from filelock import FileLock

from jaxrec import training
from jaxrec.calibration import with_prior
from jaxrec.config import parse
from jaxrec.data.fetch import cache_dir
from jaxrec.data.tables import Tables, validate
from jaxrec.scoring import TrainedModel

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)
# most tests that train compile the same few programs
jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

NUM_USERS, NUM_ITEMS, NUM_BRANDS = 40, 30, 5
START = 1_704_067_200  # 2024-01-01, seconds
DAY = 86_400


@pytest.fixture(scope="session")
def tables() -> Tables:
    """Forty users of 5 to 11 events in 2024; most step to the next item of one brand."""
    random = np.random.default_rng(0)
    lengths = random.integers(5, 12, NUM_USERS)
    users = np.repeat(np.arange(NUM_USERS), lengths)
    visits = np.concatenate([np.arange(length) for length in lengths])
    loyal = (users + NUM_BRANDS * visits) % NUM_ITEMS
    items = np.where(random.random(len(users)) < 0.8, loyal, random.integers(0, NUM_ITEMS))
    first_days = random.integers(0, 60, NUM_USERS)
    seconds = START + (first_days[users] + 3 * visits) * DAY + random.integers(0, DAY, len(users))
    events = pl.DataFrame(
        {
            "user_id": [f"u{user:02}" for user in users],
            "item_id": [f"i{item:02}" for item in items],
            "timestamp": seconds,
            "event": np.where(random.random(len(users)) < 0.6, "view", "buy"),
        }
    ).sort("timestamp")
    numbers = range(NUM_ITEMS)
    shelves = ("Hair", "Nails", "Skin")
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{item:02}" for item in numbers],
            "title": [f"{shelves[item % 3]} care number {item}" for item in numbers],
            "brand": [f"brand{item % NUM_BRANDS}" for item in numbers],
            "categories": [["Beauty", shelves[item % 3], f"Kind {item % 6}"] for item in numbers],
        }
    )
    return validate(events, catalogue, None)


HELD_OUT = "i17"


@pytest.fixture(scope="session")
def shop() -> Tables:
    """120 users who choose seven of the ten items of one of four brands, in any order."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(120), 7)
    items = np.concatenate([random.permutation(10)[:7] + 10 * (user % 4) for user in range(120)])
    events = pl.DataFrame(
        {
            "user_id": [f"u{user:03}" for user in users],
            "item_id": [f"i{item:02}" for item in items],
            "timestamp": START + 3600 * random.permutation(len(items)),
            "event": np.where(random.random(len(items)) < 0.6, "view", "buy"),
        }
    ).sort("timestamp")
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{item:02}" for item in range(40)],
            "title": [f"brand {'wxyz'[i // 10]} item {'abcdefghij'[i % 10]}" for i in range(40)],
            "brand": [f"brand{item // 10}" for item in range(40)],
            "categories": [["Beauty", f"Shelf {item % 3}"] for item in range(40)],
            "price": [1.5 * item for item in range(40)],
        }
    )
    return validate(events, catalogue, None)


@pytest.fixture(scope="session")
def known_shop(shop) -> Tables:
    """The shop before one of its items is on sale."""
    known = pl.col("item_id") != HELD_OUT
    return validate(shop.events.filter(known), shop.items.filter(known), None)


@pytest.fixture(scope="session")
def trained_run(known_shop, tmp_path_factory, worker_id) -> Path:
    """A run that has learned to whom the items of the shop go, trained once for all processes."""
    options = {
        "split.scheme": "leave_one_out",
        "model.experts": ["id+graph", "text+graph"],
        "model.width": 16,
        "model.blocks": 1,
        "model.id_dropout": 0.3,
        "text.pretrained": str(Path(__file__).parent / "golden" / "tiny_bert"),
        "train.rows": 8,
        "train.slots": 16,
        "train.epochs": 20,
        "train.patience": 20,
        "train.learning_rate": 0.01,
        "train.auxiliary_weight": 0.5,
    }
    own = tmp_path_factory.getbasetemp()
    run = (own if worker_id == "master" else own.parent) / "shop"
    with FileLock(run.with_suffix(".lock")):
        if not run.exists():
            training.fit(parse(layers=[options]), run, tables=known_shop)
    return run


def corrected(model: TrainedModel, popularity: float = -0.5) -> TrainedModel:
    """A model that masks nothing, has learned much of what users come back to and had its
    popularity corrected."""
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf, model.params)
    for expert in params["experts"].values():
        table = expert["familiarity_table"]
        expert["familiarity_table"] = jnp.asarray(random.normal(size=table.shape), table.dtype)
    evaluation = replace(model.config.evaluation, mask=("none",))
    correction = replace(model.correction, popularity=popularity)
    return replace(
        model,
        params=params,
        correction=correction,
        vectors=with_prior(model.vectors, correction.prior(model.trained.counts)),
        config=replace(model.config, evaluation=evaluation),
    )
