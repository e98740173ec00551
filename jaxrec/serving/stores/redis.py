"""A store in Redis or Valkey, which workers on several machines share."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import MAX_IMPRESSIONS, Impression, UserDocument, first_version
from jaxrec.serving.stores.documents import decode, decode_impression, encode

logger = logging.getLogger(__name__)

# Each user has a hash (the document) and a list (the impressions). Two sorted sets hold the user
# ids by the time of the last write. All keys share a hash tag, so that a cluster keeps them on one
# node, where one script can write them. Keys keep the names that they had in the first version, so
# that existing stores can be opened.
PREFIX = "{jaxrec}:"
WRITTEN = PREFIX + "written"
SHOWN = PREFIX + "shown"
CHUNK = 500  # users deleted per call, which other clients wait for
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
    """Documents in Redis; see `jaxrec.serving.stores.base.Store`.

    Saved documents survive a crash of the server only if it runs with `appendonly yes` and
    `appendfsync always`. Otherwise the store logs a warning.

    Args:
        address: such as `redis://localhost:6379/0`.
        timeout: seconds to wait for an answer.

    Raises:
        StoreError: the server cannot be reached.
    """

    def __init__(self, address: str, *, timeout: float = 5.0):
        # no retries: a repeated save would find its own version in the store and be refused
        self.client = redis.Redis.from_url(
            address,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            health_check_interval=1,
            retry=None,
        )
        self.save_script = self.client.register_script(SAVE)
        self.expire_script = self.client.register_script(EXPIRE)
        with _store_errors():
            self.client.ping()
        self._warn_unless_durable()

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """See `Store.load`."""
        with _store_errors():
            pipeline = self.client.pipeline(transaction=False)
            for user_id in user_ids:
                pipeline.hmget(_document_key(user_id), "version", "document")
            rows = pipeline.execute()
        return {
            user_id: decode(user_id, int(version), content)
            for user_id, (version, content) in zip(user_ids, rows, strict=True)
            if content is not None
        }

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        documents, now = list(documents), time.time()
        with _store_errors():
            pipeline = self.client.pipeline(transaction=False)
            for d in documents:
                after = d.version + 1 if d.version else first_version()
                arguments: list[Any] = [d.version, encode(d), now, d.user_id, after]
                self.save_script([_document_key(d.user_id), WRITTEN], arguments, client=pipeline)
            written = pipeline.execute()
        return [d.user_id for d, done in zip(documents, written, strict=True) if not done]

    def delete(self, user_id: str) -> bool:
        """See `Store.delete`."""
        with _store_errors():
            pipeline = self.client.pipeline()
            pipeline.delete(_document_key(user_id))
            pipeline.delete(_impressions_key(user_id))
            pipeline.zrem(WRITTEN, user_id)
            pipeline.zrem(SHOWN, user_id)
            return pipeline.execute()[0] > 0

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """See `Store.add_impressions`."""
        with _store_errors():
            pipeline = self.client.pipeline(transaction=False)
            for i in impressions:
                key = _impressions_key(i.user_id)
                pipeline.rpush(key, json.dumps([i.time, i.model, i.items, i.propensities]))
                pipeline.ltrim(key, -MAX_IMPRESSIONS, -1)
                pipeline.zadd(SHOWN, {i.user_id: i.time}, gt=True)
            pipeline.execute()

    def impressions(self, user_id: str) -> list[Impression]:
        """See `Store.impressions`."""
        with _store_errors():
            rows = self.client.lrange(_impressions_key(user_id), 0, -1)
        return [decode_impression(user_id, *_split_time(row)) for row in rows]

    def expire(self, before: float, max_users: int) -> int:
        """See `Store.expire`."""
        with _store_errors():
            self._expire(SHOWN, _impressions_key, before, max_users)
            return self._expire(WRITTEN, _document_key, before, max_users)

    def count(self) -> int:
        """See `Store.count`."""
        with _store_errors():
            return self.client.zcard(WRITTEN)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _expire(
        self, index: str, key_of: Callable[[str], str], before: float, max_users: int
    ) -> int:
        """Delete the old and surplus users of one sorted set; return the number of deleted keys."""
        old: list[Any] = self.client.zrangebyscore(index, "-inf", f"({before}", withscores=True)
        deleted = self._delete_unchanged(index, key_of, old)
        surplus: list[Any] = self.client.zrange(index, 0, -max_users - 1, withscores=True)
        return deleted + self._delete_unchanged(index, key_of, surplus)

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
            settings = self.client.config_get("appendonly", "appendfsync")
        except redis.RedisError:
            return  # hosted servers may not reveal their configuration
        if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always":
            logger.warning(
                "Redis may lose acknowledged events when it crashes; "
                "run it with appendonly yes and appendfsync always"
            )


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"the store fails: {error}") from error


def _document_key(user_id: str) -> str:
    return f"{PREFIX}shopper:{user_id}"


def _impressions_key(user_id: str) -> str:
    return f"{PREFIX}shown:{user_id}"


def _split_time(row: bytes | str) -> tuple[int, str]:
    seconds, *rest = json.loads(row)
    return seconds, json.dumps(rest)
