"""The baselines of the recipes, without training: figures, chosen hyperparameters and seconds.

    python benchmarks/quality/baselines.py beauty ml-100k ml-1m --folder path/to/data

`--folder` as in `quality.py`. Every training run prints the same figures beside its model.
"""

import argparse
import time
from pathlib import Path

from cases import CASES, Variant, configuration
from rich.console import Console
from rich.table import Table

from jaxrec.config import Config, EvaluationConfig
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.evaluation.baselines import popularity
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.tables import baseline_lines
from jaxrec.evaluation.tuned_baselines import fit_baselines


def main() -> None:
    """Print a table of each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["ml-100k"], choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    options = parser.parse_args()
    console = Console(width=120)
    for name in options.cases:
        case = CASES[name]
        data = case.data(options.folder)
        measure(name, configuration(case, data, Variant(), 0), console)


def protocol_of(dataset: Dataset, config: EvaluationConfig) -> Protocol:
    """What the baselines learn from, as in a training."""
    split, valid = dataset.split, dataset.catalog.graph.types[0].valid
    counts = popularity(split.log.items[split.in_training & dataset.positives], len(valid))
    return Protocol(split, config, valid, dataset.positives, counts)


def measure(case: str, config: Config, console: Console) -> None:
    """Fit the baselines of a case and print their figures."""
    dataset = prepare(config, None, None)
    split, protocol = dataset.split, protocol_of(dataset, config.evaluation)
    start = time.perf_counter()
    baselines = fit_baselines(protocol)
    fitted = time.perf_counter() - start
    columns = {"validation": split.validation, **split.test}
    table = Table(title=f"{case}: NDCG@10 / recall@10", title_justify="left")
    for heading in ("", *columns):
        table.add_column(heading)
    start = time.perf_counter()
    for name, baseline in baselines.fitted.items():
        cells = [baselines.validation[name]]
        scorer = protocol.scorer(baseline)
        cells += [protocol.evaluate(scorer(queries), queries) for queries in split.test.values()]
        table.add_row(name, *(f"{row['ndcg@10']:.4f} / {row['recall@10']:.4f}" for row in cells))
    console.print(table)
    for line in baseline_lines(baselines.report()):
        console.print(line)
    ranked = time.perf_counter() - start
    console.print(f"{fitted:.1f} s to fit and choose, {ranked:.1f} s to rank the test events\n")


if __name__ == "__main__":
    main()
