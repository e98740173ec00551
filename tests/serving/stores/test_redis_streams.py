"""A rewritten stream keeps everything but what was deleted from it."""

from multiprocessing.pool import ThreadPool

import pytest
import redis
from helpers.jobs import holding
from helpers.servers import RedisServer, wait
from helpers.stores import needs_redis

from jaxrec.errors import StoreError
from jaxrec.serving.stores import redis_streams
from jaxrec.serving.stores.redis_streams import erase_entries, rewrite_stream

pytestmark = needs_redis
NAME = "events"
GONE, STAYS = "secret-user-1", "other-user-2"


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client


def add(client, *users):
    return [client.xadd(NAME, {"user_id": user, "item_id": "i1"}) for user in users]


def consumers(client, group):
    return {about["name"] for about in client.xinfo_consumers(NAME, group)}


def pending(client, group):
    """Pending entries: consumer and number of deliveries, and the milliseconds since the last."""
    rows = client.xpending_range(NAME, group, "-", "+", 1000)
    deliveries = {row["message_id"]: (row["consumer"], row["times_delivered"]) for row in rows}
    return deliveries, {row["message_id"]: row["time_since_delivered"] for row in rows}


def entries(client):
    return [entry for entry, _ in client.xrange(NAME)]


def dumped(server):
    with redis.Redis(port=server.port) as client:
        return client.dump(NAME)


def test_no_byte_of_an_erased_entry_remains(server, client, tmp_path):
    add(client, GONE, STAYS, GONE)
    assert erase_entries(server.address, [NAME], [GONE]).entries == 2
    assert GONE.encode() in dumped(server)  # the reason to rewrite
    assert erase_entries(server.address, [NAME], [GONE], compact=True) == (frozenset(), 0, ())
    assert GONE.encode() not in dumped(server)
    wait(lambda: not holding(tmp_path, GONE))  # a thread removes the old log
    assert [fields["user_id"] for _, fields in client.xrange(NAME)] == [STAYS]
    assert client.keys() == [NAME]
    add(client, GONE)
    assert erase_entries(server.address, [NAME, "none"], [GONE], compact=True) == ({GONE}, 1, ())
    wait(lambda: not holding(tmp_path, GONE))
    assert holding(tmp_path, STAYS)


def test_groups_and_pending_entries_stay(server, client, monkeypatch):
    monkeypatch.setattr(redis_streams, "BATCH", 7)
    ids = add(client, *[GONE if number % 5 == 1 else STAYS for number in range(50)])
    client.xgroup_create(NAME, "all", id="0")
    client.xgroup_create(NAME, "late", id="$")
    client.xgroup_createconsumer(NAME, "all", "idle")
    for consumer in ("a", "b"):
        client.xreadgroup("all", consumer, {NAME: ">"}, 20)
    client.xack(NAME, "all", *ids[:8])
    client.xclaim(NAME, "all", "b", 0, ids[10:12], time=1_700_000_000_000, retrycount=7)
    client.expire(NAME, 10_000)
    about = client.xinfo_stream(NAME)
    before = {group["name"]: group for group in client.xinfo_groups(NAME)}
    deliveries, idle = pending(client, "all")
    erased = {entry for entry, fields in client.xrange(NAME) if fields["user_id"] == GONE}
    left = [entry for entry in ids if entry not in erased]
    assert erase_entries(server.address, [NAME], [GONE], compact=True).entries == len(erased)
    for restarted in (False, True):
        if restarted:  # from the append-only file
            server.kill()
            server.start()
        assert entries(client) == left
        for field in ("last-generated-id", "entries-added"):
            assert client.xinfo_stream(NAME).get(field) == about.get(field)
        for group in client.xinfo_groups(NAME):
            for field in ("last-delivered-id", "entries-read"):
                assert group.get(field) == before[group["name"]].get(field)
        assert {group["name"] for group in client.xinfo_groups(NAME)} == {"all", "late"}
        assert consumers(client, "all") == {"a", "b", "idle"}
        assert consumers(client, "late") == set()
        kept_deliveries, kept_idle = pending(client, "all")
        assert kept_deliveries == {entry: deliveries[entry] for entry in left if entry in idle}
        assert all(0 <= kept_idle[entry] - idle[entry] < 60_000 for entry in kept_idle)
        assert 0 < client.ttl(NAME) <= 10_000
    [(_, delivered)] = client.xreadgroup("all", "a", {NAME: ">"}, 100)
    assert [entry for entry, _ in delivered] == [entry for entry in ids[40:] if entry in left]


def test_the_newest_entry_may_go(server, client):
    *_, newest = add(client, STAYS, GONE)
    erase_entries(server.address, [NAME], [GONE], compact=True)
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        client.xadd(NAME, {"user_id": STAYS}, id=newest)
    [left] = entries(client)
    client.xdel(NAME, left)
    rewrite_stream(client, NAME)
    assert client.xinfo_stream(NAME)["last-generated-id"] == newest


class Disturbed(redis.Redis):
    """A client that does other work after each of its first calls of a script."""

    def __init__(self, server, *work):
        super().__init__(port=server.port, decode_responses=True)
        self.work = list(work)

    def evalsha(self, *arguments):
        answer = super().evalsha(*arguments)
        if self.work:
            self.work.pop(0)()
        return answer


def test_what_others_do_meanwhile_counts(server, client, monkeypatch):
    monkeypatch.setattr(redis_streams, "BATCH", 2)
    ids, new = add(client, *[STAYS] * 9), []

    def trim():
        client.xtrim(NAME, minid=ids[3], approximate=False)

    def delete_copied():
        client.xdel(NAME, ids[4])

    def append():
        new.extend(add(client, STAYS))

    with Disturbed(server, append, trim, append) as disturbed:
        rewrite_stream(disturbed, NAME)
    assert entries(client) == [*ids[3:], *new]
    monkeypatch.setattr(redis_streams, "MAX_ATTEMPTS", 1)
    with Disturbed(server, append, delete_copied) as disturbed:
        with pytest.raises(StoreError, match="others delete entries of the stream events"):
            rewrite_stream(disturbed, NAME)
        rewrite_stream(disturbed, NAME)
    assert entries(client) == [ids[3], *ids[5:], *new]
    assert client.keys() == [NAME]


def test_a_reader_that_waits_gets_the_next_entry(server, client):
    add(client, GONE, STAYS)
    client.xgroup_create(NAME, "all", id="$")
    with redis.Redis(port=server.port, decode_responses=True) as reader, ThreadPool(1) as pool:
        read = pool.apply_async(reader.xreadgroup, ("all", "a", {NAME: ">"}, 10, 30_000))
        wait(lambda: client.info("clients")["blocked_clients"] == 1)
        erase_entries(server.address, [NAME], [GONE], compact=True)
        [newest] = add(client, STAYS)
        [(_, [(entry, _)])] = read.get(30)
    assert entry == newest
