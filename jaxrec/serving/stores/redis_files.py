"""Has a Redis or Valkey server write its files anew, without what it has deleted."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis

from jaxrec.errors import StoreError

FILE_SECONDS = 600.0  # to wait until the server has written a file
POLL_SECONDS = 0.1
AT_WORK = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")


def rewrite_files(client: redis.Redis) -> list[str]:
    """Rewrite the append-only file and save a snapshot, where the server keeps them.

    Waits for each until it is written, `FILE_SECONDS` at most.

    Returns:
        What may hold earlier content, and why; empty if nothing does.
    """
    save = partial(client.bgsave, schedule=False)
    work = (
        ("append-only file", _keeps_log, client.bgrewriteaof, "aof_last_bgrewrite_status"),
        ("snapshot", _keeps_snapshots, save, "rdb_last_bgsave_status"),
    )
    notes = list[str]()
    for file, is_kept, write, status in work:
        try:
            if is_kept(client):
                _write(client, write, status)
        except (redis.RedisError, StoreError) as error:
            notes.append(f"the {file} of Redis may hold earlier content: {error}")
    return notes


def _keeps_log(client: redis.Redis) -> bool:
    return bool(_persistence(client)["aof_enabled"])


def _keeps_snapshots(client: redis.Redis) -> bool:
    """Whether the server saves snapshots by itself, or has saved one since it was started."""
    return bool(_persistence(client).get("rdb_saves") or client.config_get("save").get("save"))


def _write(client: redis.Redis, write: Callable[[], Any], status: str) -> None:
    """Have a file written; raises a StoreError if that fails or takes too long.

    Args:
        status: what the server says of the last attempt, by its name.
    """
    _wait(client)  # what the server writes already may hold what was deleted since it began
    write()
    _wait(client)
    if _persistence(client)[status] != "ok":
        raise StoreError("the server could not write it; see the log of the server")


def _wait(client: redis.Redis) -> None:
    """Wait until the server writes no file; raises a StoreError after `FILE_SECONDS`."""
    deadline = time.monotonic() + FILE_SECONDS
    while any(_persistence(client).get(name) for name in AT_WORK):
        if time.monotonic() > deadline:
            raise StoreError(f"the server still writes its files after {FILE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _persistence(client: redis.Redis) -> dict[str, Any]:
    return client.info("persistence")
