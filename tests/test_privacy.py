"""Messages and logs hold no id of a user, unless `--debug` is given."""

import json
from contextlib import closing

import polars as pl
import pytest
from fastapi.testclient import TestClient
from helpers.live import event
from helpers.training import config

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.cli import main
from jaxrec.data.dataset import prepare
from jaxrec.data.sources import load_source
from jaxrec.data.stream import open_events
from jaxrec.data.tables import validate_tables
from jaxrec.errors import InputError, StoreError
from jaxrec.inference import loading
from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore

SECRET = "secret-shopper"
HEADER = "user_id,item_id,timestamp,event_id\n"
ROW = f"{SECRET},i1,1700000000,e-{SECRET}\n"


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("JAXREC_DEBUG")


BROKEN = {
    "a null id": HEADER + ROW + ",i1,1700000000,e2\n",
    "blanks": HEADER + ROW.replace(SECRET, f" {SECRET} "),
    "a time": HEADER + ROW.replace("1700000000", "soon"),
    "an item": HEADER + ROW.replace("i1", ""),
    "two contents": HEADER + ROW + ROW.replace("i1", "i2"),
    "a long row": HEADER + ROW.strip() + ",more,and more\n" + ROW,
    "a quote": HEADER + f'"{SECRET},i1,1700000000,e1\n' + ROW,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_errors_and_notes_of_files_hold_no_id(tmp_path, content):
    path = tmp_path / "events.csv"
    path.write_text(content)
    for read in (
        lambda: load_source(str(path)).notes,
        lambda: load_source(str(path), as_codes=True).notes,
        lambda: [open_events(path, 1).notes, *open_events(path, 1).blocks()][0],
    ):
        try:
            told = " ".join(read())
        except InputError as error:
            told = str(error)
        assert SECRET not in told


@pytest.mark.parametrize("values", [[SECRET, 1.5], [SECRET, ""], [[SECRET], [SECRET]]])
def test_errors_of_tables_hold_no_id(values):
    events = pl.DataFrame(
        {"user_id": pl.Series(values, strict=False), "item_id": ["i", "i"], "timestamp": [1, 2]}
    )
    if events.schema["user_id"] == pl.String:
        events = events.with_columns(pl.lit("").alias("item_id"))
    with pytest.raises(InputError) as refused:
        validate_tables(events, None, None, time="order")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "lines", [[{"user_id": SECRET}, "{" + SECRET], [{"user_id": SECRET, "timestamp": {"a": 1}}]]
)
def test_errors_of_json_and_queries_hold_no_id(tmp_path, lines):
    path = tmp_path / "events.jsonl"
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(written) + "\n")
    with pytest.raises(InputError) as refused:
        load_source(str(path))
    assert SECRET not in str(refused.value)
    (tmp_path / "events.csv").write_text(HEADER + ROW)
    rows = "FROM read_csv('events.csv', all_varchar=true)"
    for columns in (
        "CAST(user_id AS INT) AS user_id, item_id, timestamp",
        "user_id, item_id, strptime(user_id, '%Y') AS timestamp",
    ):
        (tmp_path / "dataset.yaml").write_text(f'events: "SELECT {columns} {rows}"\n')
        with pytest.raises(InputError, match="Could not") as refused:
            load_source(str(tmp_path))
        assert SECRET not in str(refused.value)


def test_a_note_on_a_long_history_holds_no_id(monkeypatch, tables):
    monkeypatch.setattr("jaxrec.data.dataset.LONG_HISTORY", 3)
    users = pl.col("user_id").str.replace("u", SECRET)
    renamed = validate_tables(tables.events.with_columns(users), tables.items, None)
    notes = " ".join(prepare(config(), renamed).notes)
    assert "user (hidden; --debug shows it) has" in notes
    assert SECRET not in notes
    monkeypatch.setenv("JAXREC_DEBUG", "1")
    assert SECRET in " ".join(prepare(config(), renamed).notes)


def test_commands_print_no_id(trained_run, known_shop, tmp_path, capsys, monkeypatch):
    events = tmp_path / "events.parquet"
    known_shop.events.write_parquet(events)
    scored = [str(trained_run), "--events", str(events)]
    refused = ["recommend", *scored, "--out", str(tmp_path / "out"), "--users", SECRET]
    for command in (
        refused,
        ["explain", str(trained_run), SECRET, "--events", str(events)],
        ["plot", *scored[:1], SECRET, *scored[1:], "--out", str(tmp_path / "p.png")],
        ["forget", SECRET, "--forgotten", str(tmp_path / "no" / "list.txt")],
        ["forget", SECRET, "--forgotten", str(tmp_path / "f.txt"), "--outputs", str(tmp_path)],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        told = capsys.readouterr()
        assert SECRET not in told.out + told.err, command
    monkeypatch.setenv("JAXREC_DEBUG", "")  # so that it is undone
    with pytest.raises(SystemExit):
        main([*refused, "--debug"])
    assert SECRET in capsys.readouterr().err
    monkeypatch.setenv("JAXREC_DEBUG", "")
    with pytest.raises(InputError) as unknown:
        jaxrec.load(trained_run).log_of(known_shop.events, SECRET)
    assert SECRET not in str(unknown.value)


def test_errors_of_the_live_engine_hold_no_id(trained_run, known_shop, tmp_path, monkeypatch):
    with closing(SQLiteStore(tmp_path / "store.db")) as store:
        engine = LiveEngine(loading.load(trained_run), store)
        assert engine.record([UserEvent(SECRET, event(0))]) == ["accepted"]
        wrong = known_shop.events.head(2).with_columns(pl.lit(f"\n{SECRET}").alias("user_id"))
        store.connection.execute("UPDATE shoppers SET version = 9, document = x'00'")
        for use in (
            lambda: engine.recommend([SECRET]),
            lambda: engine.record([UserEvent(f"{SECRET}\n", event(0))]),
            lambda: engine.recorder.import_users(wrong),
        ):
            with pytest.raises((InputError, StoreError)) as refused:
                use()
            assert SECRET not in str(refused.value)
        store.connection.execute("DELETE FROM shoppers")
        monkeypatch.setattr(store, "save", lambda documents: [d.user_id for d in documents])
        [busy] = engine.record([UserEvent(SECRET, event(0))])
        assert "other processes keep writing user (hidden" in str(busy)


def test_the_log_and_the_metrics_of_a_service_hold_no_id(
    trained_run, tmp_path, caplog, monkeypatch
):
    """Without a model, whose requests `tests/serving/http/test_middleware.py` sends."""
    monkeypatch.setattr(run_directory, "file_states", lambda run: set())
    app = create_app(trained_run, LiveOptions(store=str(tmp_path / "store.db")))

    def fail(*_):
        raise RuntimeError(f"of {SECRET}")

    with TestClient(app) as client:
        service = client.app.state.service
        client.get(f"/users/{SECRET}/recommendations")
        client.post("/events", json={"user_id": f"{SECRET}\n"})
        client.post("/events", content=SECRET)
        client.get(f"/users/{SECRET}%0a/profile")
        monkeypatch.setattr(service.store, "delete", fail)
        assert client.delete(f"/users/{SECRET}").status_code == 500
        assert "RuntimeError" in caplog.text
        own = [record.getMessage() for record in caplog.records if "httpx" not in record.name]
        assert SECRET not in "".join(own)
        assert SECRET not in client.get("/metrics").text
