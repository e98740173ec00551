"""A trained run at work: raw events in, recommendations out, for users seen in training or not."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.config import Config
from jaxrec.data.dataset import predicted_event_types, target_event_type
from jaxrec.data.events import build_event_log, some_events
from jaxrec.data.extend import extend_catalog
from jaxrec.data.graph import ITEM
from jaxrec.data.tables import validate_tables, without_consecutive_repeats
from jaxrec.data.text import resolve_pretrained
from jaxrec.evaluation.calibration import Correction, with_prior
from jaxrec.evaluation.protocol import history_adjustments, mask_adjustments, masked_event_types
from jaxrec.inference.audiences import (
    audience_table,
    choice_log_probability,
    member_items,
    merge,
    nobody,
)
from jaxrec.inference.encoding import (
    catalog_arrays,
    encode_catalog,
    read_states,
    repeat_bias,
    user_states,
    user_vectors,
)
from jaxrec.inference.profiles import plot_user, profile_users
from jaxrec.inference.text_features import new_item_text
from jaxrec.models.recommender import ModelDef, Params
from jaxrec.models.sequence.lstm import InterestState
from jaxrec.models.text.bert import Bert, load_bert
from jaxrec.ranking.filters import Rules
from jaxrec.ranking.pipeline import RerankPipeline, UserAdjustments, plan, rerank
from jaxrec.ranking.steps import Step, feedback_types, steps_of
from jaxrec.ranking.top_k import AdjustmentBlocks, best_items, masked_items, no_adjustments
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, Catalog, EventLog, NodeType, Queries


@dataclass(frozen=True)
class Recommendations:
    """Lists of recommendations as a table, and what the rules took out of them."""

    table: pl.DataFrame  # user_id, rank, item_id, score, title
    removed: dict[str, int]  # rule -> entries of lists passed over
    short: dict[str, int]  # users for whom fewer than k are left -> how many


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of a run, with all that scoring needs."""

    config: Config
    step: int
    trained: RunArtifacts
    catalog: Catalog  # that of training, or a larger one
    definition: ModelDef
    params: Params
    vectors: Float[Array, "N 1+ED"]  # of all nodes with their priors, items first
    text: Float[Array, "I Dt"]  # of the items, whitened
    inverse_temperature: float  # of the scores, for probabilities
    correction: Correction
    mesh: Mesh
    notes: tuple[str, ...] = ()

    @cached_property
    def version(self) -> str:
        """A hash of all that is folded: states of another version are of no use to this one."""
        return hashlib.sha256(np.asarray(self.vectors)[:, 1:].tobytes()).hexdigest()

    @property
    def items(self) -> Float[Array, "I 1+ED"]:
        """Vectors of the item block."""
        return self.block(ITEM)

    def block(self, type_name: str) -> Float[Array, "n 1+ED"]:
        """Vectors of a block of nodes."""
        node_type = self.node_type(type_name)
        return self.vectors[node_type.offset : node_type.offset + node_type.padded_size]

    def node_type(self, name: str) -> NodeType:
        """A block of the graph; raises a ValueError that lists them."""
        return self.catalog.graph.type(name)

    def valid(self, type_name: str = ITEM) -> Bool[np.ndarray, " n"]:
        """Rows of a block that are nodes; see `NodeType.valid`."""
        return self.node_type(type_name).valid

    def with_items(
        self, items: pl.DataFrame, triples: pl.DataFrame | None = None
    ) -> "TrainedModel":
        """The same model over a catalogue with more items, encoded from text and graph alone.

        Raises:
            DataError: the tables cannot be used; see `extend_catalog`.
            ValueError: this model has new items already.
        """
        if self.catalog is not self.trained.catalog:
            raise ValueError("the model has new items already; add all of them in one table")
        extension = extend_catalog(self.catalog, items, triples)
        catalog = extension.catalog
        fresh = new_item_text(
            catalog.items[extension.num_old :],
            self.config,
            self.trained.whitening,
            self.definition.merge(self.params).text_tower,
        )
        text = np.concatenate([np.asarray(self.text)[: extension.num_old], fresh])
        new = (0, len(text) - len(self.trained.counts))
        counts, with_ids = np.pad(self.trained.counts, new), np.pad(self.trained.with_ids, new)
        arrays = catalog_arrays(catalog, text, with_ids, extension.entities)
        vectors = encode_catalog(self.definition, self.params, arrays)
        return replace(
            self,
            catalog=catalog,
            text=arrays.nodes.text,
            vectors=with_prior(vectors, self.correction.prior(counts)),
            notes=(*self.notes, *extension.notes),
        )

    def event_log(self, events: pl.DataFrame, judged: Sequence[str] = ()) -> EventLog:
        """Raw events as the model reads them; items that the catalogue lacks are unknown ones.

        Args:
            judged: event_types that the model need not know, as a strategy reads them.

        Raises:
            DataError: the events cannot be used; the message says which and why.
        """
        if "event" not in events.columns and len(self.trained.event_type_names) == 1:
            events = events.with_columns(pl.lit(self.trained.event_type_names[0]).alias("event"))
        table = validate_tables(events, None, None, time=self.config.data.time).events
        return self.valid_log(table, judged)

    def valid_log(self, events: pl.DataFrame, judged: Sequence[str] = ()) -> EventLog:
        """Validated events as the model reads them, with those of other event_types that are judged."""
        if self.config.data.drop_repeats:
            known = pl.col("event").is_in(self.trained.event_type_names)
            read = without_consecutive_repeats(events.filter(known))
            events = pl.concat([read, events.filter(~known)])
        return build_event_log(
            events,
            self.catalog.item_ids,
            item_ties=self.config.data.ties == "item_id",
            has_time=self.config.data.time == "timestamp",
            event_type_names=self.event_types_with(judged),
        )

    def event_types_with(self, judged: Sequence[str]) -> tuple[str, ...]:
        """The event types that the model knows, then those that are judged beside them."""
        return tuple(dict.fromkeys((*self.trained.event_type_names, *judged)))

    def known_events(self, log: EventLog) -> EventLog:
        """What of a log the model reads, for all of its users."""
        names = self.trained.event_type_names
        if log.event_type_names == names:
            return log
        return replace(some_events(log, log.event_types < len(names)), event_type_names=names)

    def states(self, log: EventLog) -> tuple[InterestState, ...]:
        """The state of every user of a log, one part an expert."""
        evaluation = self.config.evaluation
        return user_states(
            self.definition,
            self.params,
            self.items,
            log,
            history=evaluation.history,
            users=self._rows(log.num_users),
        )

    def user_vectors(
        self,
        states: tuple[InterestState, ...],
        event_type: int | None = None,
        time_since_last: Int[np.ndarray, " U"] | int = NO_GAP,
    ) -> Float[np.ndarray, "U 1+ED"]:
        """User vectors of states; products with node vectors are scores.

        Args:
            event_type: of event that is asked for; by default `target_event_type`.
            time_since_last: seconds since the last event, for a model with `time_since_last`.
        """
        event_type = self.target_event_type if event_type is None else event_type
        return np.asarray(
            read_states(self.definition, self.params, states, event_type, time_since_last)
        )

    @property
    def target_event_type(self) -> int:
        """The one event type that the run was to predict, or ANY_EVENT_TYPE."""
        return target_event_type(self.config, self.trained.event_type_names)

    def is_predicted(self, event_type: str) -> bool:
        """Whether evaluation asks for events of a event_type."""
        return event_type in predicted_event_types(self.config, self.trained.event_type_names)

    def recommend(
        self,
        events: pl.DataFrame,
        k: int = 10,
        *,
        target: str = ITEM,
        approximate: bool = False,
        strategy: Sequence[Step] = (),
        **rules,
    ) -> pl.DataFrame:
        """The k best items for every user of `events`, whether training has seen them or not.

        Args:
            events: `user_id`, `item_id`, `timestamp` and, where the model knows several event types of
                event, `event`. Items that the catalogue lacks are read as unknown ones.
            target: any type of node of the graph, such as `brand`, in place of items.
            approximate: search as TPUs do best; see `best_items`.
            strategy: steps in their order, such as `read_strategy` returns, in place of rules.
            rules: fields of `jaxrec.ranking.filters.Rules`, such as `where="price < 50"`.

        Returns:
            `user_id`, `rank` (from 1), `item_id` (or the type's name), `score`, and `title` where
            items have one. A user for whom fewer than k items are left gets fewer rows.

        Raises:
            DataError: the events or a rule cannot be used; the message says which and why.
            ValueError: k or another option does not fit.
        """
        given = Rules(**rules)
        plan = self.plan(strategy, given)
        self.check_request(k, target, ruled=bool(plan.steps or given.mask))
        histories = self.event_log(events, feedback_types(strategy))
        log = self.known_events(histories)
        vectors = self.user_vectors(self.states(log))
        return self.recommend_users(
            log,
            vectors,
            k,
            plan,
            histories=histories,
            mask=given.mask,
            target=target,
            approximate=approximate,
        ).table

    def plan(self, strategy: Sequence[Step] = (), rules: Rules | None = None) -> RerankPipeline:
        """The steps of a strategy or of rules, ready for the catalogue.

        Raises:
            ValueError: both are given, or see `jaxrec.ranking.top_k.pipeline.plan`.
        """
        steps = steps_of(rules or Rules())
        if strategy and steps:
            raise ValueError(f"a strategy names its own steps; make {steps[0].name} one of them")
        return plan(strategy or steps, self.catalog, self.trained.counts, self.valid())

    def check_request(self, k: int, target: str, *, ruled: bool = False) -> None:
        """Raise a ValueError for a list that the model cannot make.

        Args:
            ruled: whether rules are to act on it.
        """
        count = self.node_type(target).count - 1
        if not 1 <= k <= count:
            raise ValueError(f"k={k}: give a number from 1 to {count:,}, the {target}s there are")
        if target != ITEM and ruled:
            raise ValueError(f"rules are for items; leave them out to rank the type {target}")

    def recommend_users(
        self,
        log: EventLog,
        vectors: Float[np.ndarray, "U 1+ED"],
        k: int,
        plan: RerankPipeline,
        *,
        histories: EventLog | None = None,
        mask: tuple[str, ...] = (),
        target: str = ITEM,
        approximate: bool = False,
    ) -> Recommendations:
        """`recommend` for the users of a log whose vectors are known.

        Args:
            histories: the log with judgements that the model does not know, if there are any.
        """
        if target != ITEM:
            top = best_items(
                vectors,
                self.block(target),
                no_adjustments,
                self.valid(target),
                k,
                with_log_z=False,
                approximate=approximate,
                mesh=self.mesh,
            )
            ranked, scores, removed = top.items, top.scores, {}
        else:
            if plan.session:
                alone = self.user_vectors(self.states(plan.session.events(log)))
                vectors = plan.session.mixed(vectors, alone)
            lists = rerank(
                vectors,
                self.items,
                self.pairs(log, mask),
                k,
                plan,
                histories=histories or log,
                random=np.random.default_rng(zlib.crc32("\n".join(log.user_ids).encode())),
                approximate=approximate,
                mesh=self.mesh,
            )
            ranked, scores = lists.ranked.items, lists.ranked.scores
            masked = self.masked(log, mask)(0, log.num_users)
            distinct = np.unique((masked.rows * len(self.valid()) + masked.items)[masked.items > 0])
            removed = {"mask": len(distinct), **lists.removed}
        counts = (ranked > 0).sum(1)
        few = np.flatnonzero(counts < k)
        short = dict(zip(log.user_ids.gather(few).to_list(), counts[few].tolist(), strict=True))
        return Recommendations(self._table(log.user_ids, ranked, scores, target), removed, short)

    def masked(self, log: EventLog, mask: tuple[str, ...] = ()) -> AdjustmentBlocks:
        """What a mask, by default the run's, leaves out for the users of a log."""
        queries = Queries(np.arange(log.num_users), log.offsets[1:])
        return mask_adjustments(log, queries, mask or self.config.evaluation.mask)

    def pairs(self, log: EventLog, mask: tuple[str, ...] = ()) -> UserAdjustments:
        """What the histories of users of a log change in the scores of their items: what a mask,
        by default the run's, leaves out, and what is familiar."""
        mask = mask or self.config.evaluation.mask
        repeat_bias = self.repeat_bias(self.target_event_type)

        def of(users: Int[np.ndarray, " R"]) -> AdjustmentBlocks:
            return history_adjustments(
                log, Queries(users, log.offsets[users + 1]), mask, repeat_bias
            )

        return of

    def repeat_bias(self, event_type: int) -> Float[np.ndarray, "event_types A"]:
        """What events add to the scores of their items, where an event type is asked for."""
        return self._familiarity[event_type + 1]

    @cached_property
    def _familiarity(self) -> Float[np.ndarray, "wanted event_types A"]:
        wanted = range(ANY_EVENT_TYPE, len(self.trained.event_type_names))
        learned = [repeat_bias(self.definition, self.params, event_type) for event_type in wanted]
        counted = ~masked_event_types(self.config.evaluation.mask, self.trained.event_type_names)
        return self.correction.repeat_bias(np.stack(learned), counted)

    def similar(self, entity: str, k: int = 10) -> pl.DataFrame:
        """The nodes of the same type that are most like one: `similar("item:B00IJ9")`.

        Returns:
            `rank`, `item_id` (or the type's name), `cosine` (the mean over the experts), `title`.

        Raises:
            ValueError: no such type or node, or k does not fit.
        """
        name, node = self.find(entity)
        count = self.node_type(name).count - 2
        if not 1 <= k <= count:
            raise ValueError(f"k={k}: give a number from 1 to {count:,}, the other {name}s")
        units = self.unit_block(name)
        itself = masked_items(np.zeros(1, np.int64), np.array([node]))
        top = best_items(
            units[[node]], units, lambda *_: itself, self.valid(name), k, with_log_z=False
        )
        table = self._table(pl.Series([entity]), top.items, top.scores, name)
        return table.drop("user_id").rename({"score": "cosine"})

    def unit_block(self, type_name: str) -> Float[np.ndarray, "n ED"]:
        """Vectors of a block at length 1, without priors: their products are likenesses."""
        return unit_rows(np.asarray(self.block(type_name))[:, 1:])

    def find(self, entity: str) -> tuple[str, int]:
        """Type and local id of a node named as `brand:NAME`.

        Raises:
            ValueError: no such type or node.
        """
        name, separator, identity = entity.partition(":")
        if not separator:
            raise ValueError(f"{entity!r}: write TYPE:ID, such as item:42 or brand:NAME")
        found = (self.node_type(name).ids == identity).arg_true()
        if not len(found):
            raise ValueError(f"there is no {name} {identity!r} in the catalogue")
        return name, int(found[0])

    def audience(
        self,
        events: pl.DataFrame,
        entity: str,
        size: int = 1000,
        *,
        bid: float | None = None,
        mask: tuple[str, ...] = (),
    ) -> pl.DataFrame:
        """The users of `events` who most likely choose an item, or an item of an entity, next.

        Args:
            entity: `item:ID`, `brand:NAME` and so on.
            size: the most users to return.
            bid: paid for a choice; adds `ecpm`, the expected pay of a thousand impressions.
            mask: what a user's own history rules out, in place of the run's `evaluation.mask`.

        Returns:
            `rank`, `user_id`, `probability`, and `ecpm` with a bid; the likeliest first.

        Raises:
            DataError, ValueError: the events or an option cannot be used.
        """
        log = self.event_log(events)
        log_p = self.choice_log_probability(log, self.user_vectors(self.states(log)), entity, mask)
        return audience_table(merge(nobody(), log.user_ids, log_p, size), bid)

    def choice_log_probability(
        self,
        log: EventLog,
        vectors: Float[np.ndarray, "U 1+ED"],
        entity: str,
        mask: tuple[str, ...],
    ) -> Float[np.ndarray, " U"]:
        """log of the chance that each user of a log chooses an entity next; see `audience`."""
        name, node = self.find(entity)
        members = member_items(self.catalog.graph, self.node_type(name).offset + node)
        if not len(members):
            raise ValueError(f"{entity} has no items, so nobody can choose one")
        pairs = self.pairs(log, mask)(np.arange(log.num_users))
        return choice_log_probability(
            vectors, self.items, members, pairs, self.valid(), self.inverse_temperature
        )

    def profile(self, events: pl.DataFrame, *, last: int = 10, top: int = 5) -> pl.DataFrame:
        """What every user of `events` is interested in now, and how that moved.

        Args:
            last: events over which the movement is told.
            top: nodes of a type.

        Returns:
            `user_id`, `type` (each type of node that training predicts, then `item`), `rank`,
            `id`, `weight` (the share of the user's interest in that type), `before` (its weight
            `last` events ago) and `change`; `title` for items that have one. Items that the
            run's evaluation leaves out of a user's ranking are left out here.

        Raises:
            DataError, ValueError: the events or an option cannot be used.
        """
        if last < 1 or top < 1:
            raise ValueError(f"last={last}, top={top}: give 1 or more of both")
        log = self.event_log(events)
        return profile_users(self, log, self.user_vectors(self.states(log)), last, top)

    @property
    def reads_text(self) -> bool:
        """Whether the model knows what words mean."""
        return self.trained.whitening is not None and bool(self.text_columns)

    def text_vector(self, words: str) -> Float[np.ndarray, " Dt"]:
        """The whitened text vector of words, at length 1.

        Raises:
            ValueError: the model reads no text.
        """
        if not self.reads_text:
            raise ValueError("the model reads no text, so words cannot steer it")
        item = pl.DataFrame({self.text_columns[0]: [words]})
        tower = self.definition.merge(self.params).text_tower
        text = new_item_text(item, self.config, self.trained.whitening, tower, self.bert)
        return unit_rows(text)[0]

    @cached_property
    def items_with_text(self) -> Float[Array, "I 1+ED+Dt"]:
        """Vectors of the item block and, behind them, those of the items' texts at length 1."""
        return jnp.concatenate([self.items, jnp.asarray(unit_rows(np.asarray(self.text)))], axis=1)

    def steered(
        self, vectors: Float[np.ndarray, "Q 1+ED"], words: str, strength: float
    ) -> Float[np.ndarray, "Q 1+ED+Dt"]:
        """User vectors whose products with `items_with_text` are scores that words have moved.

        A score becomes (1 - strength) of itself and strength times the cosine of the item's text
        and the words, at the length of the user's highest possible score.
        """
        parts = vectors[:, 1:].reshape(len(vectors), len(self.config.model.experts), -1)
        lengths = np.linalg.norm(parts, axis=2)
        towards = lengths.sum(1, keepdims=True) * self.text_vector(words)
        return np.concatenate([(1 - strength) * vectors, strength * towards], axis=1)

    @cached_property
    def bert(self) -> Bert:
        """The pretrained text encoder, read when it is first needed."""
        return load_bert(resolve_pretrained(self.config.text.pretrained))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The plain text columns of the items."""
        schema = self.catalog.items.schema
        names = self.config.data.text_columns
        return tuple(name for name in names if schema.get(name) == pl.String)

    def plot_profile(
        self, events: pl.DataFrame, user: str, path: Path, *, last: int = 20, top: int = 6
    ) -> None:
        """Draw how a user's interest in the first profiled type of node moved into a PNG file.

        Raises:
            ValueError: `events` holds no such user.
        """
        theirs = events.filter(pl.col("user_id").cast(pl.String) == user)
        if theirs.is_empty():
            raise ValueError(f"the events hold no user {user!r}")
        plot_user(self, self.event_log(theirs), path, last=last, top=top)

    @property
    def profiled_types(self) -> tuple[str, ...]:
        """The types of node beside items that training learned to predict."""
        present = {node_type.name for node_type in self.catalog.graph.types}
        return tuple(name for name in self.config.train.auxiliary if name in present)

    def vectors_at(self, log: EventLog, queries: Queries) -> Float[np.ndarray, "Q 1+ED"]:
        """User vectors at moments of their histories."""
        evaluation = self.config.evaluation
        return user_vectors(
            self.definition,
            self.params,
            self.items,
            log,
            queries,
            history=evaluation.history,
            users=self._rows(len(queries)),
            target_event_type=self.target_event_type,
        )

    def _rows(self, users: int) -> int:
        """Users to fold at a time: a power of two, as a few users need no large batch."""
        return min(self.config.evaluation.users, 1 << max(users - 1, 0).bit_length())

    def names(self, type_name: str, rows: Int[np.ndarray, " n"]) -> pl.DataFrame:
        """`item_id` and `title`, or the type's name, of nodes of a block."""
        if type_name != ITEM:
            return pl.DataFrame({type_name: self.node_type(type_name).ids.gather(rows)})
        found = self.catalog.items[rows]
        if "title" not in found.columns:
            return found.select("item_id")
        title = pl.col("title")
        if isinstance(found.schema["title"], pl.List):
            title = title.cast(pl.List(pl.String)).list.join(" ")
        return found.select("item_id", title.cast(pl.String))

    def labels(self, items: Int[np.ndarray, " n"]) -> pl.Series:
        """What to call items in front of people."""
        known = self.names(ITEM, items)
        return known.select(
            pl.coalesce(*reversed(known.columns), pl.lit("unknown item")).alias("label")
        ).to_series()

    def _table(
        self, user_ids: pl.Series, ranked: np.ndarray, scores: np.ndarray, type_name: str
    ) -> pl.DataFrame:
        users, places = np.nonzero(ranked > 0)
        table = pl.DataFrame(
            {
                "user_id": user_ids.gather(users),
                "rank": (places + 1).astype(np.int32),
                "score": scores[users, places].astype(np.float32),
            }
        )
        found = self.names(type_name, ranked[users, places])
        first, *rest = found.columns
        return pl.concat([table, found], how="horizontal").select(
            "user_id", "rank", first, "score", *rest
        )


def unit_rows(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Vectors divided by their lengths; those of no length stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
