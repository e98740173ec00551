"""Processes: two with two devices each train, stop and resume as one process with four."""

import json
import signal

import numpy as np
import pytest
from helpers import pods
from helpers.paths import GOLDEN
from helpers.training import scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.processes import HEARTBEAT_TIMEOUT


@pytest.fixture(scope="module")
def data(tables, tmp_path_factory):
    return pods.write_data(tables, tmp_path_factory.mktemp("pods") / "data")


@pytest.fixture(scope="module")
def pair(data):
    """The run that two processes have trained with the options of `whole_run`."""
    run = data.parent / "pair"
    pods.train(pods.new_run(data, run), data.parent / "logs")
    return run


def assert_close(rows, expected, rtol=1e-4):
    """Of numbers by name; sums in another order differ in their last digits."""
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        numbers = ([float(value) for value in part.values()] for part in (row, other))
        np.testing.assert_allclose(*numbers, rtol=rtol, atol=1e-6, err_msg=str(row["step"]))


def assert_same_run(run, other, tables, *, rtol=1e-4):
    """Losses, metrics, files and recommendations of two trainings."""
    rows, expected = ([row for row in scalars(path) if "loss" in row] for path in (run, other))
    assert_close(rows, expected, rtol)
    results, others = (json.loads((path / "metrics.json").read_text()) for path in (run, other))
    assert results["protocol"] == others["protocol"]
    assert results["baselines"].keys() == others["baselines"].keys()
    for name in ("ndcg@10", "recall@10", "coverage"):  # of 40 users
        expected = others["test"]["model"][name]
        assert results["test"]["model"][name] == pytest.approx(expected, abs=0.03)
    files, other_files = (
        {path.name for path in directory.iterdir()} - {"refit"} for directory in (run, other)
    )
    assert files == other_files
    lists, expected = (jaxrec.load(path).recommend(tables.events, k=5) for path in (run, other))
    # the fitted temperature, which scales scores, is exact to three digits
    np.testing.assert_allclose(lists["score"], expected["score"], rtol=5e-3)
    assert (lists["item_id"] == expected["item_id"]).mean() > 0.95


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(pair, whole_run, tables):
    assert_same_run(pair, whole_run, tables)


@pytest.mark.slow
def test_the_first_process_alone_reads_the_data(pair, data, tables, tmp_path):
    """The others map what it has prepared, and nothing of that stays behind."""
    arguments, logs = pods.new_run(data, tmp_path / "run"), tmp_path / "logs"
    with pods.started(arguments, logs, last=["--data.source", "nowhere"]) as processes:
        assert pods.exit_codes(processes) == [0, 0], (logs / "1.txt").read_text()[-3000:]
    assert scalars(tmp_path / "run") == scalars(pair)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "logs"}


@pytest.fixture(scope="module")
def one_device(data):
    """A run of five epochs, of 20 steps or more, by one process with one device."""
    run = data.parent / "one-device"
    arguments = pods.new_run(data, run, **{"train.epochs": 5})
    pods.train(arguments, data.parent / "one-device-logs", count=1, devices=1)
    assert sum("loss" in row for row in scalars(run)) >= 20
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "item_shards"), [(1, 4, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4)]
)
def test_a_run_does_not_depend_on_processes_devices_and_shards(
    tables, data, one_device, tmp_path, processes, devices, item_shards
):
    """With four shards, both processes read the same rows."""
    options = {"train.epochs": 5, "train.item_shards": item_shards}
    arguments = pods.new_run(data, tmp_path / "run", **options)
    pods.train(arguments, tmp_path / "logs", processes, devices)
    assert_same_run(tmp_path / "run", one_device, tables, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_at_one_process_stops_all_behind_the_same_step(pair, data, tmp_path, number):
    run, logs = tmp_path / "run", tmp_path / "logs"
    with pods.started(pods.new_run(data, run), logs) as processes:
        pods.wait_for_step(run, 2)
        processes[number].send_signal(signal.SIGTERM)
        assert pods.exit_codes(processes) == [143, 143], (logs / "1.txt").read_text()[-3000:]
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        assert 2 <= manager.latest_step() < scalars(pair)[-1]["step"]
    pods.train(["--resume", str(run)], logs)
    assert scalars(run) == scalars(pair)
    assert (run / "metrics.json").read_text() == (pair / "metrics.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_others(data, tmp_path, number):
    """At once or after a minute; the rest of the time is for a machine that does other work."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    with pods.started(pods.new_run(data, run, **{"train.epochs": 99}), logs) as processes:
        pods.wait_for_step(run, 6)
        processes[number].kill()
        codes = pods.exit_codes(processes, within=2 * HEARTBEAT_TIMEOUT)
    assert codes[number] == -signal.SIGKILL
    assert codes[1 - number] not in (0, None)
    assert "another task died" in (logs / f"{1 - number}.txt").read_text()
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        assert manager.latest_step() > 0


@pytest.mark.slow
def test_two_processes_train_text_a_forecast_and_a_refit(data, tmp_path):
    run = tmp_path / "run"
    options = {
        "train.epochs": 2,
        "train.refit": "all",
        "model.experts": ["id+graph", "text"],
        "text.mode": "finetune",
        "text.pretrained": str(GOLDEN / "tiny_bert"),
        "text.finetune_items": 8,
        "forecast.steps": 3,
        "forecast.epochs": 1,
    }
    pods.train(pods.new_run(data, run, **options), tmp_path / "logs")
    assert json.loads((run / "metrics.json").read_text())["serves"] == "refit"
    for directory in (run, run / "refit"):
        assert (directory / run_directory.DECODER).is_file()
    assert jaxrec.load(run).decoder is not None


@pytest.mark.slow
def test_every_process_refuses_what_the_first_refuses(pair, data, tmp_path):
    with pods.started(pods.new_run(data, pair), tmp_path / "logs") as processes:
        assert pods.exit_codes(processes) == [2, 2]
    for path in (tmp_path / "logs").iterdir():
        assert "exists; continue it with --resume" in path.read_text()


@pytest.mark.slow
def test_an_error_of_one_process_ends_it_with_its_message(data, tmp_path):
    """The others do not hold it up, and end when they miss it."""
    arguments, logs = pods.new_run(data, tmp_path / "run"), tmp_path / "logs"
    with pods.started(arguments, logs, last=["--report.group_by", "lost"]) as processes:
        codes = pods.exit_codes(processes)
    assert codes[1] == 2 and codes[0] not in (0, None)
    assert (logs / "1.txt").read_text().splitlines()[-1].startswith("error: ")
