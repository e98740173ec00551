"""The baselines of the recipes, without training: figures, chosen hyperparameters and seconds.

    python benchmarks/quality/baselines.py beauty ml-100k ml-1m --folder path/to/data

`--folder` as in `quality.py`. Every case is a row of `benchmarks/results/baselines.jsonl`, and what
has a row is not measured again. Every training run prints the same figures beside its model.
"""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path

from cases import CASES, Variant, configuration
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rows import BENCHMARKS, append_row, commit, find_row, run_key, scores, short

from jaxrec.config import Config, EvaluationConfig
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.evaluation.baselines import popularity
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.tuned_baselines import fit_baselines
from jaxrec.training.evaluator import test_sets

RESULTS = BENCHMARKS / "results" / "baselines.jsonl"
SETS = ("validation", "test", "test_every")  # of queries


def main() -> None:
    """Measure what has no row yet, and print a table of each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["ml-100k"], choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    options = parser.parse_args()
    commit()
    for name in options.cases:
        case = CASES[name]
        row = row_of(name, configuration(case, case.data(options.folder), Variant(), 0))
        Console(width=200).print(baselines_table(row))


def protocol_of(dataset: Dataset, config: EvaluationConfig) -> Protocol:
    """What the baselines learn from, as in a training."""
    split, valid = dataset.split, dataset.catalog.graph.types[0].valid
    counts = popularity(split.log.items[split.in_training & dataset.positives], len(valid))
    return Protocol(split, config, valid, dataset.positives, counts)


def row_of(case: str, config: Config) -> dict:
    """The row of a case, from the results file or from fitting the baselines now."""
    key = run_key(config)
    if row := find_row(RESULTS, key=key):
        return row
    dataset, start = prepare(config, None, None), time.perf_counter()
    protocol = protocol_of(dataset, config.evaluation)
    baselines = fit_baselines(protocol)
    seconds = round(time.perf_counter() - start, 1)
    systems = {
        name: baselines.report()[name]
        | {
            part: protocol.evaluate(protocol.scorer(baseline)(queries), queries)
            for part, queries in test_sets(dataset.split).items()
        }
        for name, baseline in baselines.fitted.items()
    }
    row = {
        "case": case,
        "key": key,
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": seconds,
        "left_out": baselines.left_out,
        "systems": {name: shortened(system) for name, system in systems.items()},
    }
    append_row(RESULTS, row)
    return row


def shortened(system: dict) -> dict:
    """The hyperparameters of a baseline, and NDCG@10 and recall@10 on every set of queries."""
    return {
        name: value if name == "hyperparameters" else scores(value)
        for name, value in system.items()
    }


def baselines_table(row: dict) -> Table:
    """A line for every baseline."""
    title = f"{row['case']}: NDCG@10 / recall@10; {row['seconds']} s to fit and choose"
    table = Table(title=title, title_justify="left", box=MARKDOWN)
    parts = [part for part in SETS if part in row["systems"]["popularity"]]
    for heading in ("", *parts, "hyperparameters"):
        table.add_column(heading)
    for name, system in row["systems"].items():
        cells = [" / ".join(map(short, system[part].values())) for part in parts]
        chosen = (f"{option} {value}" for option, value in system["hyperparameters"].items())
        table.add_row(name, *cells, ", ".join(chosen))
    for name, reason in row["left_out"].items():
        table.add_row(name, *("" for _ in parts), reason)
    return table


if __name__ == "__main__":
    main()
