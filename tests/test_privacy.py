"""Messages and logs hold no id of a user and no value of an event, unless `--debug` is given."""

import json
from contextlib import closing

import polars as pl
import pytest
from fastapi.testclient import TestClient
from helpers.live import event
from helpers.servers import wait
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
from jaxrec.serving.http import upkeep
from jaxrec.serving.http.app import create_app
from jaxrec.serving.inputs import open_user_events
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore

SECRET = "secret-shopper"
ITEM, TIME = "item-of-secret", "1700000000"
HIDDEN = (SECRET, ITEM, TIME)
HEADER = "user_id,item_id,timestamp,event_id\n"
ROW = f"{SECRET},{ITEM},{TIME},e-{SECRET}\n"


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("JAXREC_DEBUG")


BROKEN = {
    "a null id": HEADER + ROW + ",i1,1700000000,e2\n",
    "blanks": HEADER + ROW.replace(SECRET, f" {SECRET} "),
    "a time": HEADER + ROW.replace(TIME, f"soon-{SECRET}"),
    "times of two units": HEADER + 2 * ROW + f"{SECRET},{ITEM},1700000000123456,e2\n",
    "a time before 1980": HEADER + ROW.replace(TIME, "17000") + ROW.replace(f"e-{SECRET}", "e2"),
    "an item": HEADER + ROW.replace(ITEM, ""),
    "an item with blanks": HEADER + ROW.replace(ITEM, f" {ITEM} "),
    "an item of lost digits": HEADER + ROW.replace(ITEM, "1.70000000012E+18"),
    "two contents": HEADER + ROW + ROW.replace(ITEM, "i2"),
    "a long row": HEADER + ROW.strip() + ",more,and more\n" + ROW,
    "a quote": HEADER + f'"{SECRET},i1,1700000000,e1\n' + ROW,
}


def assert_hides_events(told: str, values=(*HIDDEN, "17000", "1.7")) -> None:
    """A text holds none of the values of `ROW` and `BROKEN`."""
    assert not [value for value in values if value in told], told


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_errors_and_notes_of_files_hold_no_value(tmp_path, content):
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
        assert_hides_events(told)


def test_an_error_names_row_and_column_and_with_debug_the_value(tmp_path, monkeypatch):
    path = tmp_path / "events.csv"
    path.write_text(HEADER + ROW + ROW.replace(ITEM, "1.5E+18"))
    with pytest.raises(InputError, match=r"column 'item_id': .*\(row 2: \(hidden; --debug"):
        load_source(str(path))
    monkeypatch.setenv("JAXREC_DEBUG", "1")
    with pytest.raises(InputError, match=r"row 2: '1\.5E\+18'\)"):
        load_source(str(path))


def test_values_of_items_are_shown(tmp_path):
    (tmp_path / "events.csv").write_text(HEADER + ROW)
    (tmp_path / "items.csv").write_text("item_id,title\nsoap,one\nsoap,two\n")
    with pytest.raises(InputError, match=r"column 'item_id': .*\(row 1: 'soap', row 2: 'soap'\)"):
        load_source(str(tmp_path))


@pytest.mark.parametrize("strict", [False, True])
def test_items_that_only_events_have_are_not_shown(tmp_path, strict):
    (tmp_path / "events.csv").write_text(HEADER + ROW + f"{SECRET},i1,{TIME},e2\n")
    (tmp_path / "items.csv").write_text("item_id\ni1\n")
    try:
        told = " ".join(load_source(str(tmp_path), strict=strict).notes)
    except InputError as error:
        told = str(error)
    assert "are not in" in told
    assert_hides_events(told)


@pytest.mark.parametrize(
    "options",
    ["ratings: {like: 4}", "min_rating: 4, columns: {rating: user_id}", "event_types: {a: b}"],
)
def test_errors_of_descriptions_hold_no_value(tmp_path, options):
    header, row = HEADER.strip() + ",rating,event\n", ROW.strip() + f",{TIME[:5]}x,{SECRET}\n"
    (tmp_path / "all.csv").write_text(header + row)
    (tmp_path / "dataset.yaml").write_text(f"events: {{files: all.csv, {options}}}\n")
    with pytest.raises(InputError) as refused:
        load_source(str(tmp_path))
    assert_hides_events(str(refused.value))


def test_errors_of_atomic_files_hold_no_value(tmp_path):
    fields = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    (tmp_path / "d.inter").write_text(f"{fields}{SECRET}\t{ITEM}\t{TIME}\t{ITEM}\n")
    with pytest.raises(InputError, match="are not numbers") as refused:
        load_source(str(tmp_path))
    assert_hides_events(str(refused.value))


def test_too_many_event_types_are_not_shown(tables):
    types = pl.int_range(len(tables.events)).cast(pl.String) + f"-{SECRET}"
    with pytest.raises(InputError, match="event types") as refused:
        prepare(config(), validate_tables(tables.events.with_columns(event=types), None, None))
    assert_hides_events(str(refused.value))


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


def test_notes_on_events_of_unknown_items_hold_no_id(trained_run, known_shop, tmp_path, capsys):
    model, path = loading.load(trained_run), tmp_path / "events.parquet"
    bought = pl.col("item_id").replace("i00", ITEM)
    known_shop.events.with_columns(bought).write_parquet(path)
    open_user_events(model, path)
    told = capsys.readouterr().err
    assert "events are of items that the catalogue lacks" in told and ITEM not in told
    known_shop.events.with_columns(item_id=pl.lit(ITEM)).write_parquet(path)
    with pytest.raises(InputError, match="none of the") as refused:
        open_user_events(model, path)
    assert ITEM not in str(refused.value)
    with pytest.raises(InputError, match="as text") as refused:
        open_user_events(model, path, users=[SECRET, "\ud800"])
    assert SECRET not in str(refused.value)


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
        bought = known_shop.events.head(2).with_columns(pl.lit(f"\n{ITEM}").alias("item_id"))
        store.connection.execute("UPDATE shoppers SET version = 9, document = x'00'")
        for use in (
            lambda: engine.recommend([SECRET]),
            lambda: engine.record([UserEvent(f"{SECRET}\n", event(0))]),
            lambda: engine.record([UserEvent("u", event(0, f"{ITEM}\n"))]),
            lambda: engine.recorder.import_users(wrong),
            lambda: engine.recorder.import_users(bought),
        ):
            with pytest.raises((InputError, StoreError)) as refused:
                use()
            assert_hides_events(str(refused.value))
        store.connection.execute("DELETE FROM shoppers")
        monkeypatch.setattr(store, "save", lambda documents: [d.user_id for d in documents])
        [busy] = engine.record([UserEvent(SECRET, event(0))])
        assert "other processes keep writing user (hidden" in str(busy)


def test_the_log_and_the_metrics_of_a_service_hold_no_id(
    trained_run, tmp_path, caplog, monkeypatch
):
    """Without a model, whose requests `tests/serving/http/test_middleware.py` sends."""
    monkeypatch.setattr(run_directory, "file_states", lambda run: set())

    def fail(*_):
        raise RuntimeError(f"of {SECRET}")

    monkeypatch.setattr(upkeep, "_expire", fail)
    app = create_app(trained_run, LiveOptions(store=str(tmp_path / "store.db")))
    with TestClient(app) as client:
        service = client.app.state.service
        client.get(f"/users/{SECRET}/recommendations")
        client.post("/events", json={"user_id": f"{SECRET}\n"})
        client.post("/events", json={"user_id": SECRET, "item_id": ITEM, "timestamp": int(TIME)})
        client.post("/events", content=SECRET)
        client.get(f"/users/{SECRET}%0a/profile")
        monkeypatch.setattr(service.store, "delete", fail)
        assert client.delete(f"/users/{SECRET}").status_code == 500
        assert "DELETE /users/{user_id}: RuntimeError" in caplog.text
        wait(lambda: "cannot delete expired documents (RuntimeError" in caplog.text)
        records = [record for record in caplog.records if "httpx" not in record.name]
        own = [f"{record.getMessage()} {record.exc_text or ''}" for record in records]
        assert_hides_events("".join(own), HIDDEN)
        assert_hides_events(client.get("/metrics").text, HIDDEN)
