import json
import os
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from helpers.shop import HELD_OUT

import jaxrec
from jaxrec.artifacts.partitions import Partitions
from jaxrec.cli import main, scripts
from jaxrec.errors import RunError
from jaxrec.ranking.steps import Feedback
from jaxrec.ranking.strategy import read_strategy
from jaxrec.serving import server, states
from jaxrec.serving.options import LiveOptions, ServeOptions

BLOCK = ["--block", "50"]


@pytest.fixture(scope="module")
def events_file(known_shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    known_shop.events.write_parquet(path)
    return path


@pytest.fixture
def serve(trained_run, events_file):
    def command(*arguments, events=events_file):
        scripts.serve([str(trained_run), "--events", str(events), *map(str, arguments)])

    return command


@pytest.fixture
def ask(trained_run, events_file):
    """Another command on the same run and events."""

    def command(name, *arguments):
        main([name, str(trained_run), *map(str, arguments), "--events", str(events_file)])

    return command


@pytest.fixture
def refused(capsys):
    def message(command, *arguments, **options):
        with pytest.raises(SystemExit) as stop:
            command(*arguments, **options)
        assert stop.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return message


def read(directory):
    return pl.concat(pl.read_parquet(path) for path in sorted(directory.glob("part-*.parquet")))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}


def test_every_user_of_the_file_gets_a_list(serve, trained_run, known_shop, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--k", 4, *BLOCK)
    written = read(tmp_path / "out")
    expected = jaxrec.load(trained_run).recommend(known_shop.events, k=4)
    combined = written.join(expected, on=["user_id", "rank"], suffix="_expected")
    assert len(combined) == len(written) == len(expected)
    np.testing.assert_allclose(combined["score"], combined["score_expected"], rtol=1e-6)
    assert written.columns == ["user_id", "rank", "item_id", "score", "title"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["totals"]["users"] == 120
    assert manifest["totals"]["events"] == len(known_shop.events)
    assert [part["users"] for part in manifest["parts"]] == [50, 50, 20]
    assert (tmp_path / "out" / "_SUCCESS").exists()
    shown = capsys.readouterr()
    assert "brand x item" in shown.out
    assert "not grouped by user" in shown.err


def test_grouped_events_are_streamed_in_their_own_order(serve, known_shop, tmp_path, capsys):
    grouped = tmp_path / "grouped.csv"
    known_shop.events.sort("user_id", descending=True).write_csv(grouped)
    serve("--out", tmp_path / "out", "--k", 2, *BLOCK, events=grouped)
    assert "not grouped" not in capsys.readouterr().err
    first = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert set(first["user_id"]) == {f"u{user:03}" for user in range(70, 120)}


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_other_formats_hold_the_same(serve, tmp_path, name):
    serve("--out", tmp_path / "a", "--k", 2)
    serve("--out", tmp_path / "b", "--k", 2, "--format", name)
    reader = {"csv": pl.read_csv, "jsonl": pl.read_ndjson}[name]
    other = reader(tmp_path / "b" / f"part-00000.{name}")
    assert other.select("user_id", "item_id").equals(
        read(tmp_path / "a").select("user_id", "item_id")
    )


def test_users_can_be_chosen(serve, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--users", "u003", "u005", "nobody")
    assert set(read(tmp_path / "out")["user_id"]) == {"u003", "u005"}
    assert "users without events: 1 of 3" in capsys.readouterr().err


def test_a_stopped_job_goes_on_and_gives_the_same_bytes(serve, tmp_path, monkeypatch, refused):
    options = ["--k", "3", "--caps", "brand", "2", "--explore", "0.3", *BLOCK]
    serve("--out", tmp_path / "whole", *options)
    stopped, write = tmp_path / "stopped", Partitions.write

    def stop_at_the_third(parts, tables, facts):
        if len(parts.done) == 2:
            (stopped / ".part-00002.parquet.99").write_text("half")
            os.kill(os.getpid(), signal.SIGINT)
        return write(parts, tables, facts)

    monkeypatch.setattr(Partitions, "write", stop_at_the_third)
    with pytest.raises(SystemExit) as stop:
        serve("--out", stopped, *options)
    assert stop.value.code == 130
    monkeypatch.undo()
    assert not (stopped / "_SUCCESS").exists()
    before = {path: path.stat().st_mtime_ns for path in stopped.glob("part-*")}
    assert len(before) == 2
    other = ["--out", stopped, *options[:1], "4", *options[2:]]
    assert "another job (options.k: 3, now 4)" in refused(serve, *other)
    with_states = ["--out", stopped, *options, "--states", tmp_path / "states"]
    assert "another job (states" in refused(serve, *with_states)
    serve("--out", stopped, *options)
    assert contents(stopped) == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(stopped.glob(".*"))
    assert "is complete" in refused(serve, "--out", stopped, *options)


def test_kill_9_leaves_a_job_that_goes_on(serve, trained_run, events_file, tmp_path):
    out, arguments = tmp_path / "killed", ["--k", "3", *BLOCK]
    program = (
        "import os, signal, sys\n"
        "from jaxrec.cli import scripts\n"
        "from jaxrec.artifacts.partitions import Partitions\n"
        "write = Partitions.write\n"
        "def kill(parts, tables, facts):\n"
        "    if len(parts.done) == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(parts, tables, facts)\n"
        "Partitions.write = kill\n"
        "scripts.serve(sys.argv[1:])\n"
    )
    command = [str(trained_run), "--events", str(events_file), "--out", str(out), *arguments]
    ended = subprocess.run([sys.executable, "-c", program, *command], env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL
    assert [path.name for path in out.glob("part-*")] == ["part-00000.parquet"]
    serve("--out", out, *arguments)
    serve("--out", tmp_path / "whole", *arguments)
    assert contents(out) == contents(tmp_path / "whole")


def test_states_are_those_of_the_model(serve, trained_run, known_shop, tmp_path):
    serve("--out", tmp_path / "out", "--states", tmp_path / "states", *BLOCK)
    table = read(tmp_path / "states").sort("user_id")
    model = jaxrec.load(trained_run)
    log = model.encoder.event_log(known_shop.events)
    layout = json.loads((tmp_path / "states" / "layout.json").read_text())
    assert table["user_id"].to_list() == log.user_ids.to_list()
    np.testing.assert_array_equal(table["events"], log.lengths)
    np.testing.assert_array_equal(table["last_time"], log.times[log.offsets[1:] - 1])
    sizes = [int(np.prod(part["shape"])) for part in layout["parts"]]
    parts = np.split(table["state"].to_numpy(), np.cumsum(sizes)[:-1], axis=1)
    outputs = [
        part
        for part, described in zip(parts, layout["parts"], strict=True)
        if described["name"].endswith("output")
    ]
    expected = [np.asarray(state.output) for state in model.encoder.states(log)]
    np.testing.assert_allclose(np.stack(outputs), np.stack(expected), atol=1e-5)
    assert (tmp_path / "states" / "_SUCCESS").exists()


def test_states_of_a_finished_job_go_into_a_live_store(
    serve, trained_run, events_file, known_shop, tmp_path, capsys
):
    directory, address = tmp_path / "states", str(tmp_path / "store.db")
    serve("--out", tmp_path / "out", "--states", directory, *BLOCK)
    live = LiveOptions(store=address, load_states=directory)
    options = ServeOptions(run=trained_run, events=events_file, live=live)
    server.prepare_store(options, (Feedback(),))
    shown = capsys.readouterr().err
    assert "0 users of the store have the states" in shown  # the store was empty
    server.prepare_store(options, (Feedback(),))
    shown = capsys.readouterr().err
    count = known_shop.events["user_id"].n_unique()
    assert f"{count} users of the store have the states" in shown
    assert "0 users were added" in shown
    (directory / "_SUCCESS").unlink()
    with pytest.raises(RunError, match="no states of a finished job"):
        states.read_states(jaxrec.load(trained_run), directory)


def test_a_strategy_orders_the_lists_of_a_batch(
    serve, ask, refused, trained_run, known_shop, tmp_path
):
    file = tmp_path / "strategy.yaml"
    file.write_text(
        "- boost: {where: price < 30, by: 2}\n- caps: {brand: 1}\n- epsilon: {rate: 0.3}"
    )
    serve("--out", tmp_path / "out", "--strategy", file, "--k", 4)
    written = read(tmp_path / "out")
    expected = jaxrec.load(trained_run).recommend(
        known_shop.events, k=4, strategy=read_strategy(file)
    )
    assert written["item_id"].to_list() == expected["item_id"].to_list()
    assert "make where one of them" in refused(
        serve, "--out", tmp_path / "o2", "--strategy", file, "--where", "price < 5"
    )
    assert "--strategy" in refused(ask, "profile", "--out", tmp_path / "o3", "--strategy", file)
    file.write_text("- cap: {brand: 1}")
    assert "there is no step 'cap'" in refused(serve, "--out", tmp_path / "o4", "--strategy", file)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--profile"], "use: jaxrec profile RUN"),
        (["--where", "price < 5"], "Unrecognized options: --where"),
        (["--k", "3"], "Unrecognized options: --k"),
        (["--window", "0"], "window must be 1 or more"),
        (["--keep-users", "-1"], "keep_users must be 1 or more"),
        (["--store", "nowhere/store.db"], "nowhere/store.db cannot be used as a store"),
    ],
)
def test_options_of_other_jobs_are_refused_live(serve, refused, wrong, message):
    assert message in refused(serve, "--http", "127.0.0.1:0", *wrong)


def test_a_strategy_that_does_not_fit_is_refused_before_anybody_asks(serve, refused, tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text("- where: colour > 3")
    store = tmp_path / "store.db"
    live = ("--http", "127.0.0.1:0", "--store", store, "--strategy", file)
    assert "colour" in refused(serve, *live)


def test_live_options_are_refused_in_batches(serve, refused, tmp_path):
    shown = refused(serve, "--out", tmp_path / "out", "--window", "8")
    assert "Unrecognized options: --window" in shown


def test_a_job_takes_no_states_of_another(serve, refused, tmp_path):
    """Also where an earlier try has left its manifest."""
    directory, out = tmp_path / "states", tmp_path / "out"
    serve("--out", tmp_path / "first", "--states", directory, *BLOCK)
    before = contents(directory)
    out.mkdir()
    (out / "manifest.json").write_text('{"job": {}, "parts": []}')
    assert "states" in refused(serve, "--out", out, "--states", directory, *BLOCK)
    assert contents(directory) == before


def test_profiles_audiences_similar_nodes_and_plots(ask, trained_run, tmp_path, capsys):
    ask("profile", "--out", tmp_path / "profiles", "--k", 2, *BLOCK)
    assert set(read(tmp_path / "profiles")["type"]) == {"brand", "category", "item"}
    assert " %; " in capsys.readouterr().out
    brand = ["audience", "brand:brand1", "--k", 5]
    ask(*brand, "--bid", 0.5, "--out", tmp_path / "who.csv", *BLOCK)
    audience = pl.read_csv(tmp_path / "who.csv")
    assert audience.columns == ["rank", "user_id", "probability", "ecpm"]
    assert len(audience) == 5
    ask(*brand, "--out", tmp_path / "all.csv", "--block", 999)
    whole = pl.read_csv(tmp_path / "all.csv")
    assert whole["user_id"].to_list() == audience["user_id"].to_list()
    main(["similar", str(trained_run), "item:i03", "--k", "3"])
    assert "cosine" in capsys.readouterr().out
    ask("plot", "u003", "--out", tmp_path / "u03.png")
    assert (tmp_path / "u03.png").stat().st_size > 5000


def test_bad_input_exits_with_2_and_overwrites_nothing(
    serve, ask, refused, trained_run, known_shop, tmp_path
):
    out = tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    assert "not empty" in refused(serve, "--out", full)
    assert "not empty" in refused(serve, "--out", out, "--states", full)
    assert "from 1 to 39" in refused(serve, "--out", out, "--k", 99)
    assert "no such file" in refused(serve, "--out", out, events=tmp_path / "missing.csv")
    stolen = tmp_path / "stolen.parquet"
    known_shop.events.with_columns(event=pl.lit("steal")).write_parquet(stolen)
    assert "does not know: steal; it knows buy, view" in refused(serve, "--out", out, events=stolen)
    short = tmp_path / "short.parquet"
    known_shop.events.drop("timestamp").write_parquet(short)
    assert "no column 'timestamp'" in refused(serve, "--out", tmp_path / "out2", events=short)
    assert "Columns of the items" in refused(
        serve, "--out", tmp_path / "o3", "--where", "prize < 5"
    )
    assert "not a run directory" in refused(
        scripts.serve, [str(full), "--events", str(short), "--out", str(out)]
    )
    assert "k must be 1 or more" in refused(serve, "--out", tmp_path / "o4", "--k", "0")
    assert "--triples needs --items" in refused(
        serve, "--out", tmp_path / "o4", "--triples", "t.csv"
    )
    for command, *wrong in (
        ["profile", "--out", tmp_path / "o4", "--where", "price < 5"],
        ["profile", "--out", tmp_path / "o4", "--mask", "seen"],
        ["profile", "--out", tmp_path / "o4", "--last", "0"],
        ["recommend", "--out", tmp_path / "o4", "--bid", "1"],
        ["audience", "brand:brand1", "--target", "brand"],
        ["audience", "brand:brand1", "--out", tmp_path / "o4"],
        ["similar", "item:i03", "--users", "u003"],
        ["plot", "u003", "--out", tmp_path / "x.txt"],
    ):
        assert refused(ask, command, *wrong)
    assert "--out" in refused(serve)
    assert "same directory" in refused(serve, "--out", out, "--states", out)
    assert refused(serve, "--out", full / "precious")
    assert "item_shards must be 1 or more" in refused(serve, "--out", out, "--item-shards", 0)
    assert "does not divide" in refused(serve, "--out", out, "--item-shards", 3)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    assert "something else" in refused(serve, "--out", foreign)
    assert "listed users" in refused(serve, "--out", out, "--users", "nobody")
    assert "ending in .png" in refused(ask, "plot", "u003", "--out", tmp_path / "x.txt")
    assert "mask names ['steal']" in refused(serve, "--out", out, "--mask", "steal")
    assert not list(out.glob("part-*"))
    serve("--out", out, "--users", "u003")  # a job that never began is in nobody's way
    assert [path.name for path in full.iterdir()] == ["precious"]


def test_users_with_too_few_items_are_told(serve, tmp_path, capsys):
    listed = tmp_path / "listed.csv"
    pl.DataFrame({"item_id": ["i01", "i02", "i03"]}).write_csv(listed)
    serve("--out", tmp_path / "out", "--k", 5, "--only", listed, "--mask", "none")
    assert set(read(tmp_path / "out").group_by("user_id").len()["len"]) == {3}
    shown = capsys.readouterr()
    assert "120 users have fewer than 5 items left: u" in shown.err
    assert "items removed by rule: only 36" in shown.out


def test_items_only_seen_in_serving_are_read_as_unknown(serve, shop, tmp_path, capsys):
    everything = tmp_path / "all.parquet"
    shop.events.write_parquet(everything)
    serve("--out", tmp_path / "out", events=everything)
    count = (shop.events["item_id"] == HELD_OUT).sum()
    assert f"{count} of {len(shop.events)} events are of items" in capsys.readouterr().err
    new = tmp_path / "new.parquet"
    shop.items.filter(pl.col("item_id") == HELD_OUT).write_parquet(new)
    serve(
        "--out", tmp_path / "with", "--k", 40, "--mask", "none", "--items", new, events=everything
    )
    assert "events are of items" not in capsys.readouterr().err
    found = read(tmp_path / "with").filter(pl.col("item_id") == HELD_OUT)
    assert found["user_id"].n_unique() == 120
    assert set(found["title"]) == {"brand x item h"}
