"""How many documents expire: rules that all stores share."""

from jaxrec.errors import StoreError

ALWAYS_ALLOWED = 1000  # documents that may expire at once, whatever their share


def share_within(max_bytes: float, used: int) -> float:
    """The share of its content that a store may keep."""
    return min(1.0, max_bytes / max(used, 1))


def number_to_delete(count: int, num_old: int, max_users: int, max_share: float) -> int:
    """How many of `count` documents expire, the oldest first.

    Args:
        num_old: documents that are too old.
        max_share: the share of all documents that may expire at once.

    Raises:
        StoreError: more than `max_share` and `ALWAYS_ALLOWED` documents would expire.
    """
    number = max(num_old, count - max_users, 0)
    if number > max(ALWAYS_ALLOWED, max_share * count):
        raise StoreError(
            f"{number:,} of {count:,} users would expire at once, above --expire-share "
            f"{max_share:g}; nothing was deleted. Check the clock, --keep-days, --keep-users and "
            "--keep-gigabytes, or allow it with --expire-share 1"
        )
    return number
