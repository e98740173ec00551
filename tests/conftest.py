"""Four CPU devices, strict flags, and a small shop."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# programs this small cost more to optimise than to run
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

import jax
import numpy as np
import polars as pl
import pytest

from jaxrec import training
from jaxrec.config import parse
from jaxrec.data.fetch import cache_dir
from jaxrec.data.tables import Tables, validate

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


HELD_OUT = "i07"


@pytest.fixture(scope="session")
def known_tables(tables) -> Tables:
    """The small shop before one of its items is on sale."""
    events = tables.events.filter(pl.col("item_id") != HELD_OUT)
    return validate(events, tables.items.filter(pl.col("item_id") != HELD_OUT), None)


@pytest.fixture(scope="session")
def trained_run(known_tables, tmp_path_factory) -> Path:
    """A run on the small shop that has learned how most people move on."""
    options = {
        "split.scheme": "leave_one_out",
        "data.negative_kinds": [],
        "model.experts": ["id+graph", "text+graph"],
        "model.width": 16,
        "model.blocks": 1,
        "model.dropout": 0.1,
        "text.pretrained": str(Path(__file__).parent / "golden" / "tiny_bert"),
        "train.rows": 8,
        "train.slots": 16,
        "train.epochs": 40,
        "train.patience": 40,
        "train.warmup_steps": 5,
        "train.learning_rate": 0.01,
    }
    run = tmp_path_factory.mktemp("runs") / "shop"
    training.fit(parse(layers=[options]), run, tables=known_tables)
    return run
