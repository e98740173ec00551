"""Trainings on some of the users of a data set, measured on the held-out events of all users."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cases import CASES, Variant, configuration
from jaxtyping import Float

from jaxrec.artifacts.run_directory import read_config
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, filtered, prepare
from jaxrec.data.tables import Tables
from jaxrec.evaluation.metrics import ndcg, recall
from jaxrec.inference.comparison import held_out_ranks
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.training.fit import fit
from jaxrec.training.logging import read_log
from jaxrec.types import Queries


class FilteredCase:
    """A case whose tables are filtered once, because some users leave too few events of each item.

    Attributes:
        tables: of all users.
        dataset: all users, for evaluation.
    """

    def __init__(self, name: str, folder: Path, changes: Mapping[str, Any] | None = None):
        self.case, self.data, self.changes = CASES[name], CASES[name].data(folder), changes or {}
        self.tables = filtered(self._recipe({}, 0))
        self.dataset = prepare(self.config(), self.tables)

    def config(self, changes: Mapping[str, Any] | None = None, seed: int = 0) -> Config:
        """The options of a training on some of the users."""
        config = self._recipe(changes or {}, seed)
        return replace(config, data=replace(config.data, min_user_events=0, min_item_events=0))

    def _recipe(self, changes: Mapping[str, Any], seed: int) -> Config:
        variant = Variant({**self.changes, **changes})
        return configuration(self.case, self.data, variant, seed)


def fit_or_resume(config: Config, run: Path, tables: Tables) -> list[dict]:
    """Train a run, or continue it with the options that it has. Returns its log."""
    if run.exists():
        fit(read_config(run), run, tables=tables, resume=True)
    else:
        fit(config, run, tables=tables)
    return read_log(run)


def some_users(tables: Tables, share: float, seed: int) -> pl.Series:
    """The users that train: a random share of all, at least one unless the share is 0."""
    users = tables.events["user_id"].unique().sort()
    count = max(round(share * len(users)), 1) if share else 0
    return users.sample(count, seed=seed, shuffle=True)


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
