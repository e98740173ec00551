"""Live scoring: an event is one step of the shopper's state, and the next answer knows of it."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.config import Config
from jaxrec.data.graph import ITEM
from jaxrec.evaluation.protocol import masked_kinds
from jaxrec.inference.encoding import CHUNK
from jaxrec.inference.profiles import interest_over_time, profile_table
from jaxrec.inference.text_features import LENGTH_BUCKETS
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.steps import Feedback, Ranked, Session, Step, judging
from jaxrec.ranking.top_k import PairBlocks, at_least, scaled
from jaxrec.serving.live.recommendation_builder import (
    LISTS,
    PAIRS,
    Answer,
    Lister,
    padded_blocks,
    unknown_items,
)
from jaxrec.serving.live.state_updater import BATCHES, Folder
from jaxrec.serving.stores.sqlite import (
    LiveEvent,
    Shopper,
    Shown,
    SQLiteStore,
    Store,
    StoreError,
    merged,
    newest_of_kinds,
    with_events,
)
from jaxrec.types import MAX_GAP, NO_GAP, EventLog

BULK = 4096  # states that are loaded at a time
CONFLICTS = 20  # times to read documents anew that other processes have changed meanwhile

Outcome = Literal["accepted", "duplicate", "too_late"]


@dataclass(frozen=True)
class Report:
    """An event of a named user."""

    user_id: str
    event: LiveEvent


class Online:
    """A trained model and a store of live shoppers.

    Args:
        model: what `jaxrec.load` returns.
        store: shared by all processes that serve these shoppers.
        window: newest events of a shopper to keep at least. An event of before all of the kept
            ones (there are up to twice as many), or before a loaded state, is refused.
        strategy: steps that act on every list of items, in their order. Kinds of event that its
            feedback names are recorded although the model does not know them.
        random: for steps that throw dice.

    A state is the fold of all events, as in batch scoring; where the run's `evaluation.history`
    cuts histories there, it is a longer one.
    """

    def __init__(
        self,
        model: TrainedModel,
        store: Store,
        *,
        window: int = 64,
        strategy: Sequence[Step] = (Feedback(),),
        random: np.random.Generator | None = None,
    ):
        if window < 1:
            raise ValueError(f"window={window}: keep 1 event or more")
        check_live_run(model.config)
        self.model, self.store = model, store
        self.folder = Folder(model, window, judging(strategy))
        self.lister = Lister(self.folder, strategy, random or np.random.default_rng())

    def warm_up(self) -> None:
        """Compile every shape and read the text encoder, so that no shopper waits for it."""
        if self.model.reads_text:
            longest = self.model.bert.config.max_position_embeddings
            for length in (length for length in LENGTH_BUCKETS if length <= longest):
                self.model.text_vector("a " * (length - 2))  # and the two around a text
        elsewhere = copy(self)
        elsewhere.store = SQLiteStore(":memory:")
        event = LiveEvent(0, "", self.model.trained.kind_names[0])
        for size in BATCHES:
            users = [str(number) for number in range(size)]
            # states of a store are folded by another program than those of the chunk before
            for events in (1, 2 * CHUNK + 1):
                elsewhere.record([Report(user, event) for user in users for _ in range(events)])
            elsewhere.recommend(users, k=1)
            shoppers, vectors = elsewhere.vectors(users)
            self.lister.warm_up(shoppers, vectors)
        for length, count in product(LISTS, PAIRS):
            self._profile(shoppers[0], unknown_items(count), 1, length)
        elsewhere.store.close()

    def record(self, reports: Sequence[Report]) -> list[Outcome]:
        """Fold events into the states of their users; durable when this returns.

        Raises:
            ValueError: a kind of event that the model does not know; nothing is recorded then.
            StoreError: the store fails, or others write the same users all the time. Events of
                some users may be recorded; those with an `event_id` can be sent again.
        """
        self._refuse_unknown({report.event.kind for report in reports})
        outcomes: list[Outcome] = ["accepted"] * len(reports)
        waiting: dict[str, list[int]] = defaultdict(list)
        for number, report in enumerate(reports):
            waiting[report.user_id].append(number)
        for _ in range(CONFLICTS):
            shoppers = self._load(list(waiting))
            changed = []
            for user_id, numbers in waiting.items():
                before = shoppers[user_id]
                after, became = self._changed(before, [reports[n].event for n in numbers])
                for number, outcome in zip(numbers, became, strict=True):
                    outcomes[number] = outcome
                if "accepted" in became:
                    changed.append((before, after))
            refused = self.store.save(self.folder.renewed(changed))
            waiting = {user_id: waiting[user_id] for user_id in refused}
            if not waiting:
                return outcomes
        raise StoreError(f"{len(waiting)} users are written by others all the time")

    def record_many(self, reports: Sequence[Report]) -> None:
        """`record`, some hundreds of users at a time, those with as many events together."""
        by_user: dict[str, list[Report]] = defaultdict(list)
        for report in reports:
            by_user[report.user_id].append(report)
        histories = sorted(by_user.values(), key=len)
        for start in range(0, len(histories), BATCHES[-1]):
            self.record(list(chain.from_iterable(histories[start : start + BATCHES[-1]])))

    def enter(self, events: pl.DataFrame) -> int:
        """Record the histories of the users whom the store lacks; how many these are.

        Args:
            events: validated, with columns as in `Tables.events`; kinds that the strategy alone
                reads are judgements.

        Raises:
            ValueError: an event of before 1970 or a position below 0, or of an unknown kind.
        """
        users = events["user_id"].unique()
        known = list(self.store.load(users.to_list()))
        fresh = events.filter(~pl.col("user_id").is_in(known)).sort(
            "timestamp", maintain_order=True
        )
        if (fresh["timestamp"] < 0).any():
            raise ValueError("events of before 1970, or at positions below 0, cannot be kept live")
        self._refuse_unknown(fresh["event"].unique())
        unit = 1000 if self.model.config.data.time == "timestamp" else 1
        ids = "event_id" if "event_id" in events.columns else pl.lit(None, pl.String)
        fresh = fresh.select("user_id", pl.col("timestamp") // unit, "item_id", "event", ids)
        self.record_many([Report(user, LiveEvent(*event)) for user, *event in fresh.iter_rows()])
        return len(users) - len(known)

    def load_states(self, table: pl.DataFrame) -> int:
        """Give shoppers the states that batch scoring has written; how many shoppers these are.

        A state stands for all events up to its last one; kept events that came later are folded
        behind it. So after a change of the model nothing is approximate, unless the kept events do
        not reach back to that last one: then a state of this model stays as it is, and another is
        replaced and called approximate. Users whom the store lacks are left out, as nothing tells
        what they have chosen.

        Args:
            table: `user_id`, `events`, `last_time` and `state`, as `serve.py --states` writes.
        """
        loaded = 0
        for part in table.iter_slices(BULK):
            rows = {row["user_id"]: row for row in part.iter_rows(named=True)}
            changed = []
            for user_id, shopper in self.store.load(list(rows)).items():
                row = rows[user_id]
                last_time = row["last_time"]
                if not row["events"]:
                    continue
                reaches_back = shopper.base_time <= last_time
                if not reaches_back and shopper.model == self.model.version:
                    continue
                folded = sum(event.time <= last_time for event in shopper.events)
                after = replace(
                    shopper,
                    state=None,  # to be folded from the base
                    base=np.array(row["state"], np.float32),
                    base_time=last_time,
                    base_ids=shopper.base_ids if shopper.base_time == last_time else frozenset(),
                    folded=folded,
                    forgotten=max(row["events"] - folded, 0),
                    approximate=not reaches_back,
                    model=self.model.version,
                )
                changed.append((after, after))
            refused = self.store.save(self.folder.renewed(changed))
            loaded += len(changed) - len(refused)
        return loaded

    def recommend(
        self,
        user_ids: Sequence[str],
        k: int = 10,
        *,
        target: str = ITEM,
        where: str = "",
        mask: tuple[str, ...] = (),
        kind: str = "",
        words: str = "",
        strength: float = 0.5,
        now: int | None = None,
    ) -> list[Answer]:
        """The k best items for every user, known or not.

        Args:
            target: any type of node of the graph, such as `brand`, in place of items.
            where: a condition on the items, as in `jaxrec.ranking.filters.where`, first.
            mask: what of a user's own events to leave out; by default as in the run's evaluation.
            kind: of event that is asked for; by default the one that the run was to predict.
            words: what the users look for, if they said so.
            strength: the share of the words in the scores, from 0 to 1; see
                `TrainedModel.steered`.
            now: seconds since the epoch, by which a session may be over, and which a model with
                `idle_times` is told; by default the moment of every user's last event.

        Raises:
            DataError: the condition cannot be used.
            ValueError: k, the mask or the strength does not fit, the model reads no text, or words
                are to steer a list of other nodes.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is not between 0 and 1")
        if words and target != ITEM:
            raise ValueError(f"words steer lists of items, not of {target}")
        self.model.check_request(k, target, ruled=bool(where or mask))
        kinds = self.model.trained.kind_names
        masked_kinds(mask, kinds)
        if not user_ids:
            return []
        if kind and kind not in kinds:
            raise ValueError(f"the model knows no event {kind}; give {', '.join(kinds)}")
        asked = kinds.index(kind) if kind else None
        lister = self.lister
        plan = lister.plan(where, self.folder.items.shape[1])[0] if target == ITEM else None
        shoppers, vectors = self.vectors(user_ids, asked, now)
        mixed = vectors
        if plan and plan.session:
            moments = None if now is None else np.full(len(shoppers), now)
            mixed = lister.with_session(shoppers, vectors, plan.session, moments, asked)
        moved = (mixed != vectors).any(1)[: len(shoppers), None]
        if words:
            mixed = self.model.steered(mixed, words, strength)
        if plan:
            pairs = lister.pairs(shoppers, mask or self.model.config.evaluation.mask, asked)
            if words:
                pairs = scaled(pairs, 1 - strength)
            ranked = lister.ranked(shoppers, mixed, pairs, k, where)
            ranked = ranked._replace(touched=ranked.touched | plan.bits(Session) * moved)
        else:
            ranked = lister.best_nodes(mixed, target, k)
        answers = [
            Answer(
                shopper.user_id,
                target,
                lister.places(target, Ranked(*row), plan, shopper),
                events=shopper.forgotten + len(shopper.events),
                approximate=shopper.approximate,
            )
            for shopper, *row in zip(shoppers, *ranked, strict=False)
        ]
        if plan and plan.explores:
            self.store.show(shown(answers, self.model.version))
        by_user = {answer.user_id: answer for answer in answers}
        return [by_user[user_id] for user_id in user_ids]

    def vectors(
        self,
        user_ids: Sequence[str],
        kind: int | None = None,
        now: Int[np.ndarray, " n"] | int | None = None,
    ) -> tuple[list[Shopper], Float[np.ndarray, "Q 1+ED"]]:
        """What is kept of users and their vectors; rows of no meaning may follow these.

        Args:
            now: when they ask (s), for a model that is told the time since the last event.
        """
        shoppers = list(self._load(user_ids).values())
        states = self.folder.states([shopper.state for shopper in shoppers])
        idle = np.zeros(0, np.int32)
        has_time = self.model.config.data.time == "timestamp"
        if now is not None and has_time and self.model.config.model.idle_times:
            last = np.array([shopper.last_time for shopper in shoppers])
            idle = np.where(last < 0, NO_GAP, np.clip(now - last, 0, MAX_GAP))
        return shoppers, self.folder.read(states, kind, idle)

    def profile(self, shopper: Shopper, *, last: int = 10, top: int = 5) -> pl.DataFrame:
        """What a user is interested in now, and how that moved; columns as in batch scoring.

        Args:
            shopper: what `history` returns.
            last: events over which the movement is told, of those that are kept.
            top: nodes of a type.
        """
        if last < 1 or top < 1:
            raise ValueError(f"last={last}, top={top}: give 1 or more of both")
        masked = self.lister.masked([shopper], self.model.config.evaluation.mask)
        return self._profile(shopper, masked, last, top)

    def _profile(self, shopper: Shopper, masked: PairBlocks, last: int, top: int) -> pl.DataFrame:
        earlier, _, _ = self.folder.earlier(shopper, last)
        states = self.folder.states([shopper.state, earlier])
        now, before = self.folder.read(states)[:2, None]
        length = at_least(top, LISTS)
        table = profile_table(
            self.model, pl.Series([shopper.user_id]), now, before, length, padded_blocks(masked)
        )
        return table.filter(pl.col("rank") <= top)

    def movement(
        self, shopper: Shopper, *, last: int = 20, top: int = 5
    ) -> tuple[str, list[str], Float[np.ndarray, "T K"]]:
        """How interest moved over the kept events: a type of node, the names of its strongest
        nodes, and their weights after each of the last events."""
        start, time_of_start, new = self.folder.earlier(shopper, last)
        if not new:
            return (*self.model.profiled_types, ITEM)[0], [], np.zeros((0, 0))
        jobs = [(start, time_of_start, new[: n + 1]) for n in range(len(new))]
        vectors = self.folder.read(self.folder.states(self.folder.after(jobs)))[: len(new)]
        name, rows, weights = interest_over_time(self.model, vectors, top)
        return name, self.model.names(name, rows).to_series(-1).to_list(), weights

    def history(self, user_id: str) -> Shopper:
        """What is kept of a user, with a state of this model."""
        return self._load([user_id])[user_id]

    def forget(self, user_id: str) -> bool:
        """Delete all that is kept of a user; whether there was anything."""
        return self.store.forget(user_id)

    def _refuse_unknown(self, kinds: Iterable[str]) -> None:
        unknown = set(kinds) - set(self.lister.kinds)
        if unknown:
            raise ValueError(
                f"the model knows no event {', '.join(sorted(unknown))}; "
                f"give {', '.join(self.lister.kinds)}"
            )

    def _changed(
        self, shopper: Shopper, events: Sequence[LiveEvent]
    ) -> tuple[Shopper, list[Outcome]]:
        """A document with the events that it lacks and whose place is not forgotten."""
        known = {event.event_id for event in (*shopper.events, *shopper.feedback)}
        known |= shopper.base_ids
        kinds = self.model.trained.kind_names
        outcomes, read, judged = list[Outcome](), list[LiveEvent](), list[LiveEvent]()
        for event in events:
            if event.event_id is not None and event.event_id in known:
                outcomes.append("duplicate")
            elif event.kind in kinds and event.time < shopper.base_time:
                outcomes.append("too_late")
            else:
                outcomes.append("accepted")
                known.add(event.event_id)
                (read if event.kind in kinds else judged).append(event)
        feedback = newest_of_kinds(merged(shopper.feedback, judged), 2 * self.folder.window)
        after = replace(shopper, feedback=feedback)
        return with_events(after, read, self.folder.place), outcomes

    def _load(self, user_ids: Sequence[str]) -> dict[str, Shopper]:
        """Documents of users in their order, under this model, new ones for newcomers."""
        found = self.store.load(user_ids)
        shoppers = {user_id: found.get(user_id, Shopper(user_id)) for user_id in user_ids}
        stale = [s for s in found.values() if s.model != self.model.version]
        if stale:
            shoppers |= {s.user_id: s for s in self.folder.renewed([(s, s) for s in stale])}
        return shoppers


def check_live_run(config: Config) -> None:
    """Raise a ValueError for a run that cannot be served live."""
    if config.data.drop_repeats:
        raise ValueError("the run left repeated events out (data.drop_repeats); train without")


def reports_of(log: EventLog, model: TrainedModel) -> list[Report]:
    """The events of a log in its order; items that the catalogue lacks have no name."""
    users = log.user_ids.gather(np.repeat(np.arange(log.num_users), log.lengths))
    items = model.catalog.item_ids.gather(log.items).fill_null("")
    kinds = [log.kind_names[kind] for kind in log.kinds]
    return [
        Report(user, LiveEvent(time, item, kind))
        for user, time, item, kind in zip(users, log.times.tolist(), items, kinds, strict=True)
    ]


def shown(answers: Sequence[Answer], model: str) -> list[Shown]:
    """Answers as the store keeps them."""
    return [
        Shown(
            answer.user_id,
            int(time.time()),
            model,
            tuple(place.id for place in answer.places),
            tuple(place.propensity for place in answer.places),
        )
        for answer in answers
    ]
