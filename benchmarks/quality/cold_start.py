"""Cold start: users with few events, and items with few or none.

    python benchmarks/quality/cold_start.py path/to/run --data path/to/data

The test targets of a run are ranked again as if their users had begun only some events earlier:
everything before is forgotten, by the model and by the baselines. A second table has the targets
by the number of training events of the item, with whole histories. `text` ranks by the cosine with
the mean text vector of the user's items. The baselines are those of every run, with the
hyperparameters that validation chose for whole histories. Every line is a row of
`benchmarks/results/cold_start.jsonl`; `minutes` are those of the ranking.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from baselines import protocol_of
from few_users import figures
from rich.console import Console
from rich.table import Table
from rows import about_run, append_row, commit

import jaxrec
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.evaluation.baselines import Histories, Scorer
from jaxrec.evaluation.protocol import segment_masks
from jaxrec.evaluation.tuned_baselines import fit_baselines
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.comparison import held_out_ranks
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.types import EventLog, Queries

RESULTS = Path(__file__).parent.parent / "results" / "cold_start.jsonl"
Tables = dict[str, dict[str, dict[str, np.ndarray]]]
BASELINES = ("popularity", "cooccurrence", "ease")


def main() -> None:
    """Rank the test targets after few events, and print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="where the data are now, if they have moved")
    parser.add_argument("--name", help="of the data in the rows; by default that of the run")
    parser.add_argument("--events", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    options = parser.parse_args()
    commit()
    start = time.perf_counter()
    model = jaxrec.load(options.run, selected=True)
    config = model.config
    if options.data:
        config = replace(config, data=replace(config.data, source=options.data))
    dataset = prepare(config)
    assert model.catalog.item_ids.equals(dataset.catalog.item_ids)
    tables = cold_start(model, dataset, options.events)
    name = options.name or options.run.name
    about = {"run": name, **about_run(config, [], start)}
    for title, rows in tables.items():
        print_table(f"{name}: {title}", rows)
        for line, methods in rows.items():
            shown = {method: figures(values) for method, values in methods.items()}
            append_row(RESULTS, {**about, "part": title, "name": line, **shown})


def cold_start(model: TrainedModel, dataset: Dataset, counts: Sequence[int]) -> Tables:
    """Ranks of the test targets: title of the table, line, and method.

    Args:
        counts: the numbers of events that users begin with.
    """
    protocol = protocol_of(dataset, model.config.evaluation)
    fitted = fit_baselines(protocol).fitted
    baselines = {name: fitted[name] for name in BASELINES if name in fitted}
    baselines["text"] = text_baseline(model)
    queries = dataset.split.test["last"]

    def ranks(count: int | None) -> dict[str, np.ndarray]:
        log, kept, shown = last_events(dataset.split.log, queries, count)
        split = replace(dataset.split, log=log)
        part = replace(protocol, split=split, positives=protocol.positives[kept])
        own = {"model": held_out_ranks(model, log, shown, model.config.evaluation.mask)}
        for name, baseline in baselines.items():
            own[name] = part.rank(part.scorer(baseline)(shown), shown).ranks
        return own

    whole = ranks(None)
    segments = segment_masks(dataset.split.log, queries, protocol.positives, protocol.counts)
    targets = {
        f"{name} ({mask.sum():,})": {method: values[mask] for method, values in whole.items()}
        for name, mask in segments.items()
        if name.startswith("items") and mask.any()
    }
    users = {f"last {count}": ranks(count) for count in counts}
    return {"events of the user": {**users, "all": whole}, "targets": targets}


def last_events(
    log: EventLog, queries: Queries, count: int | None
) -> tuple[EventLog, np.ndarray, Queries]:
    """A log with a user for every query: its last events before the target, then the target.

    Returns:
        The log, the events of the old one that it holds, and its queries.
    """
    begins = log.offsets[queries.users]
    if count is not None:
        begins = np.maximum(begins, queries.positions - count)
    lengths = queries.positions + 1 - begins
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
    shortened = replace(
        log,
        user_ids=log.user_ids.gather(queries.users),
        offsets=offsets,
        items=log.items[kept],
        event_types=log.event_types[kept],
        times=log.times[kept],
    )
    return shortened, kept, Queries(np.arange(len(queries)), offsets[1:] - 1)


def text_baseline(model: TrainedModel):
    """Scores by the cosine with the mean text vector of a user's items."""
    text = unit_rows(np.asarray(model.index.text)).astype(np.float32)

    def with_histories(histories: Histories) -> Scorer:
        def scores(start: int, stop: int) -> np.ndarray:
            rows, items = histories(start, stop)
            sums = np.zeros((stop - start, text.shape[1]), np.float32)
            np.add.at(sums, rows, text[items])
            return sums @ text.T

        return scores

    return with_histories


def print_table(title: str, rows: dict[str, dict[str, np.ndarray]]) -> None:
    """N@10 / R@10 of every method, a line for every row."""
    methods = list(next(iter(rows.values())))
    table = Table("", *methods, title=title, title_justify="left")
    for name, ranks in rows.items():
        cells = [figures(ranks[method]) for method in methods]
        table.add_row(name, *(f"{c['ndcg@10']:.4f} / {c['recall@10']:.4f}" for c in cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
