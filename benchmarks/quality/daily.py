"""A shop day after day: a frozen model, a daily warm start, and daily training from scratch.

    python benchmarks/quality/daily.py online_retail --data path/to/online_retail.parquet
    python benchmarks/quality/daily.py ml-1m --days 14 --hidden-size 64 --epochs 9

The data are cut at the start of the last `--days` + 1 active days. A first run is trained on what
came before, and refitted on all of it. On each day, every strategy first ranks the events of the
day, which no model has seen; then it may learn from them: `warm` goes on from its model of the day
before (`jaxrec train --from`, with a refit), `scratch` trains on everything again. Each day and
strategy is a row of `benchmarks/results/daily.jsonl`: NDCG@10 of the day, minutes of the training
behind the model, and drift, the mean cosine between the vectors of the same items in this model and
in the one of the day before. A simulation that was stopped goes on; finished rows are not written
again.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rows import about_run, append_row, commit, find_row

import jaxrec
from jaxrec.api import configure
from jaxrec.config import Config, to_yaml
from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables
from jaxrec.evaluation import metrics
from jaxrec.inference.comparison import held_out_ranks, queries_after
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.training.logging import read_log

RESULTS = Path(__file__).parent.parent / "results" / "daily.jsonl"
STRATEGIES = ("frozen", "warm", "scratch")
DAY = 86_400_000  # milliseconds
RECIPES = {"online_retail": "online_retail", "ml-1m": "ml1m"}


def main() -> None:
    """Simulate the days and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=RECIPES)
    parser.add_argument("--data", help="path of the data, by default the name of the case")
    parser.add_argument("--days", type=int, default=14, help="daily updates")
    parser.add_argument("--hidden-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6, help="most epochs from scratch")
    parser.add_argument("--experts", nargs="+", default=["id+graph"])
    parser.add_argument("--warm-epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5e-4, help="peak rate of the warm start")
    parser.add_argument("--replay", type=float, default=0.5)
    parser.add_argument("--newest", type=int, default=0, help="use only so many newest events")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "daily")
    options = parser.parse_args()
    commit()
    tables = load_source(options.data or options.case)
    if options.newest:
        kept = tables.events.sort("timestamp").tail(options.newest)
        tables = Tables(kept, tables.items, tables.triples, tables.notes)
    simulations = (simulate(name, tables, options) for name in options.strategies)
    # a day of every strategy after the other, so that a stopped simulation compares them too
    rows = [row for day in zip(*simulations, strict=True) for row in day]
    Console().print(summary(rows))


def settings(options: argparse.Namespace) -> dict:
    """The options that a row depends on."""
    names = ("case", "days", "hidden_size", "epochs", "experts", "newest")
    chosen = {name: getattr(options, name) for name in names}
    return chosen | {"warm": [options.warm_epochs, options.rate, options.replay]}


def configuration(options: argparse.Namespace) -> Config:
    """The recipe of a case in the size of the simulation."""
    overrides = {
        "model.experts": options.experts,
        "model.hidden_size": options.hidden_size,
        "train.epochs": options.epochs,
        "train.refit": "all",
        "split.scheme": "global_time",
        "warm_start.epochs": options.warm_epochs,
        "warm_start.learning_rate": options.rate,
        "warm_start.replay": options.replay,
    }
    return configure(RECIPES[options.case], overrides=overrides)


def last_days(events: pl.DataFrame, count: int) -> list[int]:
    """The starts of the last `count` days with at least half the median number of events (ms)."""
    sizes = events.group_by(day=pl.col("timestamp") // DAY).len().sort("day")
    active = sizes.filter(pl.col("len") >= pl.col("len").tail(4 * count).median() / 2)
    return [day * DAY for day in active["day"].tail(count)]


def simulate(strategy: str, tables: Tables, options: argparse.Namespace) -> Iterator[dict]:
    """The rows of a strategy, one a day; those of earlier calls are kept."""
    setting, config = settings(options), configuration(options)
    key = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:8]
    root = options.runs / f"{options.case}-{key}"
    starts = last_days(tables.events, options.days + 1)
    ends = [*starts[1:], int(tables.events["timestamp"].max()) + 1]
    before = None
    run, minutes = train(root / "first", before_time(tables, starts[0]), config)
    for day, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if day and strategy != "frozen":
            base = run if strategy == "warm" else None
            past = before_time(tables, start)
            run, minutes = train(root / f"{strategy}-{day}", past, config, base)
        model = jaxrec.load(run)
        row = {
            "case": options.case,
            "strategy": strategy,
            "day": day,
            "simulated": datetime.fromtimestamp(start / 1000, UTC).date().isoformat(),
            **measured(model, before_time(tables, end), start),
            **about_run(config, read_log(run), time.perf_counter()),
            "minutes": round(minutes, 2),
            "drift": None if before is None else round(drift(before, model), 4),
            "settings": setting,
        }
        write(row)
        yield row
        before = model


def before_time(tables: Tables, end: int) -> Tables:
    """What a shop knew at a moment: earlier events, and the items that had one."""
    events = tables.events.filter(pl.col("timestamp") < end)
    items = tables.items.join(events, on="item_id", how="semi", maintain_order="left")
    triples = tables.triples
    if triples is not None:
        known = items["item_id"].implode()
        triples = triples.filter(
            (pl.col(f"{side}_type") != "item") | pl.col(side).is_in(known)
            for side in ("head", "tail")
        )
    return Tables(events, items, triples, tables.notes)


def train(
    run: Path, tables: Tables, config: Config, base: Path | None = None
) -> tuple[Path, float]:
    """A run and its minutes; a finished run is not trained again, an unfinished one is."""
    note = run / "minutes.json"
    if not note.exists():
        shutil.rmtree(run, ignore_errors=True)  # of a simulation that was stopped
        begin = time.perf_counter()
        if base is not None:
            jaxrec.fit(data=tables, run=run, base=base)
        else:
            recipe = run.parent / "recipe.yaml"
            recipe.parent.mkdir(parents=True, exist_ok=True)
            recipe.write_text(to_yaml(config))
            jaxrec.fit(recipe, data=tables, run=run)
        note.write_text(json.dumps((time.perf_counter() - begin) / 60))
    return run, json.loads(note.read_text())


def measured(model: TrainedModel, tables: Tables, start: int) -> dict:
    """NDCG@10 of the events of a day; an item that the model does not know counts as missed."""
    known = pl.col("event").is_in(model.encoder.event_type_names)
    log = model.encoder.validated_log(tables.events.filter(known))
    queries = queries_after(model, log, start // 1000 - 1)
    ranks = held_out_ranks(model, log, queries, model.config.evaluation.mask)
    return {"events": len(queries), "ndcg@10": round(float(metrics.ndcg(ranks, 10).mean()), 5)}


def drift(earlier: TrainedModel, later: TrainedModel) -> float:
    """Mean cosine between the vectors of the items that both models know."""
    ids = later.catalog.items.select("item_id").with_row_index("new").drop_nulls()
    pairs = ids.join(earlier.catalog.items.select("item_id").with_row_index("old"), on="item_id")
    old = earlier.index.unit_vectors("item", pairs["old"].to_numpy())
    new = later.index.unit_vectors("item", pairs["new"].to_numpy())
    return float((old * new).sum(1).mean())


def write(row: dict) -> None:
    """Add a row to the results unless it is there."""
    if not find_row(RESULTS, **{name: row[name] for name in ("strategy", "day", "settings")}):
        append_row(RESULTS, row)


def summary(rows: list[dict]) -> Table:
    """NDCG@10 weighted by events, minutes of an update, and drift of each strategy."""
    table = Table("strategy", "days", "events", "N@10", "minutes a day", "cosine a day")
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy and row["day"]]
        if not own:
            continue
        events = np.array([row["events"] for row in own])
        score = np.average([row["ndcg@10"] for row in own], weights=events)
        minutes = 0 if strategy == "frozen" else np.mean([row["minutes"] for row in own])
        cosine = np.mean([row["drift"] for row in own])
        cells = (f"{len(own)}", f"{events.sum():,}", f"{score:.4f}", f"{minutes:.2f}")
        table.add_row(strategy, *cells, f"{cosine:.3f}")
    return table


if __name__ == "__main__":
    main()
