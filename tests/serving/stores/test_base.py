"""Both stores pass the same checks."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count

import pytest
from helpers.servers import START, RedisServer, wait, without_log
from helpers.stores import address_of, needs_redis

from jaxrec.errors import StoreError
from jaxrec.serving.stores import redis, retention, sqlite
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument
from jaxrec.serving.stores.opening import open_store
from jaxrec.serving.stores.retention import Retention


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def store(request, tmp_path):
    server = RedisServer(tmp_path) if request.param == "redis" else None
    store = open_store(server.address if server else tmp_path / "store.db")
    yield store
    store.close()
    if server:
        server.kill()


def document(user, version=0, **fields):
    return UserDocument(user, (LiveEvent(START, "i01", "view", "e1"),), version=version, **fields)


def impression(user, time=START):
    return Impression(user, time, "m", ("i1", "i2"), (0.9, 0.1))


def test_only_the_version_loaded_last_can_be_saved(store):
    assert store.save([document("a"), document("b")]) == []
    loaded = store.load(["a", "b", "c"]).documents
    assert set(loaded) == {"a", "b"}
    assert loaded["a"].events == document("a").events
    version = loaded["a"].version
    assert store.save([document("a")]) == ["a"]  # as a new document
    assert store.save([document("a", version, truncated=5), document("b", 7)]) == ["b"]
    assert store.load(["a"]).documents["a"].version == version + 1
    assert store.load(["a"]).documents["a"].truncated == 5
    assert store.count() == 2


def test_the_newest_users_are_those_written_last(store, monkeypatch):
    clock = count(START)
    monkeypatch.setattr("time.time", lambda: next(clock))
    for user in ("a", "b", "c"):
        store.save([document(user)])
    store.save([document("a", store.load(["a"]).documents["a"].version)])
    assert store.newest(2) == ["a", "c"]
    assert store.newest(5) == ["a", "c", "b"]


def test_a_deleted_document_cannot_be_saved_by_an_earlier_reader(store):
    store.save([document("u", truncated=1)])
    before = store.load(["u"]).documents["u"]
    assert store.delete("u")
    assert not store.delete("u")
    assert store.save([before]) == ["u"]
    assert store.save([document("u", truncated=2)]) == []
    assert store.save([before]) == ["u"]
    assert store.save([document("u", store.load(["u"]).documents["u"].version, truncated=3)]) == []
    assert store.load(["u"]).documents["u"].truncated == 3


def test_old_and_surplus_documents_expire(store):
    for user in "abcd":
        store.save([document(user)])
    assert store.expire(Retention(before=0, max_users=3)) == 1
    assert set(store.load("abcd").documents) == set("bcd")
    assert store.count() == 3
    assert store.expire(Retention(before=4e9, max_users=3)) == 3
    assert store.count() == 0


def test_one_process_at_a_time_deletes_old_documents(store, monkeypatch):
    store.save([document(user) for user in "abcd"])
    number_to_delete = Retention.number_to_delete

    def while_another_expires(*arguments):
        monkeypatch.undo()
        with closing(open_store(address_of(store))) as other:
            assert other.expire(Retention(before=0, max_users=3)) == 0
        return number_to_delete(*arguments)

    monkeypatch.setattr(Retention, "number_to_delete", while_another_expires)
    assert store.expire(Retention(before=0, max_users=3)) == 1
    assert store.expire(Retention(before=0, max_users=2)) == 1
    assert store.count() == 2


def test_impressions_are_deleted_with_their_user_and_expire(store):
    store.save([document("a")])
    store.add_impressions([impression("a"), impression("b")])
    assert store.impressions("a") == [impression("a")]
    store.delete("a")
    assert store.impressions("a") == []
    store.expire(Retention(before=START + 1, max_users=3))
    assert store.impressions("b") == []


def test_the_newest_impressions_are_kept(store, monkeypatch):
    for module in (sqlite, redis):
        monkeypatch.setattr(module, "MAX_IMPRESSIONS", 3)
    for time in range(5):
        store.add_impressions([impression("u", time), impression(f"v{time}", time)])
    assert [i.time for i in store.impressions("u")] == [2, 3, 4]
    store.expire(Retention(before=0, max_users=2))  # counts users without a document as well
    assert [bool(store.impressions(user)) for user in ("u", "v3", "v4")] == [True, False, True]


def damage(store, user, content=b"\x00 no document"):
    """Write something else in place of a user's document."""
    if isinstance(store, sqlite.SQLiteStore):
        store.connection.execute(
            "UPDATE shoppers SET version = 9, document = ? WHERE user_id = ?", (content, user)
        )
    else:
        store.client.hset(redis._document_key(user), "document", content)


@pytest.mark.parametrize("content", [b"", b"\x00 no document", b"{}", b'{"events": 3}\n'])
def test_a_damaged_document_harms_no_other_user(store, content):
    store.save([document("a"), document("b")])
    damage(store, "a", content)
    loaded = store.load(["a", "b", "c"])
    assert set(loaded.documents) == {"b"}
    assert set(loaded.damaged) == {"a"}
    assert "DELETE the user" in str(loaded.damaged["a"])
    assert store.delete("a")
    assert store.save([document("a")]) == []
    assert set(store.load(["a"]).documents) == {"a"}


def test_more_than_a_share_does_not_expire_unless_told(store, monkeypatch):
    """As if the clock of one tidying were a year ahead."""
    monkeypatch.setattr(retention, "ALWAYS_ALLOWED", 2)
    store.save([document(f"u{n}") for n in range(10)])
    store.add_impressions([impression("u1")])
    with pytest.raises(StoreError, match=r"10 of 10 users .* --expire-share 0\.2; nothing was"):
        store.expire(Retention(before=4e9, max_users=100))
    with pytest.raises(StoreError, match="3 of 10 users"):
        store.expire(Retention(before=0, max_users=7))
    assert store.count() == 10
    assert store.impressions("u1")
    assert store.expire(Retention(before=0, max_users=8)) == 2  # as many may always go
    assert store.expire(Retention(before=0, max_users=4, max_share=0.5)) == 4
    assert store.expire(Retention(before=4e9, max_users=100, max_share=1)) == 4
    assert store.impressions("u1") == []


def test_the_oldest_users_go_from_a_store_that_is_too_large(store):
    ids = [f"u{n:03}" for n in range(400)]
    events = tuple(LiveEvent(START + n, f"i{n * n}", "view") for n in range(500))
    store.save([UserDocument(user, events) for user in ids])
    if isinstance(store, sqlite.SQLiteStore):
        without_log(store)
    before = store.size()
    assert before > 1_000_000
    assert store.expire(Retention(before=0, max_users=1000, max_bytes=2 * before)) == 0
    deleted = store.expire(Retention(before=0, max_users=1000, max_bytes=before / 2, max_share=1))
    assert 100 < deleted < 300
    assert set(store.load(ids).documents) == set(ids[deleted:])
    wait(lambda: store.size() < 0.8 * before)  # SQLite shrinks its file with the next checkpoint


def test_a_tombstone_refuses_what_was_loaded_before(store):
    store.save([document("u")])
    assert store.delete("u", deleted_at=START)
    assert not store.delete("u", deleted_at=START - 9)  # the newest deletion counts
    assert store.count() == 0
    deleted = store.load(["u", "v"]).documents["u"]
    assert (deleted.version, deleted.deleted_at, deleted.events) == (0, START, ())
    assert store.save([document("u")]) == ["u"]  # does not know of the deletion
    assert store.save([document("u", deleted_at=START)]) == []
    assert store.load(["u"]).documents["u"].deleted_at == START
    store.add_impressions([impression("u", START), impression("u", START + 1)])
    assert [i.time for i in store.impressions("u")] == [START + 1]
    assert store.delete("u")
    assert store.load(["u"]).documents["u"].deleted_at == START


def kept_tombstones(store):
    if isinstance(store, sqlite.SQLiteStore):
        return [user for (user,) in store.rows("SELECT user_id FROM deleted")]
    return [user.decode() for user in store.client.zrange(redis.DELETED, 0, -1)]


def test_a_tombstone_holds_no_id(store):
    store.delete("u", deleted_at=START)
    [kept] = kept_tombstones(store)
    assert kept != "u"
    with closing(open_store(address_of(store))) as other:  # has the same key
        assert other.load(["u"]).documents["u"].deleted_at == START
        other.delete("u", deleted_at=START + 1)
    assert kept_tombstones(store) == [kept]


def delete_as_an_earlier_version(store, seconds):
    """Its tombstones hold the id itself."""
    if isinstance(store, sqlite.SQLiteStore):
        store.connection.execute("INSERT INTO deleted VALUES ('u', ?)", (seconds,))
    else:
        store.client.zadd(redis.DELETED, {"u": seconds})


def test_of_two_tombstones_the_newer_one_counts(store):
    """Workers of two versions may delete one user."""
    store.delete("u", deleted_at=START)
    delete_as_an_earlier_version(store, START + 1)
    fresh = store.load(["u"]).documents["u"]
    assert fresh.deleted_at == START + 1
    assert store.save([fresh]) == []


def test_a_tombstone_of_an_earlier_version_counts_until_the_next_deletion(store):
    delete_as_an_earlier_version(store, START)
    assert store.load(["u"]).documents["u"].deleted_at == START
    assert store.save([document("u")]) == ["u"]
    assert store.save([document("u", deleted_at=START)]) == []
    store.add_impressions([impression("u", START)])
    assert store.impressions("u") == []
    assert store.delete("u")
    assert store.load(["u"]).documents["u"].deleted_at == START
    assert "u" not in kept_tombstones(store)


def test_a_compacted_store_keeps_its_documents(store):
    store.save([document("a"), document("b")])
    store.delete("a")
    assert store.compact() == []
    assert set(store.load(["a", "b"]).documents) == {"b"}


def test_tombstones_expire_by_their_own_rule(store):
    for number, user in enumerate("abcd"):
        store.delete(user, deleted_at=START + number)
    assert store.expire(Retention(before=4e9, max_users=3, tombstones_before=START + 1)) == 0
    assert set(store.load("abcd").documents) == set("bcd")
    store.expire(Retention(before=0, max_users=2))
    assert set(store.load("abcd").documents) == set("cd")
    store.expire(Retention(before=0, max_users=2, tombstones_before=4e9))
    assert store.load("abcd").documents == {}


def test_a_store_that_works_passes_its_check(store):
    store.check()
    store.save([document("u")])
    store.check()
    assert store.count() == 1


def test_threads_may_share_a_store(store):
    def work(name):
        for number in range(8):
            store.save([document(f"{name}{number}")])
            assert store.load([f"{name}{number}"]).documents
            store.add_impressions([impression(name, number)])
            store.check()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, "abcd"))
    assert store.count() == 32
    assert len(store.impressions("a")) == 8


def test_the_size_of_each_written_document_is_observed(store):
    sizes = []
    store.observe = sizes.append
    store.save([UserDocument("a"), UserDocument("b", truncated=7)])
    assert len(sizes) == 2
    assert min(sizes) > 10
