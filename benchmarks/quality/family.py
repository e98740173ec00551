"""Members of the model family on one data set: quality, size and speed of each.

    python benchmarks/quality/family.py ml-100k --seeds 0 1 2 \\
        --variants "model.graph_layer=sage model.aggregate=max" model.context=replace
    python benchmarks/quality/family.py scientific --folder path/to/data --all train.epochs=6

A variant is one text of options, `SECTION.OPTION=VALUE` with spaces between them and values in
YAML. The recipe without changes comes first. `--all` changes every variant. Scores are those of the
model alone, without item neighbours. `--folder` holds the data sets that jaxrec does not download,
under the names in `cases.py`.

Every finished run is a row of `benchmarks/results/family.jsonl` and a directory in `runs/family`.
What has a row is not trained again, whatever options later versions add: remove the row to do so. A
run that was stopped is resumed. Models are selected on validation. Each set of queries has NDCG@10,
recall@10 and, for targets without an event in training (cold), their number and both figures.
`events_per_second` is the median over the epochs without the first, which compiles; it means
something on an idle machine only.
"""

import argparse
import time
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from cases import ALONE, CASES, Variant, configuration
from rich.box import MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rows import about_run, append_row, commit, find_row, mean_of, run_key, scores

from jaxrec.api import enable_compilation_cache
from jaxrec.artifacts.run_directory import read_artifacts
from jaxrec.config import Config
from jaxrec.errors import ConfigError
from jaxrec.inference.loading import abstract_model
from jaxrec.training.fit import fit
from jaxrec.training.logging import read_log

RESULTS = Path(__file__).parent.parent / "results" / "family.jsonl"
RUNS = Path("runs") / "family"
COLD = "items: cold"
FIGURES = ("ndcg@10", "recall@10")
SIZES = ("parameters", "events_per_second", "epochs")


def main() -> None:
    """Train what has no row yet, and print the table of a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--variants", nargs="*", default=[], metavar="'OPTION=VALUE ...'")
    parser.add_argument("--all", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    case = " ".join([options.case, *options.all])
    configs = configurations(options)  # all of them, so that an error comes before any training
    rows = [result(case, label, config) for label, config in configs]
    Console(width=200).print(family_table(case, rows))


def configurations(options: argparse.Namespace) -> list[tuple[str, Config]]:
    """The configuration of every variant and seed, with the label of the variant."""
    case, common = CASES[options.case], overrides(options.all)
    data = case.data(options.folder)
    variants = {"recipe": {}, **{text: overrides(text.split()) for text in options.variants}}
    return [
        (label, configuration(case, data, Variant({**ALONE, **common, **changes}), seed))
        for label, changes in variants.items()
        for seed in options.seeds
    ]


def overrides(texts: list[str]) -> dict[str, Any]:
    """Options by name, of texts such as `model.aggregate=max`."""
    parts = [text.partition("=") for text in texts]
    for name, sign, _ in parts:
        if not sign:
            raise ConfigError(f"{name!r}: write OPTION=VALUE, such as model.aggregate=max")
    return {name: yaml.safe_load(value) for name, _, value in parts}


def result(case: str, label: str, config: Config) -> dict:
    """The row of a run, from the results file or from training it now.

    Args:
        case: the name of the case and what changes all variants.
    """
    key = run_key(config)
    if row := find_row(RESULTS, key=key):
        return row | {"variant": label}
    print(f"{case}, {label}, seed {config.train.seed}: {key}")
    run, start = RUNS / key, time.perf_counter()
    results = fit(config, run, resume=run.exists())
    log = read_log(run)
    row = {
        "case": case,
        "variant": label,
        "key": key,
        **about_run(config, log, start),
        "device": jax.devices()[0].device_kind,
        "parameters": num_parameters(config, run),
        "events_per_second": events_per_second(log),
        **{
            name: with_cold(scores(results[name]))
            for name in ("validation", "test", "test_every")
            if name in results
        },
    }
    append_row(RESULTS, row)
    return row


def with_cold(figures: dict) -> dict:
    """Figures of a set of queries; of its segments only the targets without training events."""
    segments = figures.pop("segments", {})
    return figures | ({"cold": segments[COLD]} if COLD in segments else {})


def num_parameters(config: Config, run: Path) -> int:
    """Numbers that training changes, tables with their padding included."""
    _, shapes = abstract_model(config, read_artifacts(run))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def events_per_second(log: list[dict]) -> int:
    """The median over the epochs without the first, where there is more than one."""
    by_epoch = {row["epoch"]: row["events_per_second"] for row in log if "events_per_second" in row}
    speeds = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    return round(float(np.median(speeds[1:] or speeds)))


def at(place: tuple) -> Callable[[dict], float]:
    """Reads a row at a path of keys."""
    return lambda row: reduce(getitem, place, row)


def family_table(case: str, rows: list[dict]) -> Table:
    """A row for every variant, as means over the seeds."""
    table = Table(
        title=f"{escape(case)}: selected on validation", title_justify="left", box=MARKDOWN
    )
    last = "test_every" if "test_every" in rows[0] else "test"
    headings = ["", "validation N@10", "R@10", "test N@10", "R@10", "cold N@10", "cold R@10"]
    for heading in (*headings, "parameters", "events/s", "epochs", "minutes", "seeds"):
        table.add_column(heading, justify="right" if heading else "left")

    for label in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == label]
        places = [(name, figure) for name in ("validation", "test") for figure in FIGURES]
        if "cold" in own[0][last]:
            places += [(last, "cold", 1), (last, "cold", 2)]
        figures = [mean_of(own, at(place)) for place in places]
        figures += [""] * (6 - len(figures))
        cells = [f"{np.mean([row[name] for row in own]):,.0f}" for name in SIZES]
        minutes = f"{np.mean([row['minutes'] for row in own]):.1f}"
        table.add_row(escape(label), *figures, *cells, minutes, str(len(own)))
    return table


if __name__ == "__main__":
    main()
