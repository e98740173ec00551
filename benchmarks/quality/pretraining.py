"""Link prediction or masked items beside the next item or before it, on all users or some of them.

    python benchmarks/quality/pretraining.py scientific --folder path/to/data --share 0.1 \\
        --seeds 0 1 2 --task links --all model.experts=[id+graph+text]

Trainings for each seed: the recipe; the task beside the next item with some weights; and the task
alone, from which a training of the recipe then begins (`train.init`).
`--share` takes that share of the users, with all their events, and keeps all items: a small shop
with a large catalogue. Rows and runs are kept as those of `family.py`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from cases import CASES, Variant, configuration
from family import RUNS, family_table, overrides, result
from rich.console import Console
from rows import commit, run_key

from jaxrec.api import enable_compilation_cache

TASKS = {"links": "train.link_weight", "masked items": "train.masked_item_weight"}
# of a run on masked items alone, whose sequence encoder has learned nothing
PARTS = {"links": ("text", "graph", "sequence", "ids"), "masked items": ("text", "graph", "ids")}


def main() -> None:
    """Train what has no row yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--all", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--share", type=float, default=1.0, help="of the users")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--task", choices=TASKS, default="links")
    parser.add_argument("--weights", type=float, nargs="*", default=[0.1, 0.5], help="beside")
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    source = options.folder / CASES[options.case].source
    data = str(source if options.share == 1 else with_share(source, options.share))
    case = " ".join([options.case, f"{options.share:.0%} of the users", *options.all])
    rows, task, weight = [], options.task, TASKS[options.task]
    beside = {f"{task}, weight {amount}": {weight: amount} for amount in options.weights}
    alone = {"train.next_item_weight": 0.0, "train.auxiliary_weight": 0.0, weight: 1.0}
    for seed in options.seeds:
        for label, changes in {"recipe": {}, **beside, f"{task} alone": alone}.items():
            variant = Variant({**overrides(options.all), **changes})
            config = configuration(CASES[options.case], data, variant, seed)
            rows.append(result(case, label, config))
        first = str(RUNS / run_key(config))
        variant = Variant(overrides(options.all))
        config = configuration(CASES[options.case], data, variant, seed)
        train = replace(config.train, init=first, init_parts=PARTS[task])
        config = replace(config, train=train)
        rows.append(result(case, f"{task}, then the recipe", config))
    Console(width=200).print(family_table(case, rows))


def with_share(source: Path, share: float) -> Path:
    """A copy of a directory of tables with the events of some users."""
    target = Path("runs") / "pretraining" / f"{source.name}-{share}"
    target.mkdir(parents=True, exist_ok=True)
    items = pl.read_parquet(source / "items.parquet")
    events = pl.read_parquet(source / "events.parquet")
    users = events["user_id"].unique(maintain_order=True)
    kept = np.random.default_rng(0).permutation(len(users))[: round(share * len(users))]
    chosen = users.gather(kept).implode()
    events.filter(pl.col("user_id").is_in(chosen)).write_parquet(target / "events.parquet")
    items.write_parquet(target / "items.parquet")
    return target


if __name__ == "__main__":
    main()
