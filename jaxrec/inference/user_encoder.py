"""Encodes raw events to user states and user vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from jaxrec.config import Config
from jaxrec.data.dataset import predicted_event_types, target_event_type
from jaxrec.data.events import build_event_log, some_events
from jaxrec.data.pseudonyms import pseudonyms
from jaxrec.data.tables import validate_tables, without_consecutive_repeats
from jaxrec.errors import DataError
from jaxrec.inference.encoding import encode_queries, encode_users, user_vectors
from jaxrec.models.recommender import Model
from jaxrec.types import NO_GAP, EventLog, Queries


@dataclass(frozen=True)
class UserEncoder:
    """Reads users' events with a trained model."""

    config: Config
    model: Model
    event_type_names: tuple[str, ...]  # that the model knows
    item_ids: pl.Series  # in index order; the first is null
    items: Float[Array | np.ndarray, "I F"]  # vectors; arrays of NumPy may change
    id_key: bytes = field(default=b"", repr=False)  # of the user ids; empty: they stay as they are

    def event_log(
        self, events: pl.DataFrame | pl.LazyFrame, feedback_types: Sequence[str] = ()
    ) -> EventLog:
        """Raw events as a log; items that are not in the catalogue become the unknown item, and
        user ids become pseudonyms if the run has a key.

        Args:
            feedback_types: event types that only a strategy reads.

        Raises:
            DataError: the events cannot be used; the message says which and why.
        """
        events = collected(events, "events")
        if "event" not in events.columns and len(self.event_type_names) == 1:
            events = events.with_columns(pl.lit(self.event_type_names[0]).alias("event"))
        table = validate_tables(events, None, None, time=self.config.data.time).events
        if self.id_key:
            table = table.with_columns(pseudonyms(self.id_key, table["user_id"]))
        return self.validated_log(table, feedback_types)

    def validated_log(self, events: pl.DataFrame, feedback_types: Sequence[str] = ()) -> EventLog:
        """`event_log` of validated events."""
        if self.config.data.drop_repeats:
            known = pl.col("event").is_in(self.event_type_names)
            distinct = without_consecutive_repeats(events.filter(known))
            events = pl.concat([distinct, events.filter(~known)])
        return build_event_log(
            events,
            self.item_ids,
            item_ties=self.config.data.ties == "item_id",
            has_time=self.config.data.time == "timestamp",
            event_type_names=self.event_types_with(feedback_types),
        )

    def event_types_with(self, feedback_types: Sequence[str]) -> tuple[str, ...]:
        """The event types of the model, then those that only a strategy reads."""
        return tuple(dict.fromkeys((*self.event_type_names, *feedback_types)))

    def known_events(self, log: EventLog) -> EventLog:
        """The log, with all its users, without event types that the model does not know."""
        names = self.event_type_names
        if log.event_type_names == names:
            return log
        known = some_events(log, log.event_types < len(names))
        return replace(known, event_type_names=names)

    @property
    def target_event_type(self) -> int:
        """The one event type that the run predicts, or ANY_EVENT_TYPE."""
        return target_event_type(self.config, self.event_type_names)

    def is_predicted(self, event_type: str) -> bool:
        """Whether evaluation predicts events of a type."""
        return event_type in predicted_event_types(self.config, self.event_type_names)

    def states(self, log: EventLog) -> Float[np.ndarray, "U S"]:
        """The state of every user of a log after all their events."""
        return encode_users(
            self.model,
            self.items,
            log,
            history=self.config.evaluation.history,
            users=self._batch_size(log.num_users),
        )

    def vectors(
        self,
        states: Float[np.ndarray, "U S"],
        event_type: int | None = None,
        time_since_last: Int[np.ndarray, " U"] | int = NO_GAP,
    ) -> Float[np.ndarray, "U F"]:
        """User vectors of states; their products with node vectors are scores.

        Args:
            event_type: the event type to predict; by default `target_event_type`.
            time_since_last: seconds since the last event, for a model that reads it.
        """
        target = self.target_event_type if event_type is None else event_type
        return np.asarray(user_vectors(self.model, states, target, time_since_last))

    def vectors_at(self, log: EventLog, queries: Queries) -> Float[np.ndarray, "Q F"]:
        """User vectors before positions of a log."""
        return encode_queries(
            self.model,
            self.items,
            log,
            queries,
            history=self.config.evaluation.history,
            users=self._batch_size(len(queries)),
            target_event_type=self.target_event_type,
        )

    def _batch_size(self, users: int) -> int:
        """A power of two, as a few users need no large batch."""
        return min(self.config.evaluation.users, 1 << max(users - 1, 0).bit_length())


def collected(table: pl.DataFrame | pl.LazyFrame, name: str) -> pl.DataFrame:
    """A table in memory.

    Args:
        name: what the table holds, for messages.

    Raises:
        DataError: it is not a table of polars, or a column holds Python objects.
    """
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    if not isinstance(table, pl.DataFrame):
        kind = type(table).__name__
        raise DataError(f"{name}: {kind} is not a polars DataFrame; pl.DataFrame(...) makes one")
    for column, kind in table.schema.items():
        if kind == pl.Object:
            raise DataError(
                f"{name}, column {column!r}: Python objects; convert them to text or numbers"
            )
    return table
