"""What vectors of items are worth: of use, they help items that are new; noise does no harm."""

import numpy as np
import polars as pl
import pytest
from helpers.training import config

from jaxrec.data.tables import validate_tables
from jaxrec.training.fit import fit

KINDS, ITEMS, USERS, VISITS = 6, 90, 240, 9
NEW = ITEMS // 5  # items without a training event


def make_shop(vectors):
    """Users choose items of one of six kinds, which no column tells; some end at a new item."""
    random = np.random.default_rng(0)
    kinds = np.arange(ITEMS) % KINDS
    known, new = np.arange(NEW, ITEMS), np.arange(NEW)
    rows = []
    for user in range(USERS):
        own = random.permutation(known[kinds[known] == user % KINDS])[:VISITS]
        if user % 2:
            own[-1] = random.choice(new[kinds[new] == user % KINDS])
        rows += [(f"u{user}", f"i{item}", 86_400 * day) for day, item in enumerate(own)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    events = events.with_columns(pl.col("timestamp") + 1_700_000_000)
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(ITEMS)]})
    return validate_tables(
        events, items.with_columns(image=pl.Series(vectors(random, kinds))), None
    )


def useful(random, kinds):
    return (np.eye(KINDS)[kinds] + 0.3 * random.normal(size=(ITEMS, KINDS))).tolist()


def noise(random, kinds):
    return random.normal(size=(ITEMS, KINDS)).tolist()


def quality(tmp_path, expert, vectors):
    """Recall@10 of test events whose item is new, and NDCG@10 of the others."""
    options = {"model.experts": [expert], "model.id_dropout": 0.2, "train.learning_rate": 0.01}
    options |= {"train.epochs": 12, "train.batch_size": 16, "model.hidden_size": 16}
    run = tmp_path / f"{expert}-{vectors.__name__}"
    fit(config(**options), run, tables=make_shop(vectors))
    table = pl.read_parquet(run / "ranks.parquet")
    is_new = (table["item_id"].str.slice(1).cast(int) < NEW).to_numpy()
    ranks = table["rank"].to_numpy()
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    return (ranks < 10)[is_new].mean(), gains[~is_new].mean()


@pytest.mark.slow
def test_useful_vectors_find_new_items_and_noise_does_no_harm(tmp_path):
    """The standard error of the NDCG of 120 events is about .02."""
    without = quality(tmp_path, "id", noise)
    helped, spoiled = (quality(tmp_path, "id+image", vectors) for vectors in (useful, noise))
    assert without[0] < 0.2 and helped[0] > 0.8
    assert helped[1] > without[1] - 0.06
    assert spoiled[1] > without[1] - 0.06
