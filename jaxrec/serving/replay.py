"""What live feedback is worth: a held-out period in time order, with and without state updates.

Every event's item is ranked before the event is read (prequential evaluation; Gama et al., "On
evaluating stream learning algorithms", 2013): once from the live state, once from the state that
the user had when the period began, and also with the present session mixed in.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from jaxrec.config.ranges import Fraction, check_bounds
from jaxrec.data.events import user_of_event
from jaxrec.errors import InputError
from jaxrec.evaluation import metrics
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import combine
from jaxrec.ranking.item_table import prepare
from jaxrec.ranking.steps import Session
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.stores.base import LiveEvent, UserDocument
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.types import EventLog

FROZEN = "frozen"  # states from the moment when the period began
SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Replay:
    """Ranks (from 0) of the events of a period, by the user vectors behind them.

    Attributes:
        ranks: for `frozen` states, `live` states, and live states with the session mixed in.
        first: whether an event is its user's first in the period.
    """

    ranks: dict[str, Float[np.ndarray, " Q"]]
    first: Bool[np.ndarray, " Q"]

    def table(self) -> Table:
        """NDCG@10 and recall@10, and the gain over `frozen` with 95 % intervals."""
        table = Table(box=SIMPLE_HEAD, title="rank of the next event", title_justify="left")
        for heading in ("", "N@10", "R@10", "gain in N@10", "95 % interval"):
            table.add_column(heading, justify="right" if heading else "left")
        subsets = (("all events", self.first | True), ("after a live event", ~self.first))
        for title, rows in subsets:
            table.add_row(f"{title}: {rows.sum():,}")
            frozen = metrics.ndcg(self.ranks[FROZEN][rows], 10)
            for name, ranks in self.ranks.items():
                means = metrics.summarise(ranks[rows])
                cells = [f"{means[metric]:.4f}" for metric in ("ndcg@10", "recall@10")]
                if name != FROZEN and len(frozen):
                    live = metrics.ndcg(ranks[rows], 10)
                    low, high = metrics.bootstrap_interval(live, frozen, samples=SAMPLES, seed=0)
                    gain = live.mean() - frozen.mean()
                    cells += [f"{gain:+.4f}", f"{low:+.4f} to {high:+.4f}"]
                table.add_row(f"  {name}", *cells)
            table.add_section()
        return table


def replay(
    model: TrainedModel,
    log: EventLog,
    since: float = 0.9,
    until: float = 1.0,
    weights: Sequence[float] = (0.25, 0.5, 1.0),
    gap_minutes: float = 30.0,
) -> Replay:
    """Rank, then record, the events between two quantiles of their times, in time order.

    Events that training never predicts (returns and the like) and events of unknown items are
    recorded but not ranked.

    Args:
        log: what `UserEncoder.event_log` returns. Events before the period are recorded first.
        since, until: the quantiles of the times at which the period begins and ends, from 0 to 1.
        weights: weights of the present session; each is ranked apart. Choose one on a period before
            the one that you report.
        gap_minutes: a session ends after so many minutes without an event.

    Raises:
        InputError: the model has no time, `since` or `until` is no such quantile, or they leave no
            event to rank.
    """
    check_bounds("since", since, Fraction)
    check_bounds("until", until, Fraction)
    if model.config.data.time != "timestamp":
        raise InputError("the run's times are only positions, so users have no common order")
    user_events = in_time_order(model, log)
    times = np.array([user_event.event.time for user_event in user_events])
    begin, end = np.searchsorted(times, np.quantile(times, [since, until]), side="right")
    if begin >= end:
        raise InputError(f"since={since}, until={until} leaves no event to rank")
    replayed = _Replayed(model, Session(1.0, gap_minutes), weights)
    replayed.engine.recorder.record_many(user_events[:begin])
    for round_events in track(list(rounds(user_events[begin:end])), "replaying", transient=True):
        replayed.rank(round_events)
        replayed.engine.record(round_events)
    if not replayed.ranks:
        raise InputError(
            f"since={since}, until={until} leaves no event of a known item and a predicted type"
        )
    ranks = {name: np.concatenate(parts) for name, parts in replayed.ranks.items()}
    return Replay(ranks, np.concatenate(replayed.firsts))


class _Replayed:
    """The live engine during a replay, and the ranks so far."""

    def __init__(self, model: TrainedModel, session: Session, weights: Sequence[float]):
        self.model, self.session, self.weights = model, session, weights
        self.engine = LiveEngine(model, SQLiteStore(":memory:"))
        self.items = prepare(model.index.items)
        encoder = model.encoder
        self.predicted = {t for t in encoder.event_type_names if encoder.is_predicted(t)}
        # each user's document and vector from the moment when the period began
        self.frozen: dict[str, tuple[UserDocument, Float[np.ndarray, " F"]]] = {}
        self.ranks: dict[str, list[Float[np.ndarray, " n"]]] = defaultdict(list)
        self.firsts: list[Bool[np.ndarray, " n"]] = []

    def rank(self, user_events: Sequence[UserEvent]) -> None:
        """Rank the items of events, at most one a user, before they are recorded."""
        builder, item_number = self.engine.builder, self.engine.updater.item_number
        user_ids = [user_event.user_id for user_event in user_events]
        documents = list(self.engine.recorder.documents(user_ids).values())
        live = builder.user_vectors(documents)
        is_first = np.array([user_id not in self.frozen for user_id in user_ids])
        for document, vector in zip(documents, live, strict=False):
            self.frozen.setdefault(document.user_id, (document, vector))
        rows = [
            row
            for row, event in enumerate(user_event.event for user_event in user_events)
            if event.event_type in self.predicted and event.item_id in item_number
        ]
        if not rows:
            return
        old_documents, old = zip(*(self.frozen[user_id] for user_id in user_ids), strict=True)
        vectors = {FROZEN: np.stack(old), **self._live_vectors(user_events, documents, live)}
        targets = np.array([item_number[user_events[row].event.item_id] for row in rows])
        mask = self.model.config.evaluation.mask
        masked = builder.mask([documents[row] for row in rows], mask)
        frozen_adjustments, live_adjustments = (
            combine(masked, builder.history_bias([source[row] for row in rows]))
            for source in (old_documents, documents)
        )
        for name, queries in vectors.items():
            adjustments = frozen_adjustments if name == FROZEN else live_adjustments
            eval_queries = EvalQueries(queries[rows], targets, adjustments)
            self.ranks[name].append(rank_queries(eval_queries, self.items, k=1).ranks)
        self.firsts.append(is_first[rows])

    def _live_vectors(
        self,
        user_events: Sequence[UserEvent],
        documents: list[UserDocument],
        live: Float[np.ndarray, "Q F"],
    ) -> dict[str, Float[np.ndarray, "Q F"]]:
        """User vectors by name: live ones, ones with the present session mixed in, and, where the
        model reads it, ones that know the time since the last event."""
        builder = self.engine.builder
        now = np.array([user_event.event.time for user_event in user_events])
        alone = builder.with_session(documents, live, self.session, now)
        vectors = {"live": live} | {
            f"live, session {weight:g}": replace(self.session, weight=weight).mixed(live, alone)
            for weight in self.weights
        }
        if self.model.config.model.time_since_last:
            vectors["live, with time"] = builder.user_vectors(documents, now=now)
        return vectors


def in_time_order(model: TrainedModel, log: EventLog) -> list[UserEvent]:
    """The events of a log, the earliest first; unknown items have an empty id.

    Equal times of a user keep their order.
    """
    order = np.argsort(log.times, kind="stable")
    users = log.user_ids.gather(user_of_event(log)[order])
    items = model.catalog.item_ids.gather(log.items[order]).fill_null("")
    event_types = [log.event_type_names[event_type] for event_type in log.event_types[order]]
    return [
        UserEvent(user, LiveEvent(seconds, item, event_type))
        for user, seconds, item, event_type in zip(
            users, log.times[order].tolist(), items, event_types, strict=True
        )
    ]


def rounds(user_events: list[UserEvent]) -> Iterator[list[UserEvent]]:
    """The first event of every user, then the second of every user, and so on, in batches.

    The ranks are those of the order in time, as no user's state depends on another user's.
    """
    seen = Counter[str]()
    by_number: dict[int, list[UserEvent]] = defaultdict(list)
    for user_event in user_events:
        by_number[seen[user_event.user_id]].append(user_event)
        seen[user_event.user_id] += 1
    for round_events in by_number.values():
        for start in range(0, len(round_events), BATCHES[-1]):
            yield round_events[start : start + BATCHES[-1]]
