"""Removes the entries of users from streams of a Redis or Valkey server."""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import redis

from jaxrec.errors import StoreError
from jaxrec.serving.stores.redis_files import rewrite_files

BATCH = 1000  # entries read or copied at a time, which other clients wait for
ANSWER_SECONDS = 60.0  # to wait for an answer
COPY_SECONDS = 600  # after which the server removes the copy of a process that was killed
MAX_ATTEMPTS = 5  # to copy a stream while others delete entries from it

# Copies entries from ARGV[1] on, at most ARGV[2]; returns where the next ones begin, or an empty
# text after the last one.
COPY = """
local rows = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, row in ipairs(rows) do redis.call('XADD', KEYS[2], row[1], unpack(row[2])) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return #rows > 0 and '(' .. rows[#rows][1] or ''
"""
# Puts a copy in the place of its stream, whose newest entries, from ARGV[1] on, it still lacks.
# Returns 0 if another client has deleted entries since they were copied, other than the oldest.
REPLACE = """
local stream, copy = KEYS[1], KEYS[2]
for _, row in ipairs(redis.call('XRANGE', stream, ARGV[1], '+')) do
  redis.call('XADD', copy, row[1], unpack(row[2]))
end
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if not oldest then return 1 end
redis.call('XTRIM', copy, 'MINID', oldest[1])
if redis.call('XLEN', copy) ~= redis.call('XLEN', stream) then return 0 end

local function by_name(values)
  local named = {}
  for i = 1, #values, 2 do named[values[i]] = values[i + 1] end
  return named
end
local function set_id(about)
  local counts = {}
  if about['entries-added'] then -- Redis 7 or later
    counts = {'ENTRIESADDED', about['entries-added'], 'MAXDELETEDID', about['max-deleted-entry-id']}
  end
  redis.call('XSETID', copy, about['last-generated-id'], unpack(counts))
end
local function copy_group(group)
  local name, read = group['name'], {}
  if group['entries-read'] then read = {'ENTRIESREAD', group['entries-read']} end
  redis.call('XGROUP', 'CREATE', copy, name, group['last-delivered-id'], unpack(read))
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, name)) do
    redis.call('XGROUP', 'CREATECONSUMER', copy, name, by_name(consumer)['name'])
  end
  local start, pending = '-'
  repeat
    pending = redis.call('XPENDING', stream, name, start, '+', 1000)
    for _, entry in ipairs(pending) do
      local id, consumer, idle, deliveries = unpack(entry)
      redis.call('XCLAIM', copy, name, consumer, 0, id,
        'IDLE', idle, 'RETRYCOUNT', deliveries, 'FORCE', 'JUSTID')
      start = '(' .. id
    end
  until #pending == 0
end
set_id(by_name(redis.call('XINFO', 'STREAM', stream)))
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do copy_group(by_name(group)) end
local milliseconds = redis.call('PTTL', stream)
if milliseconds > 0 then redis.call('PEXPIRE', copy, milliseconds)
else redis.call('PERSIST', copy) end
redis.call('RENAME', copy, stream)
return 1
"""


class ErasedEntries(NamedTuple):
    """What was removed from streams."""

    users: frozenset[str]  # those that were found
    entries: int
    remaining: tuple[str, ...]  # files that may still hold content, and why


def erase_entries(
    server: str, names: Sequence[str], user_ids: Collection[str], *, compact: bool = False
) -> ErasedEntries:
    """Delete the entries of users.

    Args:
        names: keys of streams of events, and of rejected entries.
        compact: also rewrite the streams, as Redis keeps the content of a deleted entry until its
            neighbours are deleted too, and the files of the server.

    Raises:
        StoreError: the server fails.
    """
    users, entries, remaining = set[str](), 0, list[str]()
    try:
        with redis.Redis.from_url(
            server,
            decode_responses=True,
            encoding_errors="surrogateescape",
            socket_timeout=ANSWER_SECONDS,
            retry=None,  # a script that runs twice would add entries twice
        ) as client:
            for name in names:
                rows: Any
                start = "-"
                while rows := client.xrange(name, start, "+", BATCH):
                    owners_of = {entry: owners(fields, user_ids) for entry, fields in rows}
                    deleted = [entry for entry, of_entry in owners_of.items() if of_entry]
                    if deleted:
                        client.xdel(name, *deleted)
                    users.update(*owners_of.values())
                    entries += len(deleted)
                    start = f"({rows[-1][0]}"
                if compact:
                    rewrite_stream(client, name)
            if compact:
                remaining = rewrite_files(client)
    except redis.RedisError as error:
        raise StoreError(f"the stream fails: {error}") from error
    return ErasedEntries(frozenset(users), entries, tuple(remaining))


def rewrite_stream(client: redis.Redis, name: str) -> None:
    """Replace a stream by a copy of its entries, without the content of those that were deleted.

    Clients read and write the stream meanwhile; the replacement is atomic. Groups, consumers and
    pending entries stay, except pending entries that the stream no longer holds.

    Raises:
        StoreError: other clients go on deleting entries.
    """
    copy_entries, replace = client.register_script(COPY), client.register_script(REPLACE)
    for _ in range(MAX_ATTEMPTS):
        copy = f"{name}:{uuid.uuid4().hex}"
        try:
            start, after = "-", "-"
            while after:
                start = after
                after = copy_entries([name, copy], [start, BATCH, COPY_SECONDS])
            if replace([name, copy], [start]):
                return
        finally:
            client.unlink(copy)
    raise StoreError(f"others delete entries of the stream {name} all the time; try again later")


def owners(fields: Mapping[str, str], user_ids: Collection[str]) -> frozenset[str]:
    """The users that an entry names: an event, its JSON, or a rejected entry that holds either.

    What cannot be read names the users whose ids are in its text.
    """
    if "user_id" in fields:
        return frozenset({fields["user_id"]} & set(user_ids))
    text = fields.get("fields", fields.get("event", ""))
    try:
        inner = json.loads(text)
        values = {str(name): value for name, value in inner.items()}
        if "user_id" in values or "event" in values:
            texts = {name: value for name, value in values.items() if isinstance(value, str | int)}
            return owners({name: str(value) for name, value in texts.items()}, user_ids)
    except (ValueError, AttributeError, RecursionError):
        pass
    return frozenset(user for user in user_ids if user in text)
