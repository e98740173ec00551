"""Shoppers in a real Redis server, which the tests start, stop and kill."""

import shutil
import signal

import pytest
from helpers.servers import START, Load, RedisServer, Service

from jaxrec.errors import StoreError
from jaxrec.inference import loading
from jaxrec.serving.live.engine import LiveEngine, UserEvent
from jaxrec.serving.stores.sqlite import Impression, LiveEvent, UserDocument, open_store

pytestmark = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a Redis server (Debian: redis-server)"
)


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def store(server):
    store = open_store(server.address)
    yield store
    store.close()


def document(user, version=0, **more):
    return UserDocument(user, (LiveEvent(START, "i01", "view", "e1"),), version=version, **more)


def test_documents_are_replaced_only_by_whoever_read_them_last(store):
    assert store.save([document("a"), document("b")]) == []
    found = store.load(["a", "b", "c"])
    assert set(found) == {"a", "b"}
    assert found["a"].events == document("a").events
    version = found["a"].version
    assert store.save([document("a")]) == ["a"]  # as if it were new
    assert store.save([document("a", version, truncated=5), document("b", 7)]) == ["b"]
    assert store.load(["a"])["a"].version == version + 1
    store.forget("a")
    assert store.save([document("a")]) == []
    assert store.save([document("a", version, truncated=9)]) == [
        "a"
    ]  # read before it was truncated
    assert store.save([document("a", store.load(["a"])["a"].version, truncated=5)]) == []
    assert store.load(["a"])["a"].truncated == 5
    assert store.count() == 2


def test_old_and_surplus_shoppers_expire_and_the_forgotten_leave_nothing(store):
    for user in "abcd":
        store.save([document(user)])
    store.show([Impression("a", START, "m", ("i1", "i2"), (0.9, 0.1))])
    assert store.shown("a") == [Impression("a", START, "m", ("i1", "i2"), (0.9, 0.1))]
    assert store.expire(before=0, most=3) == 1
    assert set(store.load("abcd")) == set("bcd")
    assert store.count() == 3
    store.expire(before=START + 1, most=3)
    assert store.shown("a") == []
    assert store.forget("b")
    assert not store.forget("b")
    assert store.expire(before=4e9, most=3) == 2
    assert store.client.keys("*") == []


def test_who_is_written_while_others_expire_stays(store, monkeypatch):
    store.save([document("a"), document("b")])
    expire = store._expire_users

    def meanwhile(index, key_of, found):
        if found:
            store.save([document("a", store.load(["a"])["a"].version)])
        return expire(index, key_of, found)

    monkeypatch.setattr(store, "_expire_users", meanwhile)
    assert store.expire(before=4e9, most=5) == 1
    assert set(store.load("ab")) == {"a"}


def test_workers_on_one_server_fold_behind_each_other(trained_run, server):
    model = loading.load(trained_run)
    first, second = (LiveEngine(model, open_store(server.address), window=3) for _ in range(2))
    for number in range(6):
        worker = (first, second)[number % 2]
        event = LiveEvent(START + 3600 * number, f"i{number:02}", "view")
        assert worker.record([UserEvent("u", event)]) == ["accepted"]
    answers = [worker.recommend(["u"], k=5)[0] for worker in (first, second)]
    assert answers[0].events == 6
    assert answers[0].items.equals(answers[1].items)


def test_a_server_that_dies_and_comes_back_has_lost_nothing(server, store):
    assert store.save([document("a")]) == []
    server.kill()
    for call in (lambda: store.load(["a"]), lambda: store.save([document("b")]), store.count):
        with pytest.raises(StoreError, match="the store fails"):
            call()
    server.start()
    assert set(store.load(["a", "b"])) == {"a"}
    assert store.save([document("b")]) == []


def test_a_server_that_may_lose_events_is_told_of(server, store, caplog):
    assert not caplog.records
    server.kill()
    server.start(fsync="everysec")
    open_store(server.address).close()
    assert "appendfsync always" in caplog.text


def test_no_server_is_said_at_once():
    with pytest.raises(StoreError, match="the store fails"):
        open_store("redis://127.0.0.1:1/0")


def test_kill_9_of_a_worker_and_of_the_server_loses_no_acknowledged_event(trained_run, server):
    workers = [Service(trained_run, server.address) for _ in range(2)]
    with Load(workers) as load:
        load.wait_for(60)
        server.kill()
        load.wait_for_refusals(4)
        server.start()
        load.wait_for(60)
        assert workers[0].stop(signal.SIGKILL) == -signal.SIGKILL
        load.wait_for(60)
    assert workers[1].stop() == 128 + signal.SIGTERM
    assert load.lost(open_store(server.address)) == set()
