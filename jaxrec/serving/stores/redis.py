"""A store in Redis or Valkey, which workers on several machines share."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from jaxrec.data.pseudonyms import keyed_hash, new_key
from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import (
    MAX_IMPRESSIONS,
    NEVER,
    Impression,
    Loaded,
    UserDocument,
    first_version,
)
from jaxrec.serving.stores.documents import StoredRow, decode_each, encode
from jaxrec.serving.stores.redis_files import rewrite_files
from jaxrec.serving.stores.redis_items import RedisItems
from jaxrec.serving.stores.retention import Retention

logger = logging.getLogger(__name__)

# Each user has a hash (the document) and a list (the impressions). Two sorted sets hold the user
# ids by the time of the last write, a third one keyed hashes of those of deleted users by the time
# of deletion (earlier versions kept the ids there). All keys share a hash tag, so that a cluster
# keeps them on one node, where one script can write them. Keys keep the names of the first version,
# so that existing stores can be opened.
PREFIX = "{jaxrec}:"
WRITTEN = PREFIX + "written"
SHOWN = PREFIX + "shown"
DELETED = PREFIX + "deleted"
TOMBSTONE_KEY = PREFIX + "tombstone-key"
HEARTBEAT = PREFIX + "heartbeat"
EXPIRING = PREFIX + "expiring"  # exists while a process deletes old users
EXPIRY_SECONDS = 1800.0  # after which that process counts as dead
READ_SECONDS = 1.0  # to wait for an answer to a read, which the caller can do without
WRITE_SECONDS = 5.0  # to wait for an answer to a write
CHUNK = 500  # users deleted per call, which other clients wait for
FIND_DELETED = """
local function deleted_at(id, hash)
  local by_id = redis.call('ZSCORE', KEYS[3], id)
  local by_hash = redis.call('ZSCORE', KEYS[3], hash)
  if by_id and by_hash and tonumber(by_id) > tonumber(by_hash) then return by_id end
  return by_hash or by_id
end
"""
SAVE = (
    FIND_DELETED
    + """
local stored = redis.call('HGET', KEYS[1], 'version') or '0'
if stored ~= ARGV[1] then return 0 end
local deleted = deleted_at(ARGV[4], ARGV[8]) or ARGV[6]
if stored == '0' and tonumber(deleted) ~= tonumber(ARGV[7]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[5], 'document', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
return 1
"""
)
SHOW = (
    FIND_DELETED
    + """
local deleted = deleted_at(ARGV[1], ARGV[5])
if deleted and tonumber(deleted) >= tonumber(ARGV[2]) then return end
redis.call('RPUSH', KEYS[1], ARGV[3])
redis.call('LTRIM', KEYS[1], -ARGV[4], -1)
redis.call('ZADD', KEYS[2], 'GT', ARGV[2], ARGV[1])
"""
)
EXPIRE = """
local written = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not written or tonumber(written) > tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('DEL', KEYS[2])
"""


class RedisStore:
    """Documents in Redis; see `jaxrec.serving.stores.base.Store`.

    Saved documents survive a crash of the server only if it runs with `appendonly yes` and
    `appendfsync always`, and a full memory only with `maxmemory-policy noeviction`. Otherwise the
    store logs a warning.

    Args:
        address: such as `redis://localhost:6379/0`.

    Raises:
        StoreError: the server cannot be reached.
    """

    def __init__(self, address: str):
        self.observe: Callable[[int], object] = lambda size: None
        self.client = _client(address, WRITE_SECONDS)
        self.reader = _client(address, READ_SECONDS)
        self.items = RedisItems(self.client, self.reader, _store_errors)
        self.save_script = self.client.register_script(SAVE)
        self.show_script = self.client.register_script(SHOW)
        self.expire_script = self.client.register_script(EXPIRE)
        with _store_errors():
            self.client.set(TOMBSTONE_KEY, new_key(), nx=True)
            self.tombstone_key: Any = self.client.get(TOMBSTONE_KEY)
        self._warn_unless_durable()

    def load(self, user_ids: Sequence[str]) -> Loaded:
        """See `Store.load`."""
        with _store_errors():
            pipeline = self.reader.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.hmget(_document_key(user_id), "version", "document")
                pipeline.zmscore(DELETED, self._tombstones(user_id))
            answers = pipeline.execute()
        rows = {
            user_id: StoredRow(int(version or 0), content, _newest(times))
            for user_id, (version, content), times in zip(
                user_ids, answers[::2], answers[1::2], strict=True
            )
        }
        return decode_each(rows)

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        documents, now = list(documents), time.time()
        with _store_errors():
            pipeline = self.client.pipeline(transaction=False)
            for d in documents:
                after = d.version + 1 if d.version else first_version()
                keys = [_document_key(d.user_id), WRITTEN, DELETED]
                content = encode(d)
                self.observe(len(content))
                arguments: list[Any] = [d.version, content, now, d.user_id, after]
                arguments += [NEVER, d.deleted_at, self._tombstones(d.user_id)[0]]
                self.save_script(keys, arguments, client=pipeline)
            written = pipeline.execute()
        return [d.user_id for d, done in zip(documents, written, strict=True) if not done]

    def delete(self, user_id: str, deleted_at: int | None = None) -> bool:
        """See `Store.delete`."""
        with _store_errors():
            tombstone, _ = tombstones = self._tombstones(user_id)
            times: Any = self.client.zmscore(DELETED, tombstones)
            pipeline = self.client.pipeline()
            pipeline.delete(_document_key(user_id))
            pipeline.delete(_impressions_key(user_id))
            pipeline.zrem(WRITTEN, user_id)
            pipeline.zrem(SHOWN, user_id)
            pipeline.zrem(DELETED, user_id)
            if (newest := _newest([*times, deleted_at])) is not None:
                pipeline.zadd(DELETED, {tombstone: newest}, gt=True)
            return pipeline.execute()[0] > 0

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """See `Store.add_impressions`."""
        with _store_errors():
            pipeline = self.client.pipeline(transaction=False)
            for i in impressions:
                row = json.dumps([i.time, i.model, i.items, i.propensities])
                tombstone, _ = self._tombstones(i.user_id)
                arguments: list[Any] = [i.user_id, i.time, row, MAX_IMPRESSIONS, tombstone]
                keys = [_impressions_key(i.user_id), SHOWN, DELETED]
                self.show_script(keys, arguments, client=pipeline)
            pipeline.execute()

    def impressions(self, user_id: str) -> list[Impression]:
        """See `Store.impressions`."""
        with _store_errors():
            rows = self.reader.lrange(_impressions_key(user_id), 0, -1)
        return [Impression.of(user_id, *json.loads(row)) for row in rows]

    def expire(self, retention: Retention) -> int:
        """See `Store.expire`; `max_bytes` concerns all that the server holds.

        While another process does this, nothing is done.
        """
        num_bytes = self.size()
        lock = self.client.lock(EXPIRING, timeout=EXPIRY_SECONDS, blocking=False)
        # two processes that count at once would delete twice as many users
        with _store_errors():
            if not lock.acquire():
                return 0
        try:
            return self._expire_all(retention, num_bytes)
        finally:
            with suppress(redis.RedisError):  # the lock ends by itself
                lock.release()

    def _expire_all(self, retention: Retention, num_bytes: int) -> int:
        with _store_errors():
            count, num_old = self._count_old(WRITTEN, retention.before)
            number = retention.number_to_delete(count, num_old, num_bytes)
            deleted = self._expire(WRITTEN, _document_key, number)
            count, num_old = self._count_old(SHOWN, retention.before)
            number = max(num_old, count - retention.most_users(count, num_bytes))
            self._expire(SHOWN, _impressions_key, number)
            self.client.zremrangebyscore(DELETED, "-inf", f"({retention.tombstones_before}")
            self.client.zremrangebyrank(DELETED, 0, -retention.max_users - 1)
        return deleted

    def newest(self, count: int) -> list[str]:
        """See `Store.newest`."""
        with _store_errors():
            newest: list[Any] = self.reader.zrevrange(WRITTEN, 0, count - 1)
        return [user_id.decode() for user_id in newest]

    def count(self) -> int:
        """See `Store.count`."""
        with _store_errors():
            return self.reader.zcard(WRITTEN)

    def size(self) -> int:
        """See `Store.size`."""
        with _store_errors():
            return int(self.reader.info("memory")["used_memory"])

    def compact(self) -> list[str]:
        """See `Store.compact`; waits until the server has written its files."""
        return rewrite_files(self.client)

    def check(self) -> None:
        """See `Store.check`."""
        with _store_errors():
            self.reader.set(HEARTBEAT, time.time())
            self.reader.get(HEARTBEAT)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.reader.close()

    def _tombstones(self, user_id: str) -> list[str]:
        """What the tombstone of a user holds: a hash, or the id in an earlier version."""
        return [keyed_hash(self.tombstone_key, user_id), user_id]

    def _count_old(self, index: str, before: float) -> tuple[int, int]:
        """The number of users in one sorted set, and of those that are too old."""
        return self.client.zcard(index), self.client.zcount(index, "-inf", f"({before}")

    def _expire(self, index: str, key_of: Callable[[str], str], number: int) -> int:
        """Delete the oldest users of one sorted set; return the number of deleted keys."""
        if not number:
            return 0
        oldest: list[Any] = self.client.zrange(index, 0, number - 1, withscores=True)
        return self._delete_unchanged(index, key_of, oldest)

    def _delete_unchanged(
        self, index: str, key_of: Callable[[str], str], users: Sequence[tuple[bytes, float]]
    ) -> int:
        """Delete users, except those written again since their scores were read."""
        deleted = 0
        for start in range(0, len(users), CHUNK):
            pipeline = self.client.pipeline(transaction=False)
            for user, written in users[start : start + CHUNK]:
                user_id = user.decode()
                arguments: list[Any] = [user_id, repr(written)]
                self.expire_script([index, key_of(user_id)], arguments, client=pipeline)
            deleted += sum(pipeline.execute())
        return deleted

    def _warn_unless_durable(self) -> None:
        try:
            settings = self.client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        except redis.RedisError:
            return  # hosted servers may not reveal their configuration
        if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always":
            logger.warning(
                "Redis may lose acknowledged events when it crashes; "
                "run it with appendonly yes and appendfsync always"
            )
        policy = settings.get("maxmemory-policy")
        if policy != "noeviction":
            logger.warning(
                "Redis may drop users when its memory is full (maxmemory-policy %s); "
                "run it with maxmemory-policy noeviction",
                policy,
            )


def _client(address: str, timeout: float) -> redis.Redis:
    # no retries: a repeated save would find its own version in the store and be refused
    return redis.Redis.from_url(
        address,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        health_check_interval=1,
        retry=None,
    )


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"the store fails: {server_message(error)}") from error


def server_message(error: Exception) -> str:
    """What an error says, without the command of a pipeline, which holds ids of users."""
    return re.sub(r"^Command # \d+ \(.*\) of pipeline caused error: ", "", str(error), flags=re.S)


def _newest(times: Sequence[float | None]) -> int | None:
    return max((int(time) for time in times if time is not None), default=None)


def _document_key(user_id: str) -> str:
    return f"{PREFIX}shopper:{user_id}"


def _impressions_key(user_id: str) -> str:
    return f"{PREFIX}shown:{user_id}"
