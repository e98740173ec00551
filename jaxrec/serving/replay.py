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
from jaxrec.ranking.top_k import combined, rank_queries
from jaxrec.serving.live.engine import LiveEngine, UserEvent, user_events_of
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.stores.base import UserDocument
from jaxrec.serving.stores.sqlite import SQLiteStore
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
    user_events = in_time_order(model, log)
    times = np.array([report.event.time for report in user_events])
    begin = int(np.searchsorted(times, np.quantile(times, since), side="right"))
    if begin == len(user_events):
        raise ValueError(f"since={since} leaves no event to rank")
    online = LiveEngine(model, SQLiteStore(":memory:"))
    online.record_many(user_events[:begin])
    known = online.updater.number_of
    predicted = {
        event_type
        for event_type in model.trained.event_type_names
        if model.is_predicted(event_type)
    }
    mask, valid = model.config.evaluation.mask, model.valid()
    session = Session(1.0, gap_minutes)
    entered: dict[str, tuple[UserDocument, Float[np.ndarray, " 1+ED"]]] = {}
    ranks: dict[str, list[Float[np.ndarray, " n"]]] = defaultdict(list)
    firsts: list[Bool[np.ndarray, " n"]] = []
    for round_events in track(list(rounds(user_events[begin:])), "replaying", transient=True):
        documents, live = online.vectors([report.user_id for report in round_events])
        first = np.array([report.user_id not in entered for report in round_events])
        for document, vector in zip(documents, live, strict=False):
            entered.setdefault(document.user_id, (document, vector))
        new = [report.event for report in round_events]
        rows = [n for n, e in enumerate(new) if e.event_type in predicted and e.item_id in known]
        if rows:
            before, frozen = zip(*(entered[report.user_id] for report in round_events), strict=True)
            vectors = {FROZEN: np.stack(frozen)}
            vectors |= live_vectors(online, round_events, documents, live, session, weights)
            targets = np.array([known[new[row].item_id] for row in rows])
            masked = online.builder.masked([documents[row] for row in rows], mask)
            frozen_adjustments, live_adjustments = (
                combined(masked, online.builder.familiar([documents[row] for row in rows]))
                for documents in (before, documents)
            )
            for name, queries in vectors.items():
                pairs = frozen_adjustments if name == FROZEN else live_adjustments
                found = rank_queries(
                    queries[rows], online.updater.items, targets, pairs, valid, k=1
                )
                ranks[name].append(found.ranks)
            firsts.append(first[rows])
        online.record(round_events)
    if not ranks:
        raise ValueError(
            f"since={since} leaves no event of a known item and a predicted event_type"
        )
    return Replay(
        {name: np.concatenate(parts) for name, parts in ranks.items()}, np.concatenate(firsts)
    )


def live_vectors(
    online: LiveEngine,
    round_events: list[UserEvent],
    documents: list[UserDocument],
    live: Float[np.ndarray, "Q 1+ED"],
    session: Session,
    weights: Sequence[float],
) -> dict[str, Float[np.ndarray, "Q 1+ED"]]:
    """By name the vectors of users before their events of a round_events: as they are, with the present
    session mixed in, and, where the model reads it, told how long ago their last event was."""
    now = np.array([report.event.time for report in round_events])
    alone = online.builder.with_session(documents, live, session, now)
    vectors = {"live": live} | {
        f"live, session {weight:g}": replace(session, weight=weight).mixed(live, alone)
        for weight in weights
    }
    if online.model.config.model.time_since_last:
        user_ids = [report.user_id for report in round_events]
        _, vectors["live, told the time"] = online.vectors(user_ids, now=now)
    return vectors


def in_time_order(model: TrainedModel, log: EventLog) -> list[UserEvent]:
    """The events of a log, the earliest first; a user's equal times stay in their order."""
    user_events = user_events_of(log, model)
    return [user_events[place] for place in np.argsort(log.times, kind="stable")]


def rounds(user_events: list[UserEvent]) -> Iterator[list[UserEvent]]:
    """Everybody's first event, everybody's second, and so on, some hundreds at a time.

    Ranks are those of the order in time, as no user's state depends on another's.
    """
    seen = Counter[str]()
    by_number: dict[int, list[UserEvent]] = defaultdict(list)
    for report in user_events:
        by_number[seen[report.user_id]].append(report)
        seen[report.user_id] += 1
    for round_events in by_number.values():
        for start in range(0, len(round_events), BATCHES[-1]):
            yield round_events[start : start + BATCHES[-1]]
