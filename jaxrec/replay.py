"""What live feedback is worth: a held-out period in time order, with and without folding it.

Every event's item is ranked before the event is folded (prequential evaluation; Gama et al.,
"On evaluating stream learning algorithms", 2013), once from the live state and once from the
state that the user had when the period began.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from jaxrec import metrics
from jaxrec.folding import BATCHES
from jaxrec.online import Online, Report, reports_of
from jaxrec.ranking import blocks_of, rank_queries
from jaxrec.scoring import TrainedModel
from jaxrec.store import SQLiteStore

SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Replay:
    """Ranks (from 0) of the events of a period, from live and from frozen states."""

    live: Float[np.ndarray, " Q"]
    frozen: Float[np.ndarray, " Q"]
    first: np.ndarray  # bool [Q]: the first event of its user in the period: both are equal

    def table(self) -> Table:
        """NDCG@10 and recall@10 of both and what folding gains, with 95 % intervals."""
        table = Table(box=SIMPLE_HEAD, title="rank of the next event", title_justify="left")
        for heading in ("", "events", "NDCG@10", "recall@10", "gain in NDCG@10", "95 % interval"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, rows in (("all", self.first | True), ("after a live event", ~self.first)):
            live, frozen = self.live[rows], self.frozen[rows]
            values = [metrics.ndcg(ranks, 10) for ranks in (live, frozen)]
            low, high = metrics.bootstrap_interval(*values, samples=SAMPLES, seed=0)
            for label, ranks in (("live", live), ("frozen", frozen)):
                means = metrics.summarise(ranks)
                cells = [f"{means[metric]:.4f}" for metric in ("ndcg@10", "recall@10")]
                gain = values[0].mean() - values[1].mean() if len(live) else 0.0
                told = (f"{gain:+.4f}", f"{low:+.4f} to {high:+.4f}") if label == "live" else ()
                table.add_row(f"{name}: {label}", f"{len(ranks):,}", *cells, *told)
        return table


def replay(model: TrainedModel, events: pl.DataFrame, since: float = 0.9) -> Replay:
    """Rank and fold the events after a quantile of their times, in time order.

    Args:
        events: columns as for `TrainedModel.recommend`; those before the period are folded first.
        since: quantile of the times at which the period begins.

    Events that training never predicts (returns and the like) and events of unknown items are
    folded and not ranked.

    Raises:
        DataError: the events cannot be used.
        ValueError: the model has no time, or `since` leaves no event.
    """
    if model.config.data.time != "timestamp":
        raise ValueError("the run's times are only positions, so there is no order among users")
    reports = in_time_order(model, events)
    times = np.array([report.event.time for report in reports])
    begin = int(np.searchsorted(times, np.quantile(times, since), side="right"))
    if begin == len(reports):
        raise ValueError(f"since={since} leaves no event to rank")
    online = Online(model, SQLiteStore(":memory:"))
    online.record_many(reports[:begin])
    known = online.folder.number_of
    predicted = {kind for kind in model.trained.kind_names if model.is_predicted(kind)}
    mask, valid = model.config.evaluation.mask, model.valid()
    unchanged: dict[str, Float[np.ndarray, " ED"]] = {}
    found: list[tuple[np.ndarray, ...]] = []
    for wave in track(list(waves(reports[begin:])), "replaying", transient=True):
        shoppers, vectors = online.vectors([report.user_id for report in wave])
        first = np.array([report.user_id not in unchanged for report in wave])
        for report, vector in zip(wave, vectors, strict=False):
            unchanged.setdefault(report.user_id, vector)
        new = [report.event for report in wave]
        rows = [n for n, e in enumerate(new) if e.kind in predicted and e.item_id in known]
        if rows:
            targets = np.array([known[new[row].item_id] for row in rows])
            still = np.stack([unchanged[wave[row].user_id] for row in rows])
            excluded = blocks_of(online.masked([shoppers[row] for row in rows], mask))
            live, frozen = (
                rank_queries(queries, online.folder.items, targets, excluded, valid, k=1).ranks
                for queries in (vectors[rows], still)
            )
            found.append((live, frozen, first[rows]))
        online.record(wave)
    return Replay(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def in_time_order(model: TrainedModel, events: pl.DataFrame) -> list[Report]:
    """Validated events, the earliest first; of equal times the first of the file first."""
    log = model.event_log(events)
    reports = reports_of(log, model)
    return [reports[place] for place in np.argsort(log.times, kind="stable")]


def waves(reports: list[Report]) -> Iterator[list[Report]]:
    """Consecutive events of different users, so that none has to know of another."""
    wave: dict[str, Report] = {}
    for report in reports:
        if report.user_id in wave or len(wave) == BATCHES[-1]:
            yield list(wave.values())
            wave = {}
        wave[report.user_id] = report
    if wave:
        yield list(wave.values())
