import errno
import os
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from helpers.jobs import BLOCK, contents, manifest, read
from helpers.shop import HELD_OUT

import jaxrec
from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.files import locked
from jaxrec.artifacts.partitions import Partitions
from jaxrec.cli import main, scripts
from jaxrec.ranking.strategy import read_strategy
from jaxrec.serving.states import read_states


def test_every_user_of_the_file_gets_a_list(serve, trained_run, known_shop, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--k", 4, "--preview", *BLOCK)
    written = read(tmp_path / "out")
    expected = jaxrec.load(trained_run).recommend(known_shop.events, k=4)
    combined = written.join(expected, on=["user_id", "rank"], suffix="_expected")
    assert len(combined) == len(written) == len(expected)
    np.testing.assert_allclose(combined["score"], combined["score_expected"], rtol=1e-6)
    assert written.columns == ["user_id", "rank", "item_id", "score", "title"]
    written = manifest(tmp_path / "out")
    assert written["totals"]["users"] == 120
    assert written["totals"]["events"] == len(known_shop.events)
    assert [part["users"] for part in written["parts"]] == [50, 50, 20]
    assert (tmp_path / "out" / "_SUCCESS").exists()
    shown = capsys.readouterr()
    assert "brand x item" in shown.out
    assert "not grouped by user" in shown.err
    lines = [line for line in shown.err.splitlines() if line.startswith("part-")]
    assert lines == [
        "part-00000: 50 users, 341 of 820 events",
        "part-00001: 100 users, 684 of 820 events",
        "part-00002: 120 users, 820 of 820 events",
    ]


def test_grouped_events_are_streamed_in_their_own_order(serve, known_shop, tmp_path, capsys):
    grouped = tmp_path / "grouped.csv"
    known_shop.events.sort("user_id", descending=True).write_csv(grouped)
    serve("--out", tmp_path / "out", "--k", 2, *BLOCK, events=grouped)
    assert "not grouped" not in capsys.readouterr().err
    first = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert set(first["user_id"]) == {f"u{user:03}" for user in range(70, 120)}


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_every_format_holds_the_same_lists(serve, tmp_path, name):
    serve("--out", tmp_path / "a", "--k", 2)
    serve("--out", tmp_path / "b", "--k", 2, "--format", name)
    reader = {"csv": pl.read_csv, "jsonl": pl.read_ndjson}[name]
    other = reader(tmp_path / "b" / f"part-00000.{name}")
    assert other.select("user_id", "item_id").equals(
        read(tmp_path / "a").select("user_id", "item_id")
    )


def test_users_can_be_selected(serve, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--users", "u003", "u005", "unknown")
    assert set(read(tmp_path / "out")["user_id"]) == {"u003", "u005"}
    assert "users without events: 1 of 3" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_stopped_job_continues_and_gives_the_same_bytes(
    serve, tmp_path, monkeypatch, refused, capsys
):
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
    shown = capsys.readouterr().err
    assert shown.endswith("interrupted; give the same command again to continue\n")
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


def test_a_job_does_not_continue_with_other_events_of_equal_size_and_time(
    serve, events_file, tmp_path, monkeypatch, refused
):
    events, out = tmp_path / "events.parquet", tmp_path / "out"
    events.write_bytes(events_file.read_bytes())
    write = Partitions.write

    def stop_at_the_second(parts, tables, facts):
        if parts.done:
            os.kill(os.getpid(), signal.SIGINT)
        return write(parts, tables, facts)

    monkeypatch.setattr(Partitions, "write", stop_at_the_second)
    with pytest.raises(SystemExit):
        serve("--out", out, *BLOCK, events=events)
    monkeypatch.undo()
    before, content = events.stat(), bytearray(events.read_bytes())
    content[len(content) // 2] ^= 1
    events.write_bytes(content)
    os.utime(events, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "another job (files" in refused(serve, "--out", out, *BLOCK, events=events)


def test_two_jobs_do_not_write_to_one_directory(serve, tmp_path, refused):
    out, states = tmp_path / "out", tmp_path / "states"
    with locked(out):
        assert "another process is writing" in refused(serve, "--out", out, *BLOCK)
    with locked(states):
        assert "another process" in refused(serve, "--out", out, "--states", states, *BLOCK)
    serve("--out", out, "--states", states, *BLOCK)
    assert not list(out.glob(".*")) + list(states.glob(".*"))


@pytest.mark.slow
def test_a_job_continues_after_kill_9(serve, trained_run, events_file, tmp_path):
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


def test_live_options_are_refused_by_batch_scoring(serve, refused, tmp_path):
    shown = refused(serve, "--out", tmp_path / "out", "--window", "8")
    assert "Unrecognized options: --window" in shown


def test_a_job_refuses_the_states_of_another_job(serve, refused, tmp_path):
    """Also if an earlier attempt has left its manifest."""
    directory, out = tmp_path / "states", tmp_path / "out"
    serve("--out", tmp_path / "first", "--states", directory, *BLOCK)
    before = contents(directory)
    out.mkdir()
    (out / "_manifest.json").write_text('{"job": {}, "started": "2026-01-01", "parts": []}')
    assert "states" in refused(serve, "--out", out, "--states", directory, *BLOCK)
    assert contents(directory) == before


@pytest.mark.thorough
def test_bad_input_exits_with_2_and_overwrites_nothing(
    serve, ask, refused, trained_run, known_shop, tmp_path
):
    out = tmp_path / "out"
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("kept")
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
    (foreign / "_manifest.json").write_text("{}")
    assert "something else" in refused(serve, "--out", foreign)
    assert "listed users" in refused(serve, "--out", out, "--users", "unknown")
    assert "ending in .png" in refused(ask, "plot", "u003", "--out", tmp_path / "x.txt")
    assert "mask names ['steal']" in refused(serve, "--out", out, "--mask", "steal")
    assert not list(out.glob("part-*"))
    serve("--out", out, "--users", "u003")  # a refused job leaves no obstacle
    assert [path.name for path in full.iterdir()] == ["precious"]


def test_a_list_is_no_longer_than_the_nodes_of_its_type(serve, trained_run, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--target", "brand")
    assert set(read(tmp_path / "out").group_by("user_id").len()["len"]) == {4}
    assert manifest(tmp_path / "out")["job"]["options"]["k"] == 4
    main(["similar", str(trained_run), "brand:brand1"])
    assert "brand3" in capsys.readouterr().out


def test_options_that_cannot_act_are_refused_with_the_reason(
    serve, ask, refused, trained_run, tmp_path
):
    out = ["--out", tmp_path / "out"]
    shown = refused(serve, *out, "--target", "brand", "--where", "price < 5")
    assert "rules act on items only" in shown
    assert "from 1 to 4" in refused(serve, *out, "--target", "brand", "--k", "10")
    assert "none of the 1 listed items ('nix')" in refused(serve, *out, "--only", "nix")
    assert "the directory holds no file" in refused(serve, *out, "--only", tmp_path)
    assert "popularity: 1e+300 is not a number" in refused(serve, *out, "--popularity", "1e300")
    for bid in ("nan", "inf", "-1"):
        assert "bid must be " in refused(ask, "audience", "brand:brand1", "--bid", bid)
    assert "k must be 1 or more" in refused(
        main, ["similar", str(trained_run), "brand:brand1", "--k", "0"]
    )
    assert not (tmp_path / "out").exists()


def test_listed_items_that_the_catalogue_lacks_are_counted(serve, tmp_path, capsys):
    listed = ["--only", "i01", "i03", "nix", "--without", "i03", "nada", "nil"]
    serve("--out", tmp_path / "out", "--k", 1, *listed)
    shown = capsys.readouterr().err
    assert "note: only: 2 of 3 listed items are in the catalogue; it lacks 'nix'" in shown
    assert "without: 1 of 3 listed items are in the catalogue; it lacks 'nada', 'nil'" in shown


@pytest.mark.thorough
def test_lists_that_match_nothing_are_errors_and_an_empty_one_is_none(
    serve, refused, tmp_path, capsys
):
    sold_out, stock = tmp_path / "sold_out.csv", tmp_path / "stock.csv"
    for path in (sold_out, stock):
        path.write_text("item_id\n1\n2\n")
    for name, path in (("only", stock), ("without", sold_out)):
        shown = refused(serve, "--out", tmp_path / "out", f"--{name}", path)
        assert f"{name}: none of the 2 listed items ('1', '2') is in the catalogue" in shown
        assert "ids are like 'i00', 'i01', 'i02' ..." in shown
    users = tmp_path / "users.csv"
    users.write_text("user_id\n17\n")
    assert "none of the 1 ids (such as '17') is a user_id" in refused(
        serve, "--out", tmp_path / "out", "--users", users
    )
    for path in (sold_out, stock):
        path.write_text("item_id\n")
    assert "no rows" in refused(serve, "--out", tmp_path / "out", "--only", stock)
    assert not (tmp_path / "out").exists()
    serve("--out", tmp_path / "out", "--k", 1, "--without", sold_out)
    assert "without: 0 of 0 listed items" in capsys.readouterr().err


def test_rules_that_leave_no_item_are_refused(serve, refused, tmp_path):
    shown = refused(serve, "--out", tmp_path / "out", "--where", "price > 1000", "--only", "i01")
    assert "the rules leave none of the 39 items (where removes 39, only removes 38)" in shown
    assert not (tmp_path / "out").exists()


def test_rules_see_the_columns_of_today_for_known_items(
    serve, refused, known_shop, tmp_path, capsys
):
    cheap = pl.col("item_id").is_in(["i01", "i12"])
    price = pl.when(cheap).then(5).otherwise(100)
    today = known_shop.items.with_columns(price=price, title=pl.format("today {}", "item_id"))
    today.write_parquet(tmp_path / "today.parquet")
    options = ["--items", tmp_path / "today.parquet", "--mask", "none", "--k", 3]
    serve("--out", tmp_path / "out", *options, "--where", "price < 50")
    written = read(tmp_path / "out")
    assert set(written["item_id"]) == {"i01", "i12"}
    assert set(written["title"]) == {"today i01", "today i12"}
    assert "new items: 0; 39 others are known" in capsys.readouterr().err


def test_events_of_unknown_items_alone_are_refused_before_the_work(
    serve, ask, refused, shop, tmp_path
):
    other = shop.events.with_columns(pl.format("sku-{}", "item_id").alias("item_id"))
    path, out = tmp_path / "other.csv", tmp_path / "out"
    other.write_csv(path)
    shown = refused(serve, "--out", out, events=path)
    assert f"none of the {len(other)} events is of an item of the catalogue" in shown
    assert "Items are 'sku-i" in shown and "'i00', 'i01', 'i02' ... in the catalogue" in shown
    assert not out.exists()


def test_ids_leave_in_the_type_that_they_came_in(
    serve, trained_run, known_shop, tmp_path, monkeypatch
):
    events = known_shop.events.with_columns(pl.col("user_id").str.slice(1).cast(pl.Int32))
    path, states = tmp_path / "events.parquet", tmp_path / "states"
    events.write_parquet(path)
    serve("--out", tmp_path / "out", "--k", 2, "--states", states, events=path)
    assert read(tmp_path / "out").schema["user_id"] == read(states).schema["user_id"] == pl.Int64
    model = jaxrec.load(trained_run)
    assert set(read_states(model, states)["user_id"]) == {str(user) for user in range(120)}
    lists = model.recommend(events, k=2)
    assert lists.schema["user_id"] == pl.Int64 and lists.schema["item_id"] == pl.String
    assert model.audience(events, "item:i01", 3).schema["user_id"] == pl.Int64


def test_columns_are_added_on_request(serve, trained_run, tmp_path):
    serve("--out", tmp_path / "out", "--k", 1, "--columns", "model", "time", *BLOCK)
    written, model = read(tmp_path / "out"), jaxrec.load(trained_run)
    assert written.columns[-2:] == ["model", "time"]
    assert written["model"].unique().to_list() == [f"{model.step}-{model.version[:12]}"]
    [time] = written["time"].unique()
    assert time.isoformat() == manifest(tmp_path / "out")["started"]


def test_a_quiet_job_prints_nothing(serve, refused, tmp_path, capsys):
    serve("--out", tmp_path / "out", "--k", 1, "--quiet", "--preview", *BLOCK)
    assert capsys.readouterr() == ("", "")
    assert "is complete" in refused(serve, "--out", tmp_path / "out", "--k", 1, "--quiet", *BLOCK)
    serve("--out", tmp_path / "loud", "--k", 1, *BLOCK)
    shown = capsys.readouterr()
    assert "120 users, 120 rows in 3 part files" in shown.out
    assert "user u000" not in shown.out  # histories are printed on request


def test_lists_and_states_can_be_written_to_urls(serve, tmp_path):
    base = f"memory://{tmp_path.name}"
    serve("--out", f"{base}/out", "--states", f"{base}/states", "--k", 2, *BLOCK)
    serve("--out", tmp_path / "out", "--k", 2, *BLOCK)
    out, states = (open_directory(f"{base}/{name}") for name in ("out", "states"))
    parts = [f"part-0000{number}.parquet" for number in range(3)]
    assert out.names() == ["_SUCCESS", "_manifest.parquet", *parts]
    assert states.names() == ["_SUCCESS", *parts]
    for name in parts:
        assert out.read(name) == (tmp_path / "out" / name).read_bytes()


def test_a_full_disk_is_one_line_and_the_job_continues(serve, refused, tmp_path, monkeypatch):
    out, write = tmp_path / "out", Partitions.write

    def full(parts, files, facts):
        if parts.done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(parts, files, facts)

    monkeypatch.setattr(Partitions, "write", full)
    shown = refused(serve, "--out", out, "--quiet", *BLOCK)
    assert shown == (
        f"error: no space left at {out}; make room and give the same command again to continue"
    )
    monkeypatch.undo()
    serve("--out", out, *BLOCK)
    assert len(contents(out)) == 3


def test_users_with_short_lists_are_reported(serve, tmp_path, capsys):
    listed = tmp_path / "listed.csv"
    pl.DataFrame({"item_id": ["i01", "i02", "i03"]}).write_csv(listed)
    serve("--out", tmp_path / "out", "--k", 5, "--only", listed, "--mask", "none")
    assert set(read(tmp_path / "out").group_by("user_id").len()["len"]) == {3}
    shown = capsys.readouterr()
    assert "120 users have fewer than 5 items left; the manifest names some" in shown.err
    assert len(manifest(tmp_path / "out")["parts"][0]["fewer"]) == 10
    assert "items removed by rule: only 36" in shown.out


def test_items_unknown_to_the_run_are_read_as_unknown(serve, shop, tmp_path, capsys):
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
    lists_of_new = read(tmp_path / "with").filter(pl.col("item_id") == HELD_OUT)
    assert lists_of_new["user_id"].n_unique() == 120
    assert set(lists_of_new["title"]) == {"brand x item h"}


def test_lists_are_explained_in_a_column(serve, model, known_shop, tmp_path, refused):
    users = tmp_path / "users.csv"
    pl.DataFrame({"user_id": ["u003", "u005"]}).write_csv(users)
    serve("--out", tmp_path / "out", "--k", 2, "--users", users, "--explain")
    lists = read(tmp_path / "out")
    assert lists.columns[-1] == "explanation"
    own = known_shop.events.filter(user_id="u005")
    for item, sentence in lists.filter(user_id="u005").select("item_id", "explanation").iter_rows():
        assert sentence == model.explain(own, item).sentence
    message = refused(serve, "--out", tmp_path / "brands", "--target", "brand", "--explain")
    assert "--explain is for lists of items" in message
