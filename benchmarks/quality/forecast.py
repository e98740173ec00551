"""How well forecasts find the items and the categories of the next events.

    python benchmarks/quality/forecast.py ml-100k
    python benchmarks/quality/forecast.py online_retail taobao --folder path/to/data
    python benchmarks/quality/forecast.py ml-100k --all train.epochs=4 --queries validation

Data are split by time, whatever the recipe says. Moments of test users are the queries: the start
of the test period, and then every tenth event as long as ten events follow. The user vector has
read all events before. The future basket holds the distinct items of the next h events that the run
predicts, without those that its mask leaves out; horizons h are 1, 5 and 10. Recall is the share of
the basket in a list of 10 or of 100 items, and likewise of categories (or of the first other node
type that the run predicts) in lists of 1 and 5.

Four systems make lists from the same user vectors:

    state      the ordinary list, whatever h is
    category   items of the category of the last event by popularity, then the most popular ones
    expected   the sum of the shares of the first h steps; the decoder reads expected items
    sampled    the same with 32 roll-outs that draw their items

Every finished run is a row of `benchmarks/results/forecast.jsonl` and a directory in
`runs/forecast`. What has a row is not trained again. `--all` changes options of the run.
`difference` and `nodes_difference` hold the lead of `sampled` over `state` in lists of 10 items and
of 1 category, with 95 % intervals from a bootstrap over the users.
"""

import argparse
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cases import CASES, Variant, configuration
from family import overrides
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from rows import about_run, append_row, commit, find_row, run_key

from jaxrec.api import enable_compilation_cache
from jaxrec.artifacts.run_directory import DECODER
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, predicted_event_types, prepare
from jaxrec.data.graph_arrays import first_neighbours
from jaxrec.data.packing import ranges
from jaxrec.data.slices import counts_before
from jaxrec.evaluation.baskets import Baskets, basket_recall, distinct, future_baskets
from jaxrec.inference.forecast import ForecastOptions, forecast_weights
from jaxrec.inference.forecast_candidates import Candidates, find_candidates
from jaxrec.inference.loading import load_directory
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import AdjustmentBlocks, mask_adjustments
from jaxrec.ranking.history_bias import history_adjustments
from jaxrec.training.add_forecast import add_forecast
from jaxrec.training.fit import fit
from jaxrec.training.logging import read_log
from jaxrec.types import Queries

RESULTS = Path(__file__).parent.parent / "results" / "forecast.jsonl"
RUNS = Path("runs") / "forecast"
HORIZONS = (1, 5, 10)
LISTS = (10, 100)
NODE_LISTS = (1, 5)  # of categories and the like
SYSTEMS = {"expected": 0, "sampled": 32}  # roll-outs
MOST_QUERIES = 20_000
SAMPLES = 1000  # of the bootstrap
BLOCK = 256  # queries of the baseline at a time

Lists = dict[int, Int[np.ndarray, "Q K"]]  # by horizon


def main() -> None:
    """Train and score what has no row yet, and print a table a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["ml-100k"], choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--all", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--queries", choices=("test", "validation"), default="test")
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    changes = {
        "split.scheme": "global_time",
        "forecast.steps": HORIZONS[-1],
        **overrides(options.all),
    }
    for name in options.cases:
        case = CASES[name]
        data = case.data(options.folder)
        label = " ".join([name, *options.all])
        rows = [
            result(label, configuration(case, data, Variant(changes), seed), options.queries)
            for seed in options.seeds
        ]
        for row in rows:
            Console(width=120).print(figures_table(row))


def result(label: str, config: Config, queries: str) -> dict:
    """The row of a run, from the results file or from training it now."""
    key = run_key(config)
    if row := find_row(RESULTS, key=key, queries=queries):
        return row
    Console().print(f"{label}, seed {config.train.seed}: {key}")
    run, start = RUNS / key, time.perf_counter()
    if not (run / "metrics.json").exists():
        fit(config, run, resume=run.exists())
    elif not (run / DECODER).exists():  # a run that was trained before
        add_forecast(run, config.forecast, source=config.data.source)
    about = about_run(config, read_log(run), start)
    row = {"case": label, "key": key, "queries": queries, **about, **score(run, config, queries)}
    append_row(RESULTS, row)
    return row


def score(run: Path, config: Config, which: str) -> dict:
    """The figures of all systems on the validation or the test period of a run."""
    moments = Moments.of(load_directory(run), prepare(config), which)
    baskets = {h: moments.baskets(h) for h in HORIZONS}
    items, nodes = moments.lists()
    of_nodes = {h: moments.of_nodes(basket) for h, basket in baskets.items()} if nodes else {}
    return {
        "moments": len(moments.queries),
        "users": len(np.unique(moments.queries.users)),
        "steps": config.forecast.steps,
        "decoder_epochs": config.forecast.epochs,
        "items": figures(items, baskets, LISTS),
        "node_type": moments.node_type,
        "nodes": figures(nodes, of_nodes, NODE_LISTS),
        "difference": {
            h: lead(items["sampled"][h], items["state"][h], baskets[h], moments.queries.users)
            for h in HORIZONS
        },
        "nodes_difference": {
            h: lead(nodes["sampled"][h], nodes["state"][h], of_nodes[h], moments.queries.users, 1)
            for h in (HORIZONS if nodes else ())
        },
    }


@dataclass(frozen=True)
class Moments:
    """Moments of users, with what a model says there."""

    model: TrainedModel
    dataset: Dataset
    queries: Queries
    vectors: Float[np.ndarray, "Q F"]
    node_of_item: Int[np.ndarray, " I"] | None  # the category of every item

    @classmethod
    def of(cls, model: TrainedModel, dataset: Dataset, which: str) -> "Moments":
        """The moments of a period; see the head of this file."""
        queries = origins(dataset, which).subsampled(MOST_QUERIES)
        vectors = model.encoder.vectors_at(dataset.split.log, queries)
        names = model.profiled_types
        nodes = first_neighbours(model.catalog.graph, names[0]) if names else None
        return cls(model, dataset, queries, vectors, nodes)

    @property
    def node_type(self) -> str:
        """The first node type that the run predicts, such as category; empty without one."""
        return (*self.model.profiled_types, "")[0]

    @cached_property
    def masked(self) -> AdjustmentBlocks:
        """What the mask of the run leaves out."""
        mask = self.model.config.evaluation.mask
        return mask_adjustments(self.dataset.split.log, self.queries, mask)

    def baskets(self, horizon: int) -> Baskets:
        """The future baskets, without masked items."""
        log, config = self.dataset.split.log, self.model.config
        names = log.event_type_names
        predicted = np.isin(names, predicted_event_types(config, names))
        counted = predicted[log.event_types]
        rows, items = future_baskets(log.items, self.queries.positions, horizon, counted)
        left_out = self.masked(0, len(self.queries))
        size = len(self.model.index.items)
        kept = ~np.isin(rows * size + items, left_out.rows * size + left_out.items)
        return Baskets(rows[kept], items[kept])

    def of_nodes(self, baskets: Baskets) -> Baskets:
        """The categories of baskets."""
        assert self.node_of_item is not None
        nodes = self.node_of_item[baskets.items]
        return distinct(baskets.rows[nodes > 0], nodes[nodes > 0])

    def lists(self) -> tuple[dict[str, Lists], dict[str, Lists]]:
        """The lists of items and of categories of every system, by horizon."""
        model, log, scale = self.model, self.dataset.split.log, self.model.inverse_temperature
        mask, bias = model.config.evaluation.mask, model.ranker.history_bias
        own = bias[model.encoder.target_event_type]
        adjustments = history_adjustments(log, self.queries, mask, own)
        items = find_candidates(model.index.items, scale, self.vectors, adjustments)
        item_lists, node_lists = {"state": every(items.rows[:, : LISTS[-1]])}, {}
        nodes = None
        if self.node_of_item is not None:
            nodes = find_candidates(model.index.table(self.node_type), scale, self.vectors)
            node_lists["state"] = every(nodes.rows[:, : NODE_LISTS[-1]])
            item_lists["category"] = every(self.items_of_last_node())
            node_lists["category"] = every(self.last_node_first())
        for system, samples in SYSTEMS.items():
            weights, moved = self.forecast(items, nodes, samples)
            item_lists[system] = by_horizon(items, weights, LISTS[-1])
            if nodes is not None and moved is not None:
                node_lists[system] = by_horizon(nodes, moved, NODE_LISTS[-1])
        return item_lists, node_lists

    def forecast(
        self, items: Candidates, nodes: Candidates | None, samples: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The shares of candidates at every step."""
        options = ForecastOptions(HORIZONS[-1], samples=samples)
        users = self.dataset.split.log.user_ids.gather(self.queries.users), self.vectors
        given = None if nodes is None else (self.node_type, nodes)
        weights, moved = forecast_weights(self.model, users, items, options, given)
        return weights.mean, None if moved is None else moved.mean

    def last_nodes(self) -> Int[np.ndarray, " Q"]:
        """The category of the last event."""
        assert self.node_of_item is not None
        return self.node_of_item[self.dataset.split.log.items[self.queries.positions - 1]]

    def items_of_last_node(self) -> Int[np.ndarray, "Q K"]:
        """Items of the category of the last event by popularity, then the most popular others."""
        assert self.node_of_item is not None
        counts, last = self.model.index.counts, self.last_nodes()
        lists = np.zeros((len(last), LISTS[-1]), np.int64)
        for start in range(0, len(last), BLOCK):
            own = last[start : start + BLOCK, None]
            scores = counts + (counts.max() + 1) * ((self.node_of_item == own) & (own > 0))
            left_out = self.masked(start, start + len(own))
            scores[left_out.rows, left_out.items] = -1
            scores[:, 0] = -1
            best = np.argsort(-scores, axis=1, kind="stable")[:, : LISTS[-1]]
            is_left = np.take_along_axis(scores, best, 1) >= 0
            lists[start : start + BLOCK] = np.where(is_left, best, 0)
        return lists

    def last_node_first(self) -> Int[np.ndarray, "Q K"]:
        """The category of the last event, then the most popular ones."""
        assert self.node_of_item is not None
        totals = np.bincount(self.node_of_item, self.model.index.counts)
        totals[0] = -1
        scores = np.tile(totals, (len(self.queries), 1))
        last = self.last_nodes()
        scores[np.arange(len(last)), last] += np.where(last > 0, totals.max() + 1, 0)
        return np.argsort(-scores, axis=1, kind="stable")[:, : NODE_LISTS[-1]]


def origins(dataset: Dataset, which: str) -> Queries:
    """Every tenth event of a period that has a history and at least ten events from there on."""
    split, log = dataset.split, dataset.split.log
    test_start = log.times[split.test["every"].positions].min()
    tested = log.offsets[:-1] + np.diff(counts_before(log.times < test_start)[log.offsets])
    first, ends = log.offsets[:-1] + split.train_lengths, tested
    if which == "test":
        first, ends = tested, log.offsets[1:]
    first = np.maximum(first, log.offsets[:-1] + 1)
    counts = np.maximum(ends - first, 0) // HORIZONS[-1]
    users = np.repeat(np.arange(log.num_users), counts)
    return Queries(users, ranges(np.zeros_like(counts), counts) * HORIZONS[-1] + first[users])


def every(lists: Int[np.ndarray, "Q K"]) -> Lists:
    """The same lists for all horizons."""
    return dict.fromkeys(HORIZONS, lists)


def by_horizon(candidates: Candidates, shares: np.ndarray, length: int) -> Lists:
    """The candidates with the largest sum of shares [Q, steps, P] over the steps of a horizon."""
    lists = {}
    for horizon in HORIZONS:
        total = np.where(candidates.rows > 0, shares[:, :horizon].sum(1), -1)
        best = np.argsort(-total, axis=1, kind="stable")[:, :length]
        lists[horizon] = np.take_along_axis(np.asarray(candidates.rows), best, 1)
    return lists


def figures(
    systems: dict[str, Lists], baskets: dict[int, Baskets], lengths: tuple[int, ...]
) -> dict[str, dict[str, list[float]]]:
    """Recall by system and horizon, for each length of list."""
    return {
        system: {
            str(h): [
                round(float(np.nanmean(basket_recall(lists[h][:, :k], baskets[h]))), 5)
                for k in lengths
            ]
            for h in HORIZONS
        }
        for system, lists in systems.items()
    }


def lead(
    lists: np.ndarray, others: np.ndarray, baskets: Baskets, users: np.ndarray, k: int = LISTS[0]
) -> list[float]:
    """The mean lead in recall, and its 95 % interval from a bootstrap over the users."""
    gain = basket_recall(lists[:, :k], baskets) - basket_recall(others[:, :k], baskets)
    known = ~np.isnan(gain)
    _, number = np.unique(users[known], return_inverse=True)
    sums, counts = np.bincount(number, gain[known]), np.bincount(number)
    drawn = np.random.default_rng(0).integers(len(sums), size=(SAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [round(float(value), 5) for value in (gain[known].mean(), low, high)]


def figures_table(row: dict) -> Table:
    """A row of results as a table."""
    leads = ", ".join(
        f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in row["difference"].values()
    )
    title = (
        f"{row['case']}, {row['queries']}: {row['moments']:,} moments of {row['users']:,} users; "
        f"lead of sampled over state in lists of {LISTS[0]} items: {leads}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("recall", *(f"h = {h}" for h in HORIZONS)):
        table.add_column(heading, justify="right" if heading != "recall" else "left")
    for what, lengths, systems in (
        ("items", LISTS, row["items"]),
        (row["node_type"], NODE_LISTS, row["nodes"]),
    ):
        for system, values in systems.items():
            cells = (" / ".join(f"{value:.4f}" for value in values[str(h)]) for h in HORIZONS)
            table.add_row(f"{what}, {' / '.join(map(str, lengths))}: {system}", *cells)
        table.add_section()
    return table


if __name__ == "__main__":
    main()
