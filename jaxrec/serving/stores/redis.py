"""Live documents in Redis or Valkey, which any number of workers on any machines share."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from jaxrec.errors import StoreError
from jaxrec.serving.stores.sqlite import (
    MAX_IMPRESSIONS,
    Impression,
    UserDocument,
    as_impression,
    decode,
    encode,
    first_version,
)

logger = logging.getLogger(__name__)

# A hash a document, and all of them by the time they were written; a list of what each was shown,
# and all of those by the time. Keys share a hash tag, so that a cluster keeps them where one script
# can write them.
PREFIX = "{jaxrec}:"
WRITTEN = PREFIX + "written"
SHOWN = PREFIX + "shown"
CHUNK = 500  # users deleted at a time: others wait for as long
SAVE = """
local stored = redis.call('HGET', KEYS[1], 'version') or '0'
if stored ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[5], 'document', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
return 1
"""
EXPIRE = """
local written = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not written or tonumber(written) > tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('DEL', KEYS[2])
"""


class RedisStore:
    """Documents in Redis; see `jaxrec.serving.stores.sqlite.Store`.

    What is saved survives a crash of the server only if that runs with `appendonly yes` and
    `appendfsync always`; otherwise a warning says so.

    Args:
        address: such as `redis://localhost:6379/0`.
        patience: seconds to wait for an answer.

    Raises:
        StoreError: the server cannot be reached.
    """

    def __init__(self, address: str, *, patience: float = 5.0):
        # a save must not be sent twice: the second would find the first and be refused
        self.client = redis.Redis.from_url(
            address,
            socket_timeout=patience,
            socket_connect_timeout=patience,
            health_check_interval=1,
            retry=None,
        )
        self.save_script = self.client.register_script(SAVE)
        self.expire_script = self.client.register_script(EXPIRE)
        with _told():
            self.client.ping()
        self._warn_unless_durable()

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """See `Store.load`."""
        with _told():
            pipeline = self.client.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.hmget(_key(user_id), "version", "document")
            rows = pipeline.execute()
        return {
            user_id: decode(user_id, int(version), document)
            for user_id, (version, document) in zip(user_ids, rows, strict=True)
            if document is not None
        }

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        documents, now = list(documents), time.time()
        with _told():
            pipeline = self.client.pipeline(transaction=False)
            for s in documents:
                after = s.version + 1 if s.version else first_version()
                arguments: list[Any] = [s.version, encode(s), now, s.user_id, after]
                self.save_script([_key(s.user_id), WRITTEN], arguments, client=pipeline)
            written = pipeline.execute()
        return [s.user_id for s, done in zip(documents, written, strict=True) if not done]

    def forget(self, user_id: str) -> bool:
        """See `Store.forget`."""
        with _told():
            pipeline = self.client.pipeline()
            pipeline.delete(_key(user_id))
            pipeline.delete(_shown_key(user_id))
            pipeline.zrem(WRITTEN, user_id)
            pipeline.zrem(SHOWN, user_id)
            return pipeline.execute()[0] > 0

    def show(self, lists: Iterable[Impression]) -> None:
        """See `Store.show`."""
        with _told():
            pipeline = self.client.pipeline(transaction=False)
            for s in lists:
                key = _shown_key(s.user_id)
                pipeline.rpush(key, json.dumps([s.time, s.model, s.items, s.propensities]))
                pipeline.ltrim(key, -MAX_IMPRESSIONS, -1)
                pipeline.zadd(SHOWN, {s.user_id: s.time}, gt=True)
            pipeline.execute()

    def shown(self, user_id: str) -> list[Impression]:
        """See `Store.shown`."""
        with _told():
            rows = self.client.lrange(_shown_key(user_id), 0, -1)
        return [as_impression(user_id, *_time_apart(row)) for row in rows]

    def expire(self, before: float, most: int) -> int:
        """See `Store.expire`."""
        with _told():
            self._expire(SHOWN, _shown_key, before, most)
            return self._expire(WRITTEN, _key, before, most)

    def count(self) -> int:
        """See `Store.count`."""
        with _told():
            return self.client.zcard(WRITTEN)

    def close(self) -> None:
        """Let go of the connections."""
        self.client.close()

    def _expire(self, index: str, key_of: Callable[[str], str], before: float, most: int) -> int:
        """Delete what an index holds of the past and beyond so many; how many keys these were.

        Who was written again since the index was read stays.
        """
        old: list[Any] = self.client.zrangebyscore(index, "-inf", f"({before}", withscores=True)
        deleted = self._expire_users(index, key_of, old)
        surplus: list[Any] = self.client.zrange(index, 0, -most - 1, withscores=True)
        return deleted + self._expire_users(index, key_of, surplus)

    def _expire_users(
        self, index: str, key_of: Callable[[str], str], found: Sequence[tuple[bytes, float]]
    ) -> int:
        deleted = 0
        for start in range(0, len(found), CHUNK):
            pipeline = self.client.pipeline(transaction=False)
            for user, written in found[start : start + CHUNK]:
                user_id = user.decode()
                arguments: list[Any] = [user_id, repr(written)]
                self.expire_script([index, key_of(user_id)], arguments, client=pipeline)
            deleted += sum(pipeline.execute())
        return deleted

    def _warn_unless_durable(self) -> None:
        try:
            found = self.client.config_get("appendonly", "appendfsync")
        except redis.RedisError:
            return  # hosted servers keep their configuration to themselves
        if found.get("appendonly") != "yes" or found.get("appendfsync") != "always":
            logger.warning(
                "Redis may lose events that were acknowledged when it crashes; "
                "run it with appendonly yes and appendfsync always"
            )


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"the store fails: {error}") from error


def _key(user_id: str) -> str:
    return f"{PREFIX}document:{user_id}"


def _shown_key(user_id: str) -> str:
    return f"{PREFIX}shown:{user_id}"


def _time_apart(row: bytes | str) -> tuple[int, str]:
    moment, *rest = json.loads(row)
    return moment, json.dumps(rest)
