"""Transfer to another shop: without training, and trained on few of its users.

    python benchmarks/quality/transfer.py path/to/beauty_run scientific --folder path/to/data
    python benchmarks/quality/transfer.py path/to/ml1m_run ml-100k --shares 0.01 0.1 1 --seeds 0 1 2

All test users of the case are ranked, each after all their earlier events, whatever share of the
users trained. `transferred` goes on from the run with `--from`, and `scratch` begins anew with the
recipe of the case. `popularity` counts the events of the same users, and `text` ranks by the cosine
with the mean text of a user's items. Every result is a row of `benchmarks/results/transfer.jsonl`,
and what has a row is not measured again.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from cases import CASES
from few_users import (
    FilteredCase,
    figures,
    fit_or_resume,
    model_ranks,
    of_users,
    queries_of,
    some_users,
)
from rich.console import Console
from rich.table import Table
from rows import about_run, append_row, commit, find_row

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.cli import transfer
from jaxrec.cli.transfer import TransferOptions
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import mask_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.types import Queries

RESULTS = Path(__file__).parent.parent / "results" / "transfer.jsonl"
RUNS = Path("runs") / "transfer"


def main() -> None:
    """Measure what has no row yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="the trained run of the first shop")
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--shares", type=float, nargs="*", default=[], help="of the users")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    shop = Shop(options)
    rows = [row for seed in options.seeds for row in shop.rows(options.shares, seed)]
    Console(width=120).print(table_of(f"{options.run.name} -> {options.case}", rows))


class Shop(FilteredCase):
    """The second shop, and the transferred run."""

    def __init__(self, options: argparse.Namespace):
        super().__init__(options.case, options.folder)
        self.name, self.origin = options.case, options.run
        self.start = RUNS / f"{self.origin.name}-{self.name}".replace(" ", "-")

    def transferred(self) -> TrainedModel:
        """The model of the first shop over the items of this one."""
        if not self.start.exists():
            items, triples = self.start.with_suffix(".items.parquet"), None
            self.start.parent.mkdir(parents=True, exist_ok=True)
            self.tables.items.write_parquet(items)
            if self.tables.triples is not None:
                triples = self.start.with_suffix(".triples.parquet")
                self.tables.triples.write_parquet(triples)
            given = TransferOptions(run=self.origin, items=items, triples=triples, out=self.start)
            transfer.transfer(given)
        return jaxrec.load(self.start)

    def rows(self, shares: list[float], seed: int) -> Iterator[dict]:
        """The rows of a seed: no training first, then each share of the users."""
        if seed == 0:
            yield self.row("transferred", 0, 0)
            yield self.row("text", 0, 0)
        for share in shares:
            for name in ("transferred", "scratch", "popularity"):
                yield self.row(name, share, seed)

    def row(self, name: str, share: float, seed: int) -> dict:
        """The row of a result, from the file or measured now."""
        key = [self.name, self.origin.name, name, share, seed]
        if row := find_row(RESULTS, key=key):
            return row
        Console().print(f"{self.name}: {name}, {share:.0%} of the users, seed {seed}")
        start = time.perf_counter()
        users = some_users(self.tables, share, seed)
        log: list[dict] = []
        match name:
            case "text":
                ranks = text_ranks(self.transferred(), self.dataset)
            case "popularity":
                ranks = popularity_ranks(self.dataset, users)
            case "transferred" if not share:
                ranks = model_ranks(self.transferred(), self.dataset)
            case _:
                run = RUNS / "-".join(map(str, key)).replace(" ", "-")
                log = fit_or_resume(self.training(name, seed), run, of_users(self.tables, users))
                ranks = model_ranks(jaxrec.load(run), self.dataset)
        row = {
            "key": key,
            "method": name,
            "share": share,
            "users": len(users),
            **about_run(self.config(seed=seed), log, start),
            **{part: figures(values) for part, values in ranks.items()},
        }
        append_row(RESULTS, row)
        return row

    def training(self, name: str, seed: int) -> Config:
        """The recipe of the case, or the options of the transferred run on this shop's data."""
        own = self.config(seed=seed)
        if name == "scratch":
            return own
        config = self.transferred().config
        return replace(
            config,
            data=own.data,
            split=own.split,
            evaluation=own.evaluation,
            train=replace(config.train, seed=seed),
            forecast=own.forecast,
            warm_start=replace(config.warm_start, base=str(self.start)),
        )


def text_ranks(model: TrainedModel, dataset: Dataset) -> dict[str, np.ndarray]:
    """Ranks by the cosine with the mean text vector of the user's earlier items."""
    log, valid = dataset.split.log, model.index.items.valid
    text = unit_rows(np.asarray(model.index.text))
    ranks = {}
    for name, queries in queries_of(dataset).items():
        begins = log.offsets[queries.users]
        sums = np.concatenate([np.zeros((1, text.shape[1])), np.cumsum(text[log.items], 0)])
        vectors = (sums[queries.positions] - sums[begins]).astype(np.float32)
        ranks[name] = host_ranks(dataset, queries, vectors, ItemTable(text, valid), model)
    return ranks


def popularity_ranks(dataset: Dataset, users: pl.Series) -> dict[str, np.ndarray]:
    """Ranks by the number of training events of some users."""
    log, split = dataset.split.log, dataset.split
    chosen = np.flatnonzero(log.user_ids.is_in(users.implode()).to_numpy())
    own = np.zeros(log.num_users, bool)
    own[chosen] = True
    counted = split.in_training & np.repeat(own, log.lengths)
    size = dataset.catalog.graph.types[0].padded_size
    counts = np.bincount(log.items[counted], minlength=size).astype(np.float32)[:, None]
    valid = dataset.catalog.graph.types[0].valid
    return {
        name: host_ranks(
            dataset, queries, np.ones((len(queries), 1), np.float32), ItemTable(counts, valid)
        )
        for name, queries in queries_of(dataset).items()
    }


def host_ranks(
    dataset: Dataset,
    queries: Queries,
    vectors: np.ndarray,
    items: ItemTable,
    model: TrainedModel | None = None,
) -> np.ndarray:
    """Ranks by a dot product, without the items that the user has had."""
    log = dataset.split.log
    targets = log.items[queries.positions]
    mask = ("seen",) if model is None else model.config.evaluation.mask
    adjustments = mask_adjustments(log, queries, mask, targets)
    return rank_queries(EvalQueries(vectors, targets, adjustments), items, k=1).ranks


def table_of(title: str, rows: list[dict]) -> Table:
    """A line for every method and share, as means over the seeds."""
    table = Table(title=title, title_justify="left")
    for heading in ("method", "users", "validation N@10", "test N@10", "R@10", "minutes", "seeds"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, share in dict.fromkeys((row["method"], row["share"]) for row in rows):
        own = [row for row in rows if (row["method"], row["share"]) == (method, share)]
        places = [("validation", "ndcg@10"), ("test", "ndcg@10"), ("test", "recall@10")]
        cells = [f"{np.mean([row[part][name] for row in own]):.4f}" for part, name in places]
        minutes = f"{np.mean([row['minutes'] for row in own]):.1f}"
        table.add_row(method, f"{own[0]['users']:,}", *cells, minutes, str(len(own)))
    return table


if __name__ == "__main__":
    main()
