"""Trainings on some of the users of a data set, measured on the held-out events of all users."""

from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.config import Config
from jaxrec.data.dataset import Dataset
from jaxrec.data.tables import Tables
from jaxrec.evaluation.metrics import ndcg, recall
from jaxrec.inference.comparison import held_out_ranks
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.types import Queries


def some_users(tables: Tables, share: float, seed: int) -> pl.Series:
    """The users that train: a random share of all, at least one unless the share is 0."""
    users = tables.events["user_id"].unique().sort()
    count = max(round(share * len(users)), 1) if share else 0
    return users.sample(count, seed=seed, shuffle=True)


def without_filters(config: Config) -> Config:
    """The options for tables that are filtered already, of which some users train."""
    return replace(config, data=replace(config.data, min_user_events=0, min_item_events=0))


def of_users(tables: Tables, users: pl.Series) -> Tables:
    """The tables with the events of some users and all items."""
    events = tables.events.filter(pl.col("user_id").is_in(users.implode()))
    return replace(tables, events=events)


def queries_of(dataset: Dataset) -> dict[str, Queries]:
    """The validation and test queries of all users."""
    return {"validation": dataset.split.validation, "test": dataset.split.test["last"]}


def model_ranks(model: TrainedModel, dataset: Dataset) -> dict[str, Float[np.ndarray, " Q"]]:
    """Ranks of the held-out items by a model whose items are those of the data set."""
    log = dataset.split.log
    assert model.catalog.item_ids.equals(dataset.catalog.item_ids)
    assert model.encoder.event_type_names == log.event_type_names
    mask = model.config.evaluation.mask
    return {
        name: held_out_ranks(model, log, queries, mask)
        for name, queries in queries_of(dataset).items()
    }


def figures(ranks: Float[np.ndarray, " Q"]) -> dict[str, float]:
    """NDCG@10 and recall@10 of ranks."""
    return {
        "ndcg@10": round(float(ndcg(ranks, 10).mean()), 5),
        "recall@10": round(float(recall(ranks, 10).mean()), 5),
    }
