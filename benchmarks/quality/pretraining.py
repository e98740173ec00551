"""What pre-training brings over none, when all users of a data set train or only some of them.

    python benchmarks/quality/pretraining.py scientific --folder path/to/data \\
        --shares 1 0.1 0.01 --seeds 0 1 2 --all model.experts=[id+graph+text]

Ways to train:

    none                            the recipe
    links                           link prediction (`train.link_weight`) alone, and then the
                                    recipe, which begins with that run
    masked                          the same with masked items (`train.masked_item_weight`)
    links beside                    link prediction beside the next item, with a weight of 0.1
    masked beside                   the same with masked items
    contrast, graph, tokens,        `jaxrec pretrain` with this task alone, and then the recipe,
    behaviour                       which reads texts by the new encoder

A share draws that part of the users; all items stay. All test users are ranked, each after all
earlier events, whatever share has trained. `cold` figures are of test targets without a training
event, `rare` ones of those with 1 to 5. `minutes` are those of the last training, and
`minutes_before` those of what came before it. Every result is a row of
`benchmarks/results/pretraining.jsonl`, and what has a row is not measured again.
"""

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from cases import CASES
from family import FIGURES, at, overrides
from few_users import (
    FilteredCase,
    figures,
    fit_or_resume,
    model_ranks,
    of_users,
    queries_of,
    some_users,
)
from rich.box import MARKDOWN
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rows import BENCHMARKS, about_run, append_row, commit, find_row, mean_of, minutes_of

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import Tables
from jaxrec.errors import DataError
from jaxrec.training.pretraining.loop import pretrain
from jaxrec.training.pretraining.options import PretrainOptions, TaskWeights

RESULTS = BENCHMARKS / "results" / "pretraining.jsonl"
RUNS = Path("runs") / "pretraining"
RARE = 5  # training events at most
WEIGHTS = {"links": "train.link_weight", "masked": "train.masked_item_weight"}
# a run on masked items alone has trained no sequence encoder
PARTS = {"links": ("text", "graph", "sequence", "ids"), "masked": ("text", "graph", "ids")}
TEXT_TASKS = ("contrast", "graph", "tokens", "behaviour")
WAYS = ("none", *WEIGHTS, *(f"{task} beside" for task in WEIGHTS), *TEXT_TASKS)


def main() -> None:
    """Measure what has no row yet, and print a table for each share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--all", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0], help="of the users")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    study = Study(options)
    for share in options.shares:
        rows = [study.row(way, share, seed) for way in options.ways for seed in options.seeds]
        title = f"{study.name}: {rows[0]['users']:,} users train"
        Console(width=200).print(ways_table(title, rows))


class Study(FilteredCase):
    """A case with options."""

    def __init__(self, options: argparse.Namespace):
        super().__init__(options.case, options.folder, overrides(options.all))
        self.name = " ".join([options.case, *options.all])

    def row(self, way: str, share: float, seed: int) -> dict:
        """The row of a result, from the file or measured now."""
        key = [self.name, way, share, seed]
        if row := find_row(RESULTS, key=key):
            return row
        Console().print(f"{self.name}: {way}, {share:.0%} of the users, seed {seed}", markup=False)
        users = some_users(self.tables, share, seed)
        tables = of_users(self.tables, users)
        place = RUNS / re.sub(r"[^\w.]+", "-", f"{self.name} {share} {seed}")
        config, before = self.prepared(way, tables, place, seed)
        run, start = place / way.replace(" ", "-"), time.perf_counter()
        about = about_run(config, fit_or_resume(config, run, tables), start)
        row = {
            "key": key,
            "way": way,
            "share": share,
            "users": len(users),
            **about,
            "minutes_before": before,
            **self.scores(run, tables, config),
        }
        append_row(RESULTS, row)
        return row

    def prepared(self, way: str, tables: Tables, place: Path, seed: int) -> tuple[Config, float]:
        """The options of the last training, and the minutes of what comes before it."""
        task, _, beside = way.partition(" ")
        if way == "none":
            return self.config({}, seed), 0.0
        if beside:
            return self.config({WEIGHTS[task]: 0.1}, seed), 0.0
        first = place / f"{task}-alone"
        if task in TEXT_TASKS:
            changes, minutes = self.trained_encoder(task, tables, first, seed)
            return self.config(changes, seed), minutes
        alone = {"train.next_item_weight": 0.0, "train.auxiliary_weight": 0.0, WEIGHTS[task]: 1.0}
        log = fit_or_resume(self.config(alone, seed), first, tables)
        config = self.config({}, seed)
        train = replace(config.train, init=str(first), init_parts=PARTS[task])
        return replace(config, train=train), minutes_of(log)

    def trained_encoder(
        self, task: str, tables: Tables, out: Path, seed: int
    ) -> tuple[dict[str, str], float]:
        """The option that reads texts by the default encoder after one task on these tables, and
        the minutes of that task."""
        cost = out.with_suffix(".minutes")  # written last, so that an interrupted task goes on
        if not cost.exists():
            start = time.perf_counter()
            weights = TaskWeights(**{name: float(name == task) for name in TEXT_TASKS})
            try:
                options = PretrainOptions(tasks=weights, seed=seed)
                pretrain(self.config({}, seed), options, out, tables=tables)
            except DataError as error:  # too few texts or histories
                Console().print(f"{error}; the encoder stays as it was", markup=False)
                return {}, 0.0
            cost.write_text(f"{(time.perf_counter() - start) / 60:.1f}")
        return {"text.pretrained": str(out)}, float(cost.read_text())

    def scores(self, run: Path, tables: Tables, config: Config) -> dict:
        """The figures of all queries, and of test targets with few training events."""
        own = prepare(config, tables)
        ranks = model_ranks(jaxrec.load(run), self.dataset)
        log = own.split.log
        counts = np.bincount(
            log.items[own.split.in_training], minlength=own.catalog.graph.types[0].padded_size
        )
        test = queries_of(self.dataset)["test"]
        events = counts[self.dataset.split.log.items[test.positions]]
        segments = {"cold": events == 0, "rare": (events > 0) & (events <= RARE)}
        return {
            **{part: figures(values) for part, values in ranks.items()},
            **{
                name: figures(ranks["test"][chosen]) | {"targets": int(chosen.sum())}
                for name, chosen in segments.items()
                if chosen.any()
            },
        }


def ways_table(title: str, rows: list[dict]) -> Table:
    """A line for every way to train, as means over the seeds."""
    table = Table(title=escape(title), title_justify="left", box=MARKDOWN)
    headings = ["", "validation N@10", "test N@10", "R@10", "cold N@10", "R@10"]
    headings += ["rare N@10", "R@10", "minutes before", "minutes", "seeds"]
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    places = [("validation", "ndcg@10")]
    places += [(part, name) for part in ("test", "cold", "rare") for name in FIGURES]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        cells = [
            mean_of(own, at(place)) if all(place[0] in row for row in own) else ""
            for place in places
        ]
        minutes = [f"{np.mean([row[n] for row in own]):.1f}" for n in ("minutes_before", "minutes")]
        table.add_row(way, *cells, *minutes, str(len(own)))
    return table


if __name__ == "__main__":
    main()
