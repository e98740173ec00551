"""Which users of a file of events are read."""

from dataclasses import dataclass, field

import polars as pl

from jaxrec.data.forgotten import Forgotten


@dataclass(frozen=True)
class UserFilter:
    """Which users of a file of events are read."""

    keep: pl.Series | None = None  # ids (text or integers); None: all users
    forgotten: Forgotten = field(default_factory=Forgotten)

    def listed(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events of the users in `keep`."""
        if self.keep is None:
            return events
        return events.filter(pl.col("user_id").is_in(self.keep.implode()))

    def read(self, events: pl.DataFrame, *, has_time: bool) -> pl.DataFrame:
        """The events to read; see `Forgotten.events_of`."""
        events = self.listed(events)
        return events.filter(~self.forgotten.events_of(events, has_time=has_time))
