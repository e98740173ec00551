"""Ranking quality of the recipes over seeds, beside published figures.

    python benchmarks/quality/quality.py beauty ml-100k --folder path/to/data --seeds 0 1 2
    python benchmarks/quality/quality.py scientific --folder path/to/data --ablation --segments
    python benchmarks/quality/quality.py beauty --folder path/to/data --ablation "ids alone"
    python benchmarks/quality/quality.py taobao --folder path/to/data --event-types --segments
    python benchmarks/quality/quality.py scientific --folder path/to/data --peers
    python benchmarks/quality/quality.py "beauty by time" --folder path/to/data --refit

`--folder` holds the data sets that jaxrec does not download, under the names in `cases.py`. Every
finished run is a row of `benchmarks/results/quality.jsonl` and a directory in `runs/quality`. A
configuration that has a row is not trained again; a run that was stopped is resumed. Models are
selected on validation. Printed is one table a case, in Markdown: a row a variant with NDCG@10 and
recall@10 as means over the seeds, with the standard deviation from three seeds on. `--segments`
adds a table of parts of the queries, and `--peers` one of RecTools' models
(`benchmarks/peers/compare.py`).
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from cases import CASES, Case, Variant, ablations, configuration
from few_users import figures, model_ranks
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rows import (
    BENCHMARKS,
    about_run,
    append_row,
    commit,
    find_row,
    mean_of,
    read_rows,
    run_key,
    scores,
    short,
)

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables
from jaxrec.runtime import cache_dir
from jaxrec.training.fit import fit
from jaxrec.training.logging import read_log
from jaxrec.training.refit import refit

RESULTS = BENCHMARKS / "results" / "quality.jsonl"
PUBLISHED = BENCHMARKS / "results" / "published.jsonl"  # figures of others, with their sources
RUNS = Path("runs") / "quality"
SETS = ("selected", "validation", "test", "test_every")  # of queries, in metrics.json


def main() -> None:
    """Measure NDCG@10 and recall@10 of each case, variant and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["ml-100k"], choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--ablation",
        nargs="*",
        metavar="VARIANT",
        help="leave out parts, one at a time",
    )
    parser.add_argument(
        "--event-types", action="store_true", help="also read only the predicted event type"
    )
    parser.add_argument(
        "--refit", action="store_true", help="also train again on the validation events"
    )
    parser.add_argument("--segments", action="store_true", help="cold items, short histories ...")
    parser.add_argument("--peers", action="store_true", help="train RecTools' models as well")
    parser.add_argument("--epochs", type=int, default=60, help="of a peer at most")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="creates the peers' environments")
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    console = Console(width=200)
    for name in options.cases:
        case = CASES[name]
        data = case.data(options.folder)
        runs = [
            (label, variant, configuration(case, data, variant, seed))
            for label, variant in variants_of(case, data, options).items()
            for seed in options.seeds
        ]
        rows = [result(name, *run) for run in runs]
        if options.refit:
            rows += [refit_result(row, *run[1:]) for row, run in zip(list(rows), runs, strict=True)]
        console.print(quality_table(name, rows))
        if options.segments:
            console.print(segment_table(name, rows))
        if options.peers:
            compare_peers(case, configuration(case, data, Variant(), options.seeds[0]), options)


def variants_of(case: Case, data: str, options: argparse.Namespace) -> dict[str, Variant]:
    """The variants of a case that the command line asks for, by label."""
    variants = {"full": Variant()}
    if options.ablation is not None:
        all_variants = ablations(configuration(case, data, Variant(), 0)) | case.extra
        if unknown := set(options.ablation) - set(all_variants):
            sys.exit(f"--ablation: {unknown} is not among {', '.join(all_variants)}")
        variants |= {name: all_variants[name] for name in options.ablation or all_variants}
    if options.event_types:
        variants[f"{case.event_type} alone"] = Variant(event_type=case.event_type)
    return variants


def compare_peers(case: Case, config: Config, options: argparse.Namespace) -> None:
    """Print how RecTools' models compare with a run."""
    run = RUNS / run_key(config)
    if not (run / "ranks.parquet").exists():
        sys.exit(f"{run} has no ranks.parquet; remove its row from {RESULTS} to train it again")
    command = [sys.executable, str(BENCHMARKS / "peers" / "compare.py"), str(run)]
    command += ["--history", str(case.peer_history), "--epochs", str(options.epochs)]
    command += ["--environments", str(options.environments), "--python", options.python]
    subprocess.run(command, check=True)


def result(case: str, label: str, variant: Variant, config: Config) -> dict:
    """The row of a run, from the results file or from training it now."""
    key = run_key(config, variant.event_type)
    if row := find_row(RESULTS, key=key):
        return row | {"variant": label}
    Console().print(f"{case}, {label}, seed {config.train.seed}: {key}")
    start = time.perf_counter()
    run = RUNS / key
    tables = read_tables(variant, config)
    results = fit(config, run, tables=tables, resume=run.exists())
    row = {
        "case": case,
        "variant": label,
        "key": key,
        **about_run(config, read_log(run), start),
        **{name: scores(results[name]) for name in SETS if name in results},
        "blend": blend_of(results),
        **other_rankings(run, tables),
    }
    append_row(RESULTS, row)
    return row


def other_rankings(run: Path, tables: Tables | None) -> dict:
    """Figures of the same parameters without item neighbours, and without a mask of seen items."""
    model = jaxrec.load(run)
    dataset = prepare(model.config, tables)
    unmasked = replace(model.config, evaluation=replace(model.config.evaluation, mask=("none",)))
    models = {"unmasked": replace(model, config=unmasked)}
    if model.neighbours:
        models["without_neighbours"] = replace(model, neighbours={})
    return {
        name: {part: figures(ranks) for part, ranks in model_ranks(other, dataset).items()}
        for name, other in models.items()
    }


def blend_of(results: dict) -> dict:
    """What the best baseline adds to the model: its name, its weight, and figures of both."""
    fitted = results["baselines"]["blend"]
    tests = {name: scores(results[name]["blend"]) for name in SETS[2:] if name in results}
    chosen = {name: fitted[name] for name in ("baseline", "weight")}
    return {**chosen, "validation": scores(fitted["validation"]), **tests}


def refit_result(first: dict, variant: Variant, config: Config) -> dict:
    """The row of a run that is trained again on its training and validation events."""
    key = f"{first['key']} refit"
    if row := find_row(RESULTS, key=key):
        return row
    run, start = RUNS / first["key"], time.perf_counter()
    if not run.exists():
        sys.exit(f"{run} is gone; remove its row from {RESULTS} to train it again")
    results = refit(config, run, tables=read_tables(variant, config), events="validation")
    row = {
        "case": first["case"],
        "variant": f"{first['variant']}, refit on validation",
        "key": key,
        **about_run(config, [], start),
        "epochs": results["selected"]["epoch"],
        "validation": first["validation"],  # which chose the number of epochs
        **{name: scores(results["refit"][name]) for name in SETS if name in results["refit"]},
    }
    append_row(RESULTS, row)
    return row


def read_tables(variant: Variant, config: Config) -> Tables | None:
    """The tables with only the event type that a variant reads; None if it reads all types."""
    if not variant.event_type:
        return None
    data = config.data
    tables = load_source(data.source, data.layout, time=data.time, strict=data.strict)
    return replace(tables, events=tables.events.filter(pl.col("event") == variant.event_type))


def by_variant(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of every variant, in the order of the variants."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [row for row in rows if row["variant"] == name] for name in names}


def quality_table(case: str, rows: list[dict]) -> Table:
    """A row for every variant, then the published figures."""
    by_time = "test_every" in rows[0]
    title = f"{case}: test figures, selected on validation"
    table = Table(title=title, title_justify="left", box=MARKDOWN)
    table.add_column("")
    shown = [("validation", "ndcg@10"), ("test", "ndcg@10"), ("test", "recall@10")]
    columns = ["validation N@10", "N@10", "R@10"]
    if by_time:
        shown.append(("test_every", "ndcg@10"))
        columns.append("N@10 of all events")
    for heading in (*columns, "epochs", "minutes", "seeds"):
        table.add_column(heading, justify="right")
    for variant, seeds in by_variant(rows).items():
        table.add_row(
            variant,
            *(mean_of(seeds, lambda row, q=q, m=m: row[q][m]) for q, m in shown),
            f"{np.mean([row['epochs'] for row in seeds]):.0f}",
            f"{np.mean([row['minutes'] for row in seeds]):.1f}",
            str(len(seeds)),
        )
    for row in read_rows(PUBLISHED):
        if row["case"] == case:
            names = ["ndcg@10", "recall@10", "ndcg@10 of every event"][: len(columns) - 1]
            cells = [short(row[name]) if name in row else "" for name in names]
            table.add_row(f"{row['system']} ({row['reads']})", "", *cells)
    return table


def segment_table(case: str, rows: list[dict]) -> Table:
    """NDCG@10 and recall@10 of parts of the queries, a column for every variant."""
    variants = by_variant(rows)
    queries = "test_every" if "test_every" in rows[0] else "test"
    title = f"{case}: NDCG@10 / recall@10 of parts of {queries}"
    table = Table(title=title, title_justify="left", box=MARKDOWN)
    for heading in ("", "count", *variants):
        table.add_column(heading, justify="right" if heading else "left")
    for segment, (count, *_) in rows[0][queries]["segments"].items():
        cells = []
        for seeds in variants.values():  # a refit has none
            entries = [row[queries].get("segments", {}).get(segment) for row in seeds]
            values = np.array([entry[1:] for entry in entries if entry])
            cells.append(" / ".join(map(short, values.mean(0))) if len(values) else "")
        table.add_row(segment, f"{count:,}", *cells)
    return table


if __name__ == "__main__":
    main()
