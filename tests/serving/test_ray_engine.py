"""Batch jobs by two workers of a real local cluster give what one process gives."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import polars as pl
import pytest
from helpers.dying import KilledAlways, KilledOnce
from helpers.jobs import BLOCK, contents, manifest
from helpers.paths import ROOT

from jaxrec.cli import main
from jaxrec.serving import ray_engine

pytestmark = pytest.mark.slow
ON_RAY = ["--engine", "ray", "--workers", "2"]
HANGS = 300  # seconds


# in a process of its own, because Ray forks, and this one has used JAX
CLUSTER = """
import ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False)
print(context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="needs `pip install -e '.[ray]'`")
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # of the workers
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}.items():
            patch.setenv(name, value)
        head = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )
        with head:
            patch.setenv("RAY_ADDRESS", head.stdout.readline().strip())
            yield
            head.stdin.close()


@pytest.fixture(scope="module")
def event_files(known_shop, tmp_path_factory):
    """The events of the shop in the order of their times, in three files."""
    directory = tmp_path_factory.mktemp("events")
    for number, start in enumerate(range(0, len(known_shop.events), 300)):
        rows = known_shop.events[start : start + 300]
        rows.write_parquet(directory / f"part-{number}.parquet")
    return directory


@pytest.fixture(scope="module")
def grouped_file(known_shop, tmp_path_factory):
    path = tmp_path_factory.mktemp("grouped") / "events.csv"
    known_shop.events.sort("user_id", descending=True, maintain_order=True).write_csv(path)
    return path


def assert_equal_jobs(out, expected):
    assert contents(out) == contents(expected)
    found, other = manifest(out), manifest(expected)
    for content in (found, other):
        content.pop("started")
        content["job"].pop("states")
    assert found == other
    assert (out / "_SUCCESS").exists()
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (
            "event_files",
            ["--k", "4", "--caps", "brand", "2", "--explore", "0.3", "--columns", "model"],
        ),
        ("grouped_file", ["--k", "3", "--explain", "--format", "csv"]),
    ],
)
def test_lists_are_those_of_one_process(cluster, serve, tmp_path, request, source, options, capsys):
    events = request.getfixturevalue(source)
    options = [*options, *BLOCK]
    serve("--out", tmp_path / "one", "--states", tmp_path / "s1", *options, events=events)
    capsys.readouterr()
    serve(
        *("--out", tmp_path / "two", "--states", tmp_path / "s2", "--preview"),
        *(*options, *ON_RAY),
        events=events,
    )
    assert_equal_jobs(tmp_path / "two", tmp_path / "one")
    assert contents(tmp_path / "s2") == contents(tmp_path / "s1")
    shown = capsys.readouterr()
    assert shown.out.startswith("user u")
    lines = [line for line in shown.err.splitlines() if line.startswith("part-")]
    assert sorted(line.split(":")[0] for line in lines) == [
        "part-00000",
        "part-00001",
        "part-00002",
    ]
    assert lines[-1].endswith("120 users, 3 of 3 parts")


def test_profiles_and_forecasts_are_those_of_one_process(
    cluster, trained_run, forecast_run, event_files, tmp_path
):
    jobs = {
        "profile": ["profile", str(trained_run)],
        "brands": ["recommend", str(trained_run), "--target", "brand"],
        "forecast": ["recommend", str(forecast_run), "--forecast", "2"],
    }
    for name, command in jobs.items():
        command = [*command, "--events", str(event_files), *BLOCK]
        main([*command, "--out", str(tmp_path / name)])
        main([*command, "--out", str(tmp_path / f"{name}2"), *ON_RAY])
        assert_equal_jobs(tmp_path / f"{name}2", tmp_path / name)


def test_a_worker_that_is_killed_neither_loses_nor_doubles_a_part(
    cluster, serve, event_files, tmp_path, monkeypatch
):
    options = ["--k", "3", "--block", "10"]
    serve("--out", tmp_path / "one", *options, events=event_files)
    monkeypatch.setattr(ray_engine, "PartWriter", KilledOnce)
    serve("--out", tmp_path / "two", *options, *ON_RAY, events=event_files)
    assert (tmp_path / "killed").exists()
    assert_equal_jobs(tmp_path / "two", tmp_path / "one")


def test_a_worker_that_is_killed_again_and_again_ends_the_job(
    cluster, serve, refused, event_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_engine, "PartWriter", KilledAlways)
    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    shown = refused(serve, "--out", tmp_path / "out", *BLOCK, *ON_RAY, events=event_files)
    assert "give the same command again to continue" in shown
    monkeypatch.undo()
    serve("--out", tmp_path / "out", *BLOCK, *ON_RAY, events=event_files)
    serve("--out", tmp_path / "one", *BLOCK, events=event_files)
    assert_equal_jobs(tmp_path / "out", tmp_path / "one")


def test_errors_of_workers_are_those_of_one_process(cluster, serve, refused, known_shop, tmp_path):
    stolen, events = tmp_path / "stolen", known_shop.events
    stolen.mkdir()
    late = events.with_row_index().with_columns(
        event=pl.when(pl.col("index") < 800).then("event").otherwise(pl.lit("steal"))
    )
    for number in range(2):
        late[number * 500 :][:500].drop("index").write_csv(stolen / f"part-{number}.csv")
    clash = tmp_path / "clash"
    shutil.copytree(stolen, clash)
    names = ["event-1"] * 2 + [f"event-{number}" for number in range(2, 500)]
    events[:500].with_columns(event_id=pl.Series(names)).write_csv(clash / "part-0.csv")
    events[500:].with_columns(event_id=pl.lit(None, pl.String)).write_csv(clash / "part-1.csv")
    for source, message in ((stolen, "does not know: steal"), (clash, "several different rows")):
        refuse = partial(refused, serve, "--out", tmp_path / "out", *BLOCK, events=source)
        expected = refuse().partition("error: ")[2]
        assert message in expected
        assert refuse(*ON_RAY).partition("error: ")[2] == expected.replace(
            f"{clash}, batch", f"{clash}, part-0.csv, batch"
        )


def test_an_interrupted_job_on_its_own_cluster_is_continued_by_one_process(
    serve, trained_run, event_files, tmp_path
):
    pytest.importorskip("ray", reason="needs `pip install -e '.[ray]'`")
    out, options = tmp_path / "out", ["--k", "3", "--block", "2", "--explain"]
    command = [sys.executable, "-m", "jaxrec", "recommend", str(trained_run), "--out", str(out)]
    command += ["--events", str(event_files), *options, *ON_RAY]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, stderr=log, env=environment, cwd=tmp_path)
        end = time.monotonic() + HANGS
        while not list(out.glob("part-*")):
            assert job.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(HANGS) == 128 + signal.SIGTERM
    shown = (tmp_path / "log").read_text()
    assert shown.endswith("interrupted; give the same command again to continue\n")
    assert not (out / "_SUCCESS").exists()
    serve("--out", out, *options, events=event_files)
    serve("--out", tmp_path / "one", *options, events=event_files)
    assert_equal_jobs(out, tmp_path / "one")
