"""Both stores pass the same checks."""

import shutil

import pytest
from helpers.servers import START, RedisServer

from jaxrec.serving.stores import redis, sqlite
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument
from jaxrec.serving.stores.opening import open_store

needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a Redis server (Debian: redis-server)"
)


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
    loaded = store.load(["a", "b", "c"])
    assert set(loaded) == {"a", "b"}
    assert loaded["a"].events == document("a").events
    version = loaded["a"].version
    assert store.save([document("a")]) == ["a"]  # as a new document
    assert store.save([document("a", version, truncated=5), document("b", 7)]) == ["b"]
    assert store.load(["a"])["a"].version == version + 1
    assert store.load(["a"])["a"].truncated == 5
    assert store.count() == 2


def test_a_deleted_document_cannot_be_saved_by_an_earlier_reader(store):
    store.save([document("u", truncated=1)])
    before = store.load(["u"])["u"]
    assert store.delete("u")
    assert not store.delete("u")
    assert store.save([before]) == ["u"]
    assert store.save([document("u", truncated=2)]) == []
    assert store.save([before]) == ["u"]
    assert store.save([document("u", store.load(["u"])["u"].version, truncated=3)]) == []
    assert store.load(["u"])["u"].truncated == 3


def test_old_and_surplus_documents_expire(store):
    for user in "abcd":
        store.save([document(user)])
    assert store.expire(before=0, max_users=3) == 1
    assert set(store.load("abcd")) == set("bcd")
    assert store.count() == 3
    assert store.expire(before=4e9, max_users=3) == 3
    assert store.count() == 0


def test_impressions_are_deleted_with_their_user_and_expire(store):
    store.save([document("a")])
    store.add_impressions([impression("a"), impression("b")])
    assert store.impressions("a") == [impression("a")]
    store.delete("a")
    assert store.impressions("a") == []
    store.expire(before=START + 1, max_users=3)
    assert store.impressions("b") == []


def test_the_newest_impressions_are_kept(store, monkeypatch):
    for module in (sqlite, redis):
        monkeypatch.setattr(module, "MAX_IMPRESSIONS", 3)
    for time in range(5):
        store.add_impressions([impression("u", time), impression(f"v{time}", time)])
    assert [i.time for i in store.impressions("u")] == [2, 3, 4]
    store.expire(before=0, max_users=2)  # counts users without a document as well
    assert [bool(store.impressions(user)) for user in ("u", "v3", "v4")] == [True, False, True]
