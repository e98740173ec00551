"""Properties of the Redis store alone, with a real server that the tests start and kill."""

import shutil
import signal

import pytest
from helpers.jobs import holding
from helpers.servers import START, Load, RedisServer, Service, wait

from jaxrec.errors import ConfigError, StoreError
from jaxrec.inference import loading
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores import redis_files
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument
from jaxrec.serving.stores.opening import open_store
from jaxrec.serving.stores.redis import TOMBSTONE_KEY
from jaxrec.serving.stores.retention import Retention

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


def test_nothing_remains_of_a_deleted_and_of_an_expired_user(store):
    store.save([UserDocument("a"), UserDocument("b")])
    store.add_impressions([Impression(user, START, "m", ("i1",), (1.0,)) for user in "ab"])
    assert len(store.client.keys("*")) == 7  # two per user, two sorted sets, the tombstones' key
    store.delete("a")
    store.expire(Retention(before=4e9, max_users=3))
    assert store.client.keys("*") == [TOMBSTONE_KEY.encode()]


def test_no_file_of_a_compacted_server_holds_a_deleted_user(server, store, tmp_path):
    store.client.config_set("save", "3600 1")
    store.save([UserDocument("secret-user-1"), UserDocument("other-user-2")])
    store.client.save()
    assert "dump.rdb" in holding(tmp_path, "secret-user-1")
    store.delete("secret-user-1")
    assert store.compact() == []
    assert "dump.rdb" not in holding(tmp_path, "secret-user-1")
    wait(lambda: not holding(tmp_path, "secret-user-1"))  # a thread removes the old log
    assert len(holding(tmp_path, "other-user-2")) == 2
    store.client.config_set("save", "")
    store.delete("other-user-2")
    assert store.compact() == []
    assert "dump.rdb" not in holding(tmp_path, "other-user-2")


def test_compaction_makes_no_snapshot_on_a_server_without_one(store, tmp_path):
    store.save([UserDocument("a")])
    assert store.compact() == []
    assert not (tmp_path / "dump.rdb").exists()


def test_files_that_are_not_rewritten_are_named(store, monkeypatch):
    store.save([UserDocument("a")])
    store.client.config_set("save", "3600 1")
    store.client.config_set("rdb-key-save-delay", 500_000)  # microseconds
    monkeypatch.setattr(redis_files, "FILE_SECONDS", 0.0)
    log, snapshot = store.compact()
    assert "append-only file of Redis may hold earlier content: the server still writes" in log
    assert "snapshot of Redis may hold earlier content: the server still writes" in snapshot
    store.client.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof", "-bgsave")
    monkeypatch.setattr(redis_files, "FILE_SECONDS", 60.0)
    log, snapshot = store.compact()
    assert "append-only file" in log and "permission" in log
    assert "snapshot" in snapshot and "permission" in snapshot


def test_errors_name_no_user(store):
    """Errors of a pipeline hold its command."""
    store.client.set("{jaxrec}:shopper:secret) of pipeline caused error: secret", "no document")
    with pytest.raises(StoreError, match="the store fails: WRONGTYPE") as refused:
        store.load(["secret) of pipeline caused error: secret"])
    assert "secret" not in str(refused.value)
    store.client.config_set("maxmemory", 1)
    with pytest.raises(StoreError, match="maxmemory") as refused:
        store.save([UserDocument("secret")])
    assert "secret" not in str(refused.value)


def test_a_user_written_during_expiry_stays(store, monkeypatch):
    store.save([UserDocument("a"), UserDocument("b")])
    delete_unchanged = store._delete_unchanged

    def write_then_delete(index, key_of, users):
        if users:
            store.save([UserDocument("a", version=store.load(["a"]).documents["a"].version)])
        return delete_unchanged(index, key_of, users)

    monkeypatch.setattr(store, "_delete_unchanged", write_then_delete)
    assert store.expire(Retention(before=4e9, max_users=5)) == 1
    assert set(store.load("ab").documents) == {"a"}


def test_workers_that_share_a_server_see_all_events(trained_run, server):
    model = loading.load(trained_run)
    first, second = (LiveEngine(model, open_store(server.address), window=3) for _ in range(2))
    for number in range(6):
        worker = (first, second)[number % 2]
        event = LiveEvent(START + 3600 * number, f"i{number:02}", "view")
        assert worker.record([UserEvent("u", event)]) == ["accepted"]
    answers = [worker.recommend(["u"], k=5)[0] for worker in (first, second)]
    assert answers[0].events == 6
    assert answers[0].items == answers[1].items


def test_a_killed_server_has_lost_nothing_when_it_is_back(server, store):
    a, b = UserDocument("a"), UserDocument("b")
    assert store.save([a]) == []
    server.kill()
    for call in (lambda: store.load(["a"]), lambda: store.save([b]), store.count):
        with pytest.raises(StoreError, match="the store fails"):
            call()
    server.start()
    assert set(store.load(["a", "b"]).documents) == {"a"}
    assert store.save([b]) == []


def test_a_server_that_may_lose_events_causes_a_warning(server, store, caplog):
    assert not caplog.records
    server.kill()
    server.start(fsync="everysec")
    open_store(server.address).close()
    assert "appendfsync always" in caplog.text


@pytest.mark.parametrize("address", ["redis://:x/0", "redis://host:port/0", "nix://host/0"])
def test_an_address_that_cannot_be_read_is_refused(address):
    with pytest.raises(ConfigError, match="redis://HOST:PORT/DATABASE"):
        open_store(address)


def test_a_missing_server_is_reported_at_once():
    with pytest.raises(StoreError, match="the store fails"):
        open_store("redis://127.0.0.1:1/0")


@pytest.mark.slow
def test_killing_a_worker_and_the_server_loses_no_acknowledged_event(trained_run, server):
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


def test_a_server_that_may_drop_users_causes_a_warning(server, store, caplog):
    store.client.config_set("maxmemory-policy", "allkeys-lru")
    open_store(server.address).close()
    assert "maxmemory-policy noeviction" in caplog.text


def test_a_check_tells_of_a_server_that_is_full_or_gone(server, store):
    store.check()
    store.client.config_set("maxmemory", "1mb")
    with pytest.raises(StoreError, match="maxmemory"):
        store.check()
    store.client.config_set("maxmemory", "0")
    store.check()
    server.kill()
    with pytest.raises(StoreError, match="the store fails"):
        store.check()


def test_reads_wait_for_a_paused_server_for_less_time_than_writes(server):
    """Of a write that may wait for an hour, a read that gives up at once."""
    store = open_store(server.address)
    assert store.reader.connection_pool.connection_kwargs["socket_timeout"] == 1
    assert store.client.connection_pool.connection_kwargs["socket_timeout"] == 5
    server.process.send_signal(signal.SIGSTOP)
    try:
        for call in (lambda: store.load(["a"]), lambda: store.impressions("a"), store.check):
            with pytest.raises(StoreError, match="the store fails"):
                call()
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert store.load(["a"]).documents == {}
    store.close()
