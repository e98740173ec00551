"""Whether explanations name the events that made a recommendation.

    python benchmarks/quality/faithfulness.py runs/ml-100k
    python benchmarks/quality/faithfulness.py runs/scientific --users 400

The best item of a test user is explained from the user's newest 63 events. Events are deleted from
the history, the strongest first (`deletion`), or an empty history gets them back, the strongest
first and in time order (`insertion`). After each share of the events, the model gives the
log-probability of the item. A figure is the mean over the shares and the users. `one event` deletes
or inserts the strongest event alone. A ranking is more faithful if its figures of deletion are
lower and those of insertion higher. Differences come with 95 % intervals from a bootstrap over the
users (Petsiuk et al. 2018, arXiv:1806.07421; DeYoung et al. 2020, arXiv:1911.03429).

`because` of live lists follows `event_scores`. A grid of its decays and weights is compared on the
first half of the users, and every other figure is of the second half. `shares` is the order of
explanations.

`agreement` is how often a ranking's strongest event is of the same item as that of leave-one-out,
over the three best items of each user.

A row is added to `benchmarks/results/faithfulness.jsonl`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from rows import append_row, commit

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.inference import explain
from jaxrec.inference.contributions import history_amounts
from jaxrec.inference.event_scores import event_leads, event_scores, event_shares
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
DECAYS = (0.98, 0.95, 0.9, 0.8)
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
EVENTS_PER_SHAPE = 16  # of integrated gradients, as these histories are short
BLOCK = 64  # users whose changed histories are read together
SAMPLES = 1000  # of the bootstrap
NONE = ("none",)  # no mask: an item stays comparable when its event is deleted
COMPARED = (
    *product(("shares", "leave-one-out", "integrated gradients", "because"), ("random",)),
    *product(("shares", "mean", "leave-one-out", "integrated gradients"), ("latest first",)),
    *product(("because", "similarity, decay 0.9"), ("latest first",)),
    *product(("shares",), ("mean", "leave-one-out", "because")),
    *product(("because",), ("leave-one-out", "similarity, decay 0.9")),
    ("shares, integrated gradients", "integrated gradients"),
)

Amounts = dict[str, Float[np.ndarray, "M K"]]


class History(NamedTuple):
    """A user's events, the items to explain, and what is known of both."""

    log: EventLog
    items: Int[np.ndarray, " K"]
    left_out: Float[np.ndarray, "M K"]  # amounts by leave-one-out
    gradients: Float[np.ndarray, "M K"]  # and by integrated gradients
    events: Float[np.ndarray, "M F"]  # `event_leads`
    leads: Float[np.ndarray, "K F"]
    added: Float[np.ndarray, "M K"]  # by the history bias

    def scores(self, decay: float, weight: float) -> Float[np.ndarray, "M K"]:
        """What `because` would follow with a decay and a weight."""
        return event_scores(self.events, self.leads, self.added, decay=decay, weight=weight)


def main() -> None:
    """Measure a run, add its row and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=120)
    options = parser.parse_args()
    commit()
    explain.EVENTS_PER_SHAPE = EVENTS_PER_SHAPE
    model = jaxrec.load(options.run)
    row = {"run": options.run.name, "data": Path(model.config.data.source).name}
    row |= {"code": commit(), **measure(model, sampled(model, options.users))}
    append_row(RESULTS, row)
    Console(width=140).print(figures_table(row))


def sampled(model: TrainedModel, users: int) -> list[EventLog]:
    """The newest events of random test users before their test event."""
    split = prepare(model.config).split
    queries, log = split.test["last"], split.log
    lengths = queries.positions - log.offsets[queries.users]
    candidates = np.flatnonzero(lengths >= LEAST)
    random = np.random.default_rng(0)
    drawn = random.choice(candidates, min(users, len(candidates)), replace=False)
    return [
        joined(log, [np.arange(position - min(length, MOST_LEFT_OUT), position)])
        for position, length in zip(queries.positions[drawn], lengths[drawn], strict=True)
    ]


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


def measure(model: TrainedModel, logs: list[EventLog]) -> dict[str, Any]:
    """The curves of every ranking of the events, and their agreement."""
    random = np.random.default_rng(1)
    histories = [history for block in blocks(logs) for history in explained(model, block)]
    first, second = histories[: len(histories) // 2], histories[len(histories) // 2 :]
    points = list(product(DECAYS, WEIGHTS))
    grid = curves_of(model, first, [{p: h.scores(*p)[:, 0] for p in points} for h in first])
    best = max(points, key=lambda point: contrast(grid[point]))
    rankings = [rankings_of(history, best, random) for history in second]
    tops = [{name: own[:, 0] for name, own in amounts.items()} for amounts in rankings]
    curves = curves_of(model, second, tops)
    same = [same_item(h.log, amounts) for h, amounts in zip(second, rankings, strict=True)]
    return {
        "users": len(second),
        "events": round(float(np.mean([len(history.log.items) for history in second])), 1),
        "best": dict(zip(("decay", "weight"), best, strict=True)),
        "grid": {f"{d:g}, {w:g}": rounded(grid[d, w].mean(0)) for d, w in points},
        "curves": {name: rounded(values.mean(0)) for name, values in curves.items()},
        "differences": {
            f"{name} - {other}": interval(curves[name] - curves[other]) for name, other in COMPARED
        },
        "agreement": dict(zip(curves, rounded(np.mean(same, 0)), strict=True)),
    }


def blocks(parts: list) -> Iterator[list]:
    """Lists of `BLOCK` parts."""
    return (parts[start : start + BLOCK] for start in range(0, len(parts), BLOCK))


def explained(model: TrainedModel, logs: list[EventLog]) -> Iterator[History]:
    """What the rankings of some users' events are made of, for the best items of each."""
    variants = [without_each(log) for log in logs]
    vectors = model.encoder.vectors(model.encoder.states(together(variants)))
    table = np.asarray(model.index.items.vectors)
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    ends = np.cumsum([log.num_users for log in variants])
    for log, read, own in zip(logs, variants, np.split(vectors, ends[:-1]), strict=True):
        changes = model.ranker.adjustments(log)(np.arange(1))
        items = best_items(own[:1], model.index.items, LISTED, changes).items[0]
        leads, added = table[items] - model.explainer.average_item, bias.of_events(log, items)
        left_out = event_amounts(own, history_amounts(model, read, items), leads)
        gradients = gradient_amounts(model, log, leads) + added
        events = event_leads(model, log, table)
        yield History(log, items, left_out, gradients, events, leads, added)


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


def rankings_of(
    history: History, best: tuple[float, float], random: np.random.Generator
) -> Amounts:
    """Amounts of the events by every method, for the items of a user.

    Args:
        best: the decay and the weight that are best for other users.
    """
    left_out, gradients = history.left_out, history.gradients
    because = event_scores(history.events, history.leads, history.added)
    return {
        "shares": event_shares(left_out, because),
        "shares, integrated gradients": event_shares(gradients, because),
        "mean": event_shares(left_out, gradients),
        "leave-one-out": left_out,
        "integrated gradients": gradients,
        "because": because,
        "because, best of the first half": history.scores(*best),
        "similarity, decay 0.9": history.scores(0.9, 0),
        "latest first": np.broadcast_to(np.arange(len(because))[:, None], because.shape),
        "random": random.random(because.shape),
    }


def curves_of(
    model: TrainedModel,
    histories: list[History],
    rankings: list[dict[Any, Float[np.ndarray, " M"]]],
) -> dict[Any, Float[np.ndarray, "U 4"]]:
    """The log-probability of each user's best item: `deletion`, `insertion`, both of one event."""
    means = []
    for block in blocks(list(zip(histories, rankings, strict=True))):
        changed = [changed_histories(history.log, own) for history, own in block]
        log = together(changed)
        vectors = model.encoder.vectors(model.encoder.states(log))
        items = np.repeat([history.items[0] for history, _ in block], changed[0].num_users)
        log_p = log_probabilities(
            vectors,
            model.index.items,
            items[:, None],
            model.ranker.adjustments(log, NONE)(np.arange(log.num_users)),
            inverse_temperature=model.inverse_temperature,
        )
        log_p = log_p.reshape(len(block), len(rankings[0]), 2, 1 + len(SHARES)).astype(np.float64)
        means.append(np.concatenate([log_p[..., 1:].mean(3), log_p[..., 0]], 2))
    whole = np.concatenate(means)
    return {name: whole[:, number] for number, name in enumerate(rankings[0])}


def changed_histories(log: EventLog, rankings: dict[Any, Float[np.ndarray, " M"]]) -> EventLog:
    """For each ranking, the history without its strongest events, then with these alone: of one
    event and of each share."""
    count, places = len(log.items), []
    for amounts in rankings.values():
        order = np.argsort(-amounts, kind="stable")
        cuts = [order[: max(round(share * count), 1)] for share in (0, *SHARES)]
        places += [np.setdiff1d(np.arange(count), cut) for cut in cuts]
        places += [np.sort(cut) for cut in cuts]
    return joined(log, places)


def contrast(curves: Float[np.ndarray, "U 4"]) -> float:
    """By how much insertion exceeds deletion."""
    return float((curves[:, 1] - curves[:, 0]).mean())


def same_item(log: EventLog, amounts: Amounts) -> list[float]:
    """How often each ranking's strongest event is of the item of leave-one-out's."""
    exact = log.items[amounts["leave-one-out"].argmax(0)]
    return [float(np.mean(log.items[own.argmax(0)] == exact)) for own in amounts.values()]


def interval(differences: Float[np.ndarray, "U 4"]) -> list[list[float]]:
    """Mean and 95 % interval of the differences of each figure."""
    drawn = np.random.default_rng(0).integers(len(differences), size=(SAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), [0.025, 0.975], axis=0)
    return [rounded(part) for part in np.stack([differences.mean(0), low, high], 1)]


def rounded(values: Float[np.ndarray, " n"]) -> list[float]:
    """Values with four decimal places."""
    return np.round(values, 4).tolist()


def _with_interval(difference: list[float]) -> str:
    mean, low, high = difference
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def figures_table(row: dict[str, Any]) -> Table:
    """A row of results as a table."""
    best = ", ".join(f"{name} {value:g}" for name, value in row["best"].items())
    title = f"{row['run']}: {row['users']} users, {row['events']} events each; best: {best}"
    table = Table(title=title, title_justify="left")
    for heading in ("", "deletion", "insertion", "one deleted", "one inserted", "agreement"):
        table.add_column(heading)
    for name, figures in row["curves"].items():
        agreement = f"{row['agreement'][name]:.3f}"
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), agreement)
    for name, differences in row["differences"].items():
        table.add_row(name, *map(_with_interval, differences))
    return table


if __name__ == "__main__":
    main()
