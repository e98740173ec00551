"""A service of a run with a key takes ids of users, and keeps none."""

from contextlib import closing

import pytest
import redis
from fastapi.testclient import TestClient
from helpers.jobs import holding
from helpers.servers import RedisServer, payload, wait, wait_until_ready
from helpers.stores import needs_redis
from helpers.training import untrained_run

import jaxrec
from jaxrec.data.forgotten import read_forgotten
from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.opening import open_store

SECRET = "secret-shopper"


@pytest.fixture(scope="module")
def place(tables, tmp_path_factory):
    place = tmp_path_factory.mktemp("keyed")
    (place / "id.key").touch(0o600)
    (place / "id.key").write_bytes(b"0123456789abcdef0123456789abcdef")
    options = {"model.experts": ["id"], "data.id_key": str(place / "id.key")}
    untrained_run(place / "run", tables, **options)
    return place


@pytest.mark.thorough
@needs_redis
def test_the_store_and_the_streams_hold_no_id(place, tmp_path, caplog):
    server = RedisServer(tmp_path)
    database = f"redis://127.0.0.1:{server.port}/0"
    options = LiveOptions(
        store=str(tmp_path / "store.db"),
        consume=f"{database}/events",
        forgotten=tmp_path / "forgotten.txt",
    )
    stored = jaxrec.pseudonym(place / "id.key", SECRET)
    try:
        with (
            redis.Redis.from_url(database) as stream,
            TestClient(create_app(place / "run", options)) as client,
            closing(open_store(tmp_path / "store.db")) as store,
        ):
            wait_until_ready(client)
            user = f"/users/{SECRET}"
            sent = client.post("/events", json=payload(SECRET, 1, "i01"))
            assert sent.json() == {"outcomes": ["accepted"]}
            stream.xadd("events", {"user_id": SECRET, "item_id": "i02", "event": "view"})
            stream.xadd("events", {SECRET: SECRET})
            wait(lambda: stream.xlen("events:rejected"))
            for path in ("recommendations", "profile", "recommendations?k=3&explain=full"):
                answer = client.get(f"{user}/{path}").json()
                assert answer["user_id"] == SECRET
            assert {item["explanation"]["user_id"] for item in answer["items"]} == {SECRET}
            found = client.post("/query", json={"user_id": SECRET, "words": "hair"})
            assert SECRET in found.text or found.status_code == 422  # the model reads no words
            assert client.get("/users").json() == {"users": []}
            assert len(store.load([stored]).documents[stored].events) == 2
            assert store.load([SECRET]).documents == {}
            assert SECRET.encode() not in b"".join(stream.xrange("events:rejected")[0][1].values())
            assert holding(tmp_path, SECRET) <= {"appendonly.aof.1.incr.aof"}  # the shop's stream
            assert client.delete(user).status_code == 204
            assert stream.xlen("events") == 1
            assert store.load([stored]).documents[stored].events == ()
            assert len(read_forgotten(tmp_path / "forgotten.txt").until) == 2
    finally:
        server.kill()
    assert SECRET not in "".join(r.getMessage() for r in caplog.records if "httpx" not in r.name)
    assert holding(place / "run", SECRET) == set()
