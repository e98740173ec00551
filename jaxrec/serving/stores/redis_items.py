"""Items of a store in Redis."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import redis

from jaxrec.serving.stores.items import ItemDocument, decode_item, encode_item

# A hash holds the documents, a sorted set the item ids by the number of their last change. The
# names share the hash tag of the other keys, so that one script can write them.
ITEMS, ORDER, SEQUENCE = "{jaxrec}:items", "{jaxrec}:item-order", "{jaxrec}:item-sequence"
SAVE = """
local refused = {}
for i = 1, #ARGV, 3 do
  local stored = redis.call('ZSCORE', KEYS[2], ARGV[i]) or '0'
  if tonumber(stored) == tonumber(ARGV[i + 1]) then
    local number = redis.call('INCR', KEYS[3])
    redis.call('ZADD', KEYS[2], number, ARGV[i])
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  else
    refused[#refused + 1] = ARGV[i]
  end
end
return refused
"""
SINCE = """
local found = {}
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf',
                       'WITHSCORES', 'LIMIT', 0, ARGV[2])
for i = 1, #ids, 2 do
  found[#found + 1] = {ids[i], ids[i + 1], redis.call('HGET', KEYS[1], ids[i])}
end
return found
"""
LOAD = """
local found = {}
for i = 1, #ARGV do
  local number = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if number then
    found[#found + 1] = {ARGV[i], number, redis.call('HGET', KEYS[1], ARGV[i])}
  end
end
return found
"""
FORGET = """
local deleted = 0
for i = 1, #ARGV, 2 do
  local stored = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if stored and tonumber(stored) == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', KEYS[2], ARGV[i])
    deleted = deleted + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return deleted
"""
KEYS = [ITEMS, ORDER, SEQUENCE]


class RedisItems:
    """Documents of items; see `jaxrec.serving.stores.items.ItemStore`.

    Args:
        client: for writes and for reads that writes need.
        reader: for reads that the caller can do without.
        errors: turns errors of Redis into StoreErrors.
    """

    def __init__(
        self,
        client: redis.Redis,
        reader: redis.Redis,
        errors: Callable[[], AbstractContextManager[None]],
    ):
        self.client, self.reader, self.errors = client, reader, errors
        self.save_script = client.register_script(SAVE)
        self.since_script = client.register_script(SINCE)
        self.load_script = client.register_script(LOAD)
        self.forget_script = client.register_script(FORGET)

    def sequence(self) -> int:
        """See `ItemStore.sequence`."""
        with self.errors():
            stored: Any = self.reader.get(SEQUENCE)
        return int(stored or 0)

    def load(self, item_ids: Sequence[str]) -> dict[str, ItemDocument]:
        """See `ItemStore.load`."""
        with self.errors():
            rows: Any = self.load_script(KEYS, list(item_ids))
        return {document.item_id: document for document in map(_document, rows)}

    def since(self, sequence: int, limit: int) -> list[ItemDocument]:
        """See `ItemStore.since`."""
        with self.errors():
            rows: Any = self.since_script(KEYS, [sequence, limit])
        return [_document(row) for row in rows]

    def save(self, documents: Iterable[ItemDocument]) -> list[str]:
        """See `ItemStore.save`."""
        arguments: list[Any] = [
            part for d in documents for part in (d.item_id, d.sequence, encode_item(d))
        ]
        with self.errors():
            refused: Any = self.save_script(KEYS, arguments)
        return [item_id.decode() for item_id in refused]

    def forget(self, documents: Iterable[ItemDocument]) -> int:
        """See `ItemStore.forget`."""
        arguments: list[Any] = [part for d in documents for part in (d.item_id, d.sequence)]
        with self.errors():
            deleted: Any = self.forget_script(KEYS, arguments)
        return int(deleted)

    def ids(self) -> list[str]:
        """See `ItemStore.ids`."""
        with self.errors():
            stored: Any = self.client.zrange(ORDER, 0, -1)
        return [item_id.decode() for item_id in stored]

    def count(self) -> int:
        """See `ItemStore.count`."""
        with self.errors():
            number: Any = self.reader.zcard(ORDER)
        return int(number)


def _document(row: Sequence[bytes]) -> ItemDocument:
    item_id, number, content = row
    return decode_item(item_id.decode(), int(float(number)), content or b"")
