"""How near the texts of a user's items lie to the next item, by several text encoders.

    python benchmarks/quality/text_pretraining.py scientific --folder path/to/data \\
        --encoders sentence-transformers/all-MiniLM-L6-v2 encoders/contrast

Items are ranked by the cosine of their whitened text vectors with the mean of those of the user's
newest items. No recommender is trained, so the figures are of the encoder alone, and take as long
as it reads the texts. Printed is NDCG@10 on validation and test, and that of the test targets
without an event in training (cold). Items of the history are left out.
"""

import argparse
from pathlib import Path

import numpy as np
from cases import CASES, Variant, configuration
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.evaluation import metrics
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.text_features import item_text
from jaxrec.ranking.adjustments import history_events, mask_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.types import Queries


def main() -> None:
    """Print a row for every encoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--encoders", nargs="+", required=True, metavar="CHECKPOINT")
    parser.add_argument("--last", type=int, default=5, help="newest items that are read")
    options = parser.parse_args()
    case = CASES[options.case]
    table = Table(box=SIMPLE_HEAD, title=f"{options.case}: mean of the last {options.last} items")
    for heading in ("text encoder", "validation N@10", "test N@10", "cold N@10", "cold targets"):
        table.add_column(heading)
    for encoder in options.encoders:
        variant = Variant({"text.pretrained": encoder})
        config = configuration(case, case.data(options.folder), variant, 0)
        table.add_row(encoder, *figures(config, prepare(config), options.last))
    Console(width=120).print(table)


def figures(config: Config, dataset: Dataset, last: int) -> tuple[str, ...]:
    """NDCG@10 on validation, on test and on cold test targets, and the number of the latter."""
    texts = item_text(dataset.catalog.items, config)
    valid = np.arange(len(texts.vectors)) > 0
    items = ItemTable(unit_rows(texts.vectors), valid)
    log, test = dataset.split.log, dataset.split.test["last"]
    validation = ndcg(dataset, dataset.split.validation, items, last)
    tested = ndcg(dataset, test, items, last)
    cold = tested[~dataset.trained[log.items[test.positions]]]
    means = [
        f"{values.mean():.4f}" if len(values) else "-" for values in (validation, tested, cold)
    ]
    return (*means, str(len(cold)))


def ndcg(dataset: Dataset, queries: Queries, items: ItemTable, last: int) -> np.ndarray:
    """NDCG@10 of every query."""
    log = dataset.split.log
    rows, events = history_events(log, queries, 0, len(queries), last)
    vectors = np.zeros((len(queries), np.shape(items.vectors)[1]), np.float32)
    np.add.at(vectors, rows, np.asarray(items.vectors)[log.items[events]])
    mask = mask_adjustments(log, queries, ("seen",))
    targets = log.items[queries.positions]
    return metrics.ndcg(
        rank_queries(EvalQueries(unit_rows(vectors), targets, mask), items).ranks, 10
    )


if __name__ == "__main__":
    main()
