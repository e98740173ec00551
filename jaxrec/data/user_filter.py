"""Which users of a file of events are read, and under which ids."""

from dataclasses import dataclass, field

import polars as pl

from jaxrec.data.columns import as_text
from jaxrec.data.forgotten import Forgotten
from jaxrec.data.pseudonyms import pseudonyms


@dataclass(frozen=True)
class UserFilter:
    """Which users of a file of events are read, and under which ids."""

    keep: pl.Series | None = None  # ids (text or integers) in the file; None: all users
    forgotten: Forgotten = field(default_factory=Forgotten)
    id_key: bytes = field(default=b"", repr=False)  # ids become keyed hashes; empty: they stay

    def stored(self, ids: pl.Series, table: str) -> pl.Series:
        """Ids of a file as they are kept; raises a DataError for values that are no ids."""
        ids = as_text(ids, table)
        if not self.id_key:
            return ids
        self.forgotten.add_pseudonyms(self.id_key, ids)
        return pseudonyms(self.id_key, ids).cast(pl.String)

    def listed(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events of the users in `keep`."""
        if self.keep is None:
            return events
        return events.filter(pl.col("user_id").is_in(self.keep.implode()))

    def read(self, events: pl.DataFrame, *, has_time: bool) -> pl.DataFrame:
        """The events to read; see `Forgotten.events_of`."""
        events = self.listed(events)
        return events.filter(~self.forgotten.events_of(events, has_time=has_time))
