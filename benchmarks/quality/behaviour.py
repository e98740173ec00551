"""How near the text of a user's behaviour lies to the next item, on a run's own test events.

    python benchmarks/quality/behaviour.py runs/ml-100k --last 3 10 20

Items are ranked by the cosine of their text vectors with the vector of what the user did before.
No user and no event of the data trained the text encoder. Printed is NDCG@10 of the next item, for
the text of the behaviour, for the mean of the text vectors of the same items, and for the model,
without its calibration. The items that the run's mask names are left out.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import jaxrec
from jaxrec.data.dataset import prepare as prepare_data
from jaxrec.data.events import first_events, some_events
from jaxrec.evaluation import metrics
from jaxrec.inference.behaviour import behaviour_table
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import history_events, mask_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.types import EventLog, Queries


def main() -> None:
    """Print NDCG@10 of every way to rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--last", type=int, nargs="+", default=[3, 10, 20])
    parser.add_argument("--users", type=int, default=2000)
    options = parser.parse_args()
    model = jaxrec.load(options.run, selected=True)
    split = prepare_data(model.config).split
    queries = split.test["last"].subsampled(options.users)
    items = model.index.items
    texts = ItemTable(unit_rows(np.asarray(model.index.text)), items.valid)
    table = Table(box=SIMPLE_HEAD, title=f"{len(queries):,} users")
    for heading in ("ranked by", "newest events", "N@10 of the next item"):
        table.add_column(heading)
    for last in options.last:
        behaviour = behaviour_vectors(model, split.log, queries, last)
        table.add_row(
            "text of behaviour", str(last), score(model, split.log, queries, behaviour, texts)
        )
        mean = mean_vectors(texts, split.log, queries, last)
        table.add_row(
            "mean of item texts", str(last), score(model, split.log, queries, mean, texts)
        )
    vectors = model.encoder.vectors_at(split.log, queries)
    table.add_row("the model", "all", score(model, split.log, queries, vectors, items))
    Console().print(table)


def behaviour_vectors(
    model: TrainedModel, log: EventLog, queries: Queries, last: int
) -> np.ndarray:
    """Vectors of the texts of what users did before their queries, one query a user."""
    numbers = np.zeros(log.num_users, np.int64)
    numbers[queries.users] = queries.positions - log.offsets[queries.users]
    table = behaviour_table(model, some_events(log, first_events(log, numbers)), last)
    return table["vector"].to_numpy()[queries.users]


def mean_vectors(texts: ItemTable, log: EventLog, queries: Queries, last: int) -> np.ndarray:
    """Means of the text vectors of the newest items before queries."""
    rows, events = history_events(log, queries, 0, len(queries), last)
    vectors = np.zeros((len(queries), np.shape(texts.vectors)[1]), np.float32)
    np.add.at(vectors, rows, np.asarray(texts.vectors)[log.items[events]])
    return unit_rows(vectors)


def score(
    model: TrainedModel, log: EventLog, queries: Queries, vectors: np.ndarray, items: ItemTable
) -> str:
    """NDCG@10 of the next item."""
    mask = mask_adjustments(log, queries, model.config.evaluation.mask)
    targets = log.items[queries.positions]
    ranking = rank_queries(EvalQueries(vectors, targets, mask), items)
    return f"{metrics.ndcg(ranking.ranks, 10).mean():.4f}"


if __name__ == "__main__":
    main()
