"""Whether explanations name the events that made a recommendation.

    python benchmarks/quality/faithfulness.py runs/ml-100k
    python benchmarks/quality/faithfulness.py runs/scientific --users 100

The best item of a test user is explained from the user's newest 63 events. Events are deleted from
the history, the strongest first (`deletion`), or an empty history gets them back, the strongest
first and in time order (`insertion`). After each share of the events, the model gives the
log-probability of the item. A figure is the mean over the shares and the users. A ranking is more
faithful if its deletion curve is lower and its insertion curve is higher. Differences to a random
order and to the latest event first come with 95 % intervals from a bootstrap over the users
(Petsiuk et al. 2018, arXiv:1806.07421; DeYoung et al. 2020, arXiv:1911.03429).

`agreement` is how often a cheap score of a history's items names the same item as leave-one-out,
over the three best items of each user; `because` of live lists uses the best of them.

A row is added to `benchmarks/results/faithfulness.jsonl`.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from rows import append_row, commit

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.contributions import history_amounts
from jaxrec.inference.explain import (
    MOST_LEFT_OUT,
    event_amounts,
    gradient_amounts,
    without_each,
)
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.top_k import best_items, log_probabilities
from jaxrec.types import EventLog

RESULTS = Path(__file__).parent.parent / "results" / "faithfulness.jsonl"
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the events that are deleted or inserted
LEAST = 5  # events of a history
LISTED = 3  # items for the agreement
DECAYS = (1.0, 0.98, 0.95, 0.9, 0.8, 0.6)
SAMPLES = 1000  # of the bootstrap
NONE = ("none",)  # no mask: an item stays comparable when its event is deleted

Amounts = dict[str, Float[np.ndarray, "M K"]]


def main() -> None:
    """Measure a run, add its row and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=60)
    options = parser.parse_args()
    commit()
    model = jaxrec.load(options.run)
    row = {"run": options.run.name, "data": Path(model.config.data.source).name}
    row |= {"code": commit(), **measure(model, sampled(model, options.users))}
    append_row(RESULTS, row)
    Console(width=120).print(figures_table(row))


def sampled(model: TrainedModel, users: int) -> list[EventLog]:
    """The newest events of random test users before their test event."""
    split = prepare(model.config).split
    queries, log = split.test["last"], split.log
    lengths = queries.positions - log.offsets[queries.users]
    candidates = np.flatnonzero(lengths >= LEAST)
    random = np.random.default_rng(0)
    drawn = random.choice(candidates, min(users, len(candidates)), replace=False)
    return [
        history_of(log, np.arange(position - min(length, MOST_LEFT_OUT), position))
        for position, length in zip(queries.positions[drawn], lengths[drawn], strict=True)
    ]


def history_of(log: EventLog, numbers: Int[np.ndarray, " M"]) -> EventLog:
    """Some events of a log as the history of one user."""
    return joined(log, [numbers])


def joined(log: EventLog, histories: list[Int[np.ndarray, " M"]]) -> EventLog:
    """Histories, each of some events of a log."""
    numbers = np.concatenate(histories).astype(np.int64)
    return replace(
        log,
        user_ids=pl.Series([str(number) for number in range(len(histories))], dtype=pl.String),
        offsets=np.cumsum([0, *map(len, histories)]),
        items=log.items[numbers],
        event_types=log.event_types[numbers],
        times=log.times[numbers],
    )


def measure(model: TrainedModel, histories: list[EventLog]) -> dict[str, Any]:
    """The curves of every ranking of the events, and the agreement of cheap scores."""
    random = np.random.default_rng(1)
    variants = vectors_of(model, [without_each(log) for log in histories])
    lists = [best_of(model, log, own) for log, own in zip(histories, variants, strict=True)]
    agreement: dict[str, list[float]] = {}
    rankings = list[dict[str, np.ndarray]]()
    for log, items, own in zip(histories, lists, variants, strict=True):
        amounts, cheap = explained(model, log, items, own)
        rankings.append({name: values[:, 0] for name, values in amounts.items()})
        rankings[-1] |= {name: cheap[name][:, 0] for name in ("similarity", "latest first")}
        rankings[-1]["random"] = random.random(len(log.items))
        for name, values in cheap.items():
            agreement.setdefault(name, []).append(same_item(log, amounts["leave-one-out"], values))
    curves = curves_of(model, histories, [items[0] for items in lists], rankings)
    return {
        "users": len(histories),
        "events": round(float(np.mean([len(log.items) for log in histories])), 1),
        "curves": {name: np.round(values.mean(0), 4).tolist() for name, values in curves.items()},
        "differences": {
            f"{name} - {other}": interval(curves[name] - curves[other])
            for name in ("leave-one-out", "integrated gradients", "similarity")
            for other in ("random", "latest first")
        },
        "agreement": {name: round(float(np.mean(v)), 4) for name, v in agreement.items()},
    }


def vectors_of(model: TrainedModel, logs: list[EventLog]) -> list[Float[np.ndarray, "U F"]]:
    """The user vectors of several logs, computed together."""
    vectors = model.encoder.vectors(model.encoder.states(together(logs)))
    return np.split(vectors, np.cumsum([log.num_users for log in logs])[:-1])


def together(logs: list[EventLog]) -> EventLog:
    """The users of several logs in one."""
    lengths = np.concatenate([log.lengths for log in logs])
    return replace(
        logs[0],
        user_ids=pl.Series([str(number) for number in range(len(lengths))], dtype=pl.String),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([log.items for log in logs]),
        event_types=np.concatenate([log.event_types for log in logs]),
        times=np.concatenate([log.times for log in logs]),
    )


def best_of(
    model: TrainedModel, log: EventLog, vectors: Float[np.ndarray, "U F"]
) -> Int[np.ndarray, " K"]:
    """The best items of a user."""
    changes = model.ranker.adjustments(log)(np.arange(1))
    return best_items(vectors[:1], model.index.items, LISTED, changes).items[0]


def explained(
    model: TrainedModel,
    log: EventLog,
    items: Int[np.ndarray, " K"],
    vectors: Float[np.ndarray, "U F"],
) -> tuple[Amounts, Amounts]:
    """The amounts of the events of a user for some items, and what cheap scores say of them."""
    table = np.asarray(model.index.items.vectors)
    leads = table[items] - model.explainer.average_item
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    added = history_amounts(model, without_each(log), items)
    gradients = gradient_amounts(model, log, leads) + bias.of_events(log, items)
    amounts = {
        "leave-one-out": event_amounts(vectors, added, leads),
        "integrated gradients": gradients,
    }
    ages = np.arange(len(log.items))[::-1, None]
    cosines = unit_rows(table[log.items]) @ unit_rows(table[items]).T
    centred = unit_rows(table[log.items] - model.explainer.average_item) @ unit_rows(leads).T
    cheap = {
        "integrated gradients": gradients,
        "latest first": np.broadcast_to(-ages.astype(float), cosines.shape),
        "similarity": cosines,
    }
    for decay in DECAYS:
        cheap[f"centred similarity, decay {decay}"] = np.maximum(centred, 0) * decay**ages
        cheap[f"similarity, decay {decay}"] = (1 + cosines) * decay**ages
    return amounts, cheap


def curves_of(
    model: TrainedModel,
    histories: list[EventLog],
    items: list[int],
    rankings: list[dict[str, Float[np.ndarray, " M"]]],
) -> dict[str, Float[np.ndarray, "U 2"]]:
    """The mean log-probability of each user's item: after deletion, and after insertion."""
    changed = [changed_histories(log, own) for log, own in zip(histories, rankings, strict=True)]
    log = together(changed)
    vectors = model.encoder.vectors(model.encoder.states(log))
    log_p = log_probabilities(
        vectors,
        model.index.items,
        np.repeat(items, [own.num_users for own in changed])[:, None],
        model.ranker.adjustments(log, NONE)(np.arange(log.num_users)),
        inverse_temperature=model.inverse_temperature,
    )
    means = log_p.reshape(len(histories), len(rankings[0]), 2, len(SHARES)).mean(3)
    return {name: means[:, number] for number, name in enumerate(rankings[0])}


def changed_histories(log: EventLog, rankings: dict[str, Float[np.ndarray, " M"]]) -> EventLog:
    """For each ranking, the history after each share of it is deleted, then inserted."""
    count, places = len(log.items), []
    for amounts in rankings.values():
        order = np.argsort(-amounts, kind="stable")
        cuts = [order[: max(round(share * count), 1)] for share in SHARES]
        places += [np.setdiff1d(np.arange(count), cut) for cut in cuts]
        places += [np.sort(cut) for cut in cuts]
    return joined(log, places)


def same_item(
    log: EventLog, exact: Float[np.ndarray, "M K"], cheap: Float[np.ndarray, "M K"]
) -> float:
    """How often the strongest events of two rankings are of the same item."""
    return float((log.items[exact.argmax(0)] == log.items[cheap.argmax(0)]).mean())


def interval(differences: Float[np.ndarray, "U 2"]) -> list[list[float]]:
    """Mean and 95 % interval of differences: in deletion, and in insertion."""
    drawn = np.random.default_rng(0).integers(len(differences), size=(SAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), [0.025, 0.975], axis=0)
    return np.round(np.stack([differences.mean(0), low, high], 1), 4).tolist()


def _with_interval(difference: list[float]) -> str:
    mean, low, high = difference
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def figures_table(row: dict[str, Any]) -> Table:
    """A row of results as a table."""
    title = f"{row['run']}: {row['users']} users, {row['events']} events each"
    table = Table(title=title, title_justify="left")
    for heading in ("", "deletion", "insertion"):
        table.add_column(heading)
    for name, (deletion, insertion) in row["curves"].items():
        table.add_row(name, f"{deletion:.3f}", f"{insertion:.3f}")
    for name, (deletion, insertion) in row["differences"].items():
        table.add_row(name, _with_interval(deletion), _with_interval(insertion))
    for name, share in row["agreement"].items():
        table.add_row(f"agreement: {name}", f"{share:.3f}", "")
    return table


if __name__ == "__main__":
    main()
