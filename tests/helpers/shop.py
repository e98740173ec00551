"""Small shops as tables, and a model with a strong repeat bias."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from jaxrec.artifacts.run_directory import COOCCURRENCE, SIMILAR_TEXT
from jaxrec.data.tables import Tables, validate_tables
from jaxrec.inference.catalog_index import padded_bias
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.history_bias import ItemNeighbours

NUM_USERS, NUM_ITEMS, NUM_BRANDS = 40, 30, 5
START = 1_704_067_200  # 2024-01-01, seconds
DAY = 86_400
HELD_OUT = "i17"


def make_tables() -> Tables:
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
    return validate_tables(events, catalogue, None)


def make_shop() -> Tables:
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
    return validate_tables(events, catalogue, None)


def random_neighbours(model: TrainedModel) -> dict[str, ItemNeighbours]:
    """Three neighbours of every item; events of the last type do not count."""
    random = np.random.default_rng(1)
    count, types = model.artifacts.catalog.num_items, len(model.artifacts.event_type_names)
    return {
        name: ItemNeighbours(
            items=random.integers(0, count, (count, 3), np.int32),
            amounts=random.exponential(size=(count, 3)).astype(np.float32),
            half_life=half_life,
            event_types=np.arange(types) < types - 1,
        )
        for name, half_life in ((COOCCURRENCE, 1.0), (SIMILAR_TEXT, 2.0))
    }


def corrected(model: TrainedModel, popularity: float = -0.5) -> TrainedModel:
    """A model that masks nothing, with strong history biases and a corrected popularity."""
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf, model.model.params)
    for expert in params["experts"].values():
        table = expert["repeat_bias_table"]
        expert["repeat_bias_table"] = jnp.asarray(random.normal(size=table.shape), table.dtype)
    evaluation = replace(model.config.evaluation, mask=("none",))
    correction = replace(model.correction, popularity=popularity)
    bias = padded_bias(correction, model.artifacts.counts, len(model.index.items))
    return replace(
        model,
        model=replace(model.model, params=params),
        correction=correction,
        neighbours=random_neighbours(model),
        index=replace(model.index, bias=bias),
        config=replace(model.config, evaluation=evaluation),
    )
