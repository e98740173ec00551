"""What a store may keep: rules that all stores share."""

import math
from dataclasses import dataclass

from jaxrec.errors import StoreError

ALWAYS_ALLOWED = 1000  # documents that may expire at once, whatever their share


@dataclass(frozen=True)
class Retention:
    """What a store may keep.

    Attributes:
        before: documents that were not written since then (s) expire.
        max_users: the oldest documents beyond this number expire.
        max_bytes: of the store; if it holds more, the oldest users go in proportion.
        max_share: the share of documents that may expire at once, so that a wrong clock does not
            delete all users. `ALWAYS_ALLOWED` documents may always go.
        tombstones_before: older tombstones (s) expire, and the oldest beyond `max_users`.
    """

    before: float
    max_users: int
    max_bytes: float = math.inf
    max_share: float = 0.2
    tombstones_before: float = 0.0

    def most_users(self, count: int, num_bytes: int) -> int:
        """How many of `count` users may stay in a store that takes so many bytes."""
        share = min(1.0, self.max_bytes / max(num_bytes, 1))
        return min(self.max_users, int(share * count))

    def number_to_delete(self, count: int, num_old: int, num_bytes: int) -> int:
        """How many of `count` documents expire, the oldest first.

        Args:
            num_old: documents that are too old.
            num_bytes: that the store takes.

        Raises:
            StoreError: more than `max_share` and `ALWAYS_ALLOWED` documents would expire.
        """
        number = max(num_old, count - self.most_users(count, num_bytes), 0)
        if number > max(ALWAYS_ALLOWED, self.max_share * count):
            raise StoreError(
                f"{number:,} of {count:,} users would expire at once, above --expire-share "
                f"{self.max_share:g}; nothing was deleted. Check the clock, --keep-days, "
                "--keep-users and --keep-gigabytes, or allow it with --expire-share 1"
            )
        return number
