"""A forgotten user is gone from every place, and the report says from which."""

import json
import shutil
from contextlib import closing

import polars as pl
import pytest
from helpers.jobs import BLOCK, holding
from helpers.servers import START, RedisServer, wait
from helpers.stores import needs_redis

from jaxrec.artifacts.files import locked
from jaxrec.cli import main
from jaxrec.inference import loading
from jaxrec.serving import forgetting
from jaxrec.serving.states import read_states
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument
from jaxrec.serving.stores.opening import open_store
from jaxrec.serving.stores.sqlite import SQLiteStore

GONE, STAYS = "secret-user-1", "other-user-2"
NAMES = {"u003": GONE, "u004": STAYS}


@pytest.fixture
def run(trained_run, tmp_path):
    """The run as if two of its test users had these ids."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("shoppers.db*"))
    ranks = pl.read_parquet(run / "ranks.parquet")
    ranks.with_columns(pl.col("user_id").replace(NAMES)).write_parquet(run / "ranks.parquet")
    return run


@pytest.fixture
def forget(capsys, tmp_path):
    def command(*arguments, code=0):
        words = ["--forgotten", str(tmp_path / "forgotten.txt"), *map(str, arguments)]
        try:
            main(["forget", *words])
        except SystemExit as stop:
            assert stop.code == code
        return capsys.readouterr()

    return command


def stored(address):
    """A store with two users."""
    with closing(open_store(address)) as store:
        events = (LiveEvent(START, "i01", "view", "e1"),)
        assert store.save([UserDocument(user, events) for user in (GONE, STAYS)]) == []
        shown = [Impression(user, START, "m", ("i1",), (1.0,)) for user in (GONE, STAYS)]
        store.add_impressions(shown)
    return address


@pytest.mark.thorough
def test_no_byte_of_a_forgotten_user_remains(run, known_shop, forget, tmp_path, capsys):
    events = tmp_path / "input" / "events.parquet"
    events.parent.mkdir()
    known_shop.events.with_columns(pl.col("user_id").replace(NAMES)).write_parquet(events)
    scored = ["--events", str(events), "--quiet"]
    names = ("out", "states", "audience.csv", "why.json")
    out, states, audience, why = (tmp_path / name for name in names)
    lists = ["--out", str(out), "--states", str(states), "--k", "3", *BLOCK]
    main(["recommend", str(run), *scored, *lists])
    audience.write_text(f"rank,user_id\n1,{GONE}\n2,{STAYS}\n")  # as `jaxrec audience` does
    main(["explain", str(run), GONE, "--events", str(events), "--out", str(why)])
    stored(run / "shoppers.db")
    shutil.rmtree(events.parent)
    places = ["--run", run, "--states", states, "--outputs", out, audience, why, "--json"]
    kept_in = {"shoppers.db", "ranks.parquet", "audience.csv", "part-00000.parquet"}
    assert kept_in | {"why.json"} <= holding(tmp_path, GONE)
    capsys.readouterr()  # of the other commands
    told = forget(GONE, "nobody", *places)
    assert holding(tmp_path, GONE) == set()
    assert kept_in <= holding(tmp_path, STAYS)
    assert GONE not in told.out + told.err
    report = json.loads(told.out)
    assert report["complete"]
    by_place = {place["place"]: (place["users"], place["removed"]) for place in report["places"]}
    assert by_place == {
        str(tmp_path / "forgotten.txt"): (0, {"entries": 2}),
        str(run / "shoppers.db"): (1, {"documents": 1, "impressions": 1}),
        str(out): (1, {"rows": 3, "files": 1}),
        str(audience): (1, {"rows": 1, "files": 1}),
        str(why): (1, {"rows": 3, "files": 1}),
        str(states): (1, {"rows": 1, "files": 1}),
        str(run): (1, {"rows": 1}),
    }
    assert len(read_states(loading.load(run), states)) == 119
    again = json.loads(forget(GONE, *places).out)
    assert [place["users"] for place in again["places"]] == [0] * 7


def test_a_place_that_fails_keeps_no_other_from_being_cleared(forget, monkeypatch, tmp_path):
    monkeypatch.setattr(forgetting, "BUSY_SECONDS", 0.0)
    tables = [tmp_path / "busy" / "part-0.csv", tmp_path / "free" / "part-0.csv"]
    for table in tables:
        table.parent.mkdir()
        table.write_text(f"user_id,rank\n{GONE},1\n")
    busy, free = (table.parent for table in tables)
    wrong = tmp_path / "typing-error"
    with locked(busy):
        told = forget(GONE, "--outputs", wrong, busy, free, "--store", wrong, code=2)
    assert f"outputs {wrong}: FAILED: {wrong} holds no part files" in told.out
    assert "another process is writing" in told.out
    assert f"store {wrong}: FAILED: {wrong}: there is no such store" in told.out
    assert f"outputs {free}: users found: 1; removed: rows 1, files 1" in told.out
    assert "3 of 5 places may still hold users" in told.err
    assert not wrong.exists()
    told = forget(GONE, "--outputs", busy, free).out
    assert f"outputs {busy}: users found: 1; removed: rows 1, files 1" in told
    assert f"outputs {free}: no user found" in told


def test_a_store_whose_files_are_not_rewritten_has_failed(forget, monkeypatch, tmp_path):
    address = stored(str(tmp_path / "users.db"))
    monkeypatch.setattr(SQLiteStore, "compact", lambda _: ["the log still holds content"])
    told = forget(GONE, "--store", address, "--json", code=2)
    report = json.loads(told.out)
    assert not report["complete"]
    [place] = [place for place in report["places"] if place["kind"] == "store"]
    assert place["failure"] == "the log still holds content"
    assert place["removed"] == {"documents": 1, "impressions": 1}
    told = forget(GONE, "--store", address, code=2)
    assert "FAILED: the log still holds content" in told.out


def test_a_run_that_cannot_be_used_keeps_no_other_place_from_being_cleared(forget, tmp_path):
    lists = tmp_path / "lists.csv"
    lists.write_text(f"user_id,rank\n{GONE},1\n")
    told = forget(GONE, "--run", tmp_path / "nope", "--outputs", lists, code=2)
    assert "new entries 1" in told.out and "removed: rows 1, files 1" in told.out
    assert "nope: FAILED: " in told.out and "1 of 3 places may still hold users" in told.err
    assert GONE not in lists.read_text()


def test_the_key_of_user_ids_is_not_that_of_a_list(forget, tmp_path):
    key = tmp_path / "forgotten.key"
    key.touch(0o600)
    key.write_text("k" * 64)
    assert "the list would hold pseudonyms" in forget(GONE, "--id-key", key, code=2).err
    assert not (tmp_path / "forgotten.txt").exists()


def test_a_pattern_matches_tables_too(forget, tmp_path):
    lists = tmp_path / "lists"
    (lists / "today").mkdir(parents=True)
    (lists / "today" / "part-0.csv").write_text(f"user_id,rank\n{GONE},1\n")
    (lists / "audience.csv").write_text(f"rank,user_id\n1,{GONE}\n2,{STAYS}\n")
    (lists / "readme.txt").write_text("no table")
    told = forget(GONE, "--outputs", lists / "*").out
    assert "users found: 1; removed: rows 2, files 2" in told
    assert f"not read, as they are no tables of users: {lists}/readme.txt" in told
    assert holding(lists, GONE) == set()
    assert "new entries 0" in forget(GONE).out
    assert "nothing matches" in forget(GONE, "--outputs", tmp_path / "other*", code=2).out


def test_bad_input_is_refused(capsys, trained_run, tmp_path):
    def refused(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["forget", *map(str, arguments)])
        assert stop.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    listed = ["--forgotten", tmp_path / "f.txt"]
    assert "name users" in refused(*listed)
    assert "with --forgotten FILE" in refused(GONE, "--run", trained_run)
    assert "is empty" in refused("", *listed)
    assert "name the list f.txt" in refused(GONE, "--forgotten", tmp_path / "f.key")
    assert "is a directory" in refused(GONE, "--forgotten", tmp_path)
    assert not list(tmp_path.iterdir())
    users = tmp_path / "users.csv"
    users.write_text("user_id\n")
    main(["forget", *map(str, listed), "--users", str(users)])  # a day without a request
    assert "users to forget: 0" in capsys.readouterr().out


@needs_redis
def test_a_redis_server_holds_the_user_no_more(forget, tmp_path):
    server = RedisServer(tmp_path)
    try:
        stored(server.address)
        with closing(open_store(server.address)) as store:
            client = store.client
            event = json.dumps({"user_id": GONE, "item_id": "i1"})
            for fields in ({"user_id": GONE}, {"event": event}, {"user_id": STAYS}):
                client.xadd("events", fields)
            for kept in (event, event[:30]):
                rejected = {"reason": "r", "fields": json.dumps({"event": kept})}
                client.xadd("events:rejected", rejected)
            places = ["--store", server.address, "--stream", f"{server.address}/events"]
            told = forget(GONE, *places).out
            assert "users found: 1; removed: documents 1, impressions 1" in told
            assert "users found: 1; removed: entries 4" in told
            assert client.xlen("events") == 1
            assert GONE.encode() not in client.dump("events")
            wait(lambda: not holding(tmp_path, GONE))
            assert holding(tmp_path, STAYS)
    finally:
        server.kill()
