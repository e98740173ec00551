"""What live feedback is worth: a held-out period in time order, with and without folding it.

Every event's item is ranked before the event is folded (prequential evaluation; Gama et al.,
"On evaluating stream learning algorithms", 2013), once from the live state and once from the
state that the user had when the period began; also with the present session mixed in.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from jaxrec.evaluation import metrics
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.steps import Session
from jaxrec.ranking.top_k import joined, rank_queries
from jaxrec.serving.live.engine import Online, Report, reports_of
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.stores.sqlite import Shopper, SQLiteStore
from jaxrec.types import EventLog

FROZEN = "frozen"  # states as when the period began
SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Replay:
    """Ranks (from 0) of the events of a period, by the vectors that they were ranked by."""

    ranks: dict[str, Float[np.ndarray, " Q"]]  # `frozen` states, `live` ones, and those mixed
    first: Bool[np.ndarray, " Q"]  # the first event of its user in the period

    def table(self) -> Table:
        """NDCG@10 and recall@10, and what they gain over `frozen` with 95 % intervals."""
        table = Table(box=SIMPLE_HEAD, title="rank of the next event", title_justify="left")
        for heading in ("", "N@10", "R@10", "gain in N@10", "95 % interval"):
            table.add_column(heading, justify="right" if heading else "left")
        for part, rows in (("all events", self.first | True), ("after a live one", ~self.first)):
            table.add_row(f"{part}: {rows.sum():,}")
            frozen = metrics.ndcg(self.ranks[FROZEN][rows], 10)
            for name, ranks in self.ranks.items():
                means = metrics.summarise(ranks[rows])
                cells = [f"{means[metric]:.4f}" for metric in ("ndcg@10", "recall@10")]
                if name != FROZEN and len(frozen):
                    found = metrics.ndcg(ranks[rows], 10)
                    low, high = metrics.bootstrap_interval(found, frozen, samples=SAMPLES, seed=0)
                    gain = found.mean() - frozen.mean()
                    cells += [f"{gain:+.4f}", f"{low:+.4f} to {high:+.4f}"]
                table.add_row(f"  {name}", *cells)
            table.add_section()
        return table


def replay(
    model: TrainedModel,
    log: EventLog,
    since: float = 0.9,
    weights: Sequence[float] = (0.25, 0.5, 1.0),
    gap_minutes: float = 30.0,
) -> Replay:
    """Rank and fold the events after a quantile of their times, in time order.

    Args:
        log: what `TrainedModel.event_log` returns; events before the period are folded first.
        since: quantile of the times at which the period begins.
        weights: of the present session in the live vectors, each ranked apart, so that a
            strategy can take the best.
        gap_minutes: without an event end a session.

    Events that training never predicts (returns and the like) and events of unknown items are
    folded and not ranked.

    Raises:
        ValueError: the model has no time, or `since` leaves no event.
    """
    if model.config.data.time != "timestamp":
        raise ValueError("the run's times are only positions, so there is no order among users")
    reports = in_time_order(model, log)
    times = np.array([report.event.time for report in reports])
    begin = int(np.searchsorted(times, np.quantile(times, since), side="right"))
    if begin == len(reports):
        raise ValueError(f"since={since} leaves no event to rank")
    online = Online(model, SQLiteStore(":memory:"))
    online.record_many(reports[:begin])
    known = online.folder.number_of
    predicted = {kind for kind in model.trained.kind_names if model.is_predicted(kind)}
    mask, valid = model.config.evaluation.mask, model.valid()
    session = Session(1.0, gap_minutes)
    entered: dict[str, tuple[Shopper, Float[np.ndarray, " 1+ED"]]] = {}
    ranks: dict[str, list[Float[np.ndarray, " n"]]] = defaultdict(list)
    firsts: list[Bool[np.ndarray, " n"]] = []
    for wave in track(list(waves(reports[begin:])), "replaying", transient=True):
        shoppers, live = online.vectors([report.user_id for report in wave])
        first = np.array([report.user_id not in entered for report in wave])
        for shopper, vector in zip(shoppers, live, strict=False):
            entered.setdefault(shopper.user_id, (shopper, vector))
        new = [report.event for report in wave]
        rows = [n for n, e in enumerate(new) if e.kind in predicted and e.item_id in known]
        if rows:
            before, frozen = zip(*(entered[report.user_id] for report in wave), strict=True)
            vectors = {FROZEN: np.stack(frozen)}
            vectors |= live_vectors(online, wave, shoppers, live, session, weights)
            targets = np.array([known[new[row].item_id] for row in rows])
            masked = online.lister.masked([shoppers[row] for row in rows], mask)
            frozen_pairs, live_pairs = (
                joined(masked, online.lister.familiar([documents[row] for row in rows]))
                for documents in (before, shoppers)
            )
            for name, queries in vectors.items():
                pairs = frozen_pairs if name == FROZEN else live_pairs
                found = rank_queries(queries[rows], online.folder.items, targets, pairs, valid, k=1)
                ranks[name].append(found.ranks)
            firsts.append(first[rows])
        online.record(wave)
    if not ranks:
        raise ValueError(f"since={since} leaves no event of a known item and a predicted kind")
    return Replay(
        {name: np.concatenate(parts) for name, parts in ranks.items()}, np.concatenate(firsts)
    )


def live_vectors(
    online: Online,
    wave: list[Report],
    shoppers: list[Shopper],
    live: Float[np.ndarray, "Q 1+ED"],
    session: Session,
    weights: Sequence[float],
) -> dict[str, Float[np.ndarray, "Q 1+ED"]]:
    """By name the vectors of users before their events of a wave: as they are, with the present
    session mixed in, and, where the model reads it, told how long ago their last event was."""
    now = np.array([report.event.time for report in wave])
    alone = online.lister.with_session(shoppers, live, session, now)
    vectors = {"live": live} | {
        f"live, session {weight:g}": replace(session, weight=weight).mixed(live, alone)
        for weight in weights
    }
    if online.model.config.model.idle_times:
        user_ids = [report.user_id for report in wave]
        _, vectors["live, told the time"] = online.vectors(user_ids, now=now)
    return vectors


def in_time_order(model: TrainedModel, log: EventLog) -> list[Report]:
    """The events of a log, the earliest first; a user's equal times stay in their order."""
    reports = reports_of(log, model)
    return [reports[place] for place in np.argsort(log.times, kind="stable")]


def waves(reports: list[Report]) -> Iterator[list[Report]]:
    """Everybody's first event, everybody's second, and so on, some hundreds at a time.

    Ranks are those of the order in time, as no user's state depends on another's.
    """
    seen = Counter[str]()
    by_number: dict[int, list[Report]] = defaultdict(list)
    for report in reports:
        by_number[seen[report.user_id]].append(report)
        seen[report.user_id] += 1
    for wave in by_number.values():
        for start in range(0, len(wave), BATCHES[-1]):
            yield wave[start : start + BATCHES[-1]]
