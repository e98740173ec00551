"""The commands end to end: exit codes, streams, help, and the scripts train.py and serve.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from helpers.paths import ROOT

import jaxrec
from jaxrec import cli
from jaxrec.artifacts.run_directory import read_config
from jaxrec.cli import scripts
from jaxrec.serving import reports

TINY = [
    *("--split.scheme", "leave_one_out", "--model.experts", "id", "--model.hidden_size", "8"),
    *("--model.num_layers", "1", "--train.epochs", "1", "--train.refit", "none"),
    *("--train.batch_size", "4", "--train.sequence_length", "16"),
]


@pytest.fixture(scope="module")
def data(tables, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tables")
    tables.events.write_parquet(directory / "events.parquet")
    tables.items.write_parquet(directory / "items.parquet")
    return directory


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that `train.py` made, with a relative path of its data."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data.parent)
        scripts.train(["--data", data.name, "--run", str(directory), *TINY])
    return directory


@pytest.fixture
def refusal(capsys):
    """The message of a command that exits with 2; it is on stderr only."""

    def message(*arguments, command=cli.main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command([str(argument) for argument in arguments])
        assert stop.value.code == 2
        shown = capsys.readouterr()
        assert "error" not in shown.out
        return shown.err

    return message


def start(script, *arguments, **options):
    """A script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *map(str, script), *map(str, arguments)], env=environment, **options
    )


def test_own_tables_are_trained_and_scored(run, data, tmp_path):
    out = tmp_path / "recommendations"
    scripts.serve([str(run), "--events", str(data / "events.parquet"), f"--out={out}", "--k", "4"])
    written = pl.read_parquet(out / "part-00000.parquet")
    assert set(written.group_by("user_id").len()["len"]) == {4}


def test_a_run_continues_from_elsewhere_and_with_moved_data(run, data, tmp_path, refusal):
    assert read_config(run).data.source == str(data)
    moved = data.rename(tmp_path / "moved")
    try:
        assert "neither ml-100k" in refusal("train", "--resume", run)
        cli.main(["train", "--resume", str(run), "--data", str(moved)])
    finally:
        moved.rename(data)
    assert "only --data" in refusal("train", "--resume", run, "--run", "x")


def test_bad_input_exits_with_2_and_writes_nothing(data, tmp_path, refusal):
    run = str(tmp_path / "run")
    command = ["train", "--data", data, "--run", run]
    assert "--model.hidden_size" in refusal(*command, "--model.hiden_size", "8")
    assert refusal(*command, "--model.width", "8") == (
        "error: model.width is now model.hidden_size\n"
    )
    assert "no recipe" in refusal(*command, "--config", "nowhere")
    assert "missing" in refusal("train", "--data", tmp_path / "missing", "--run", run)
    assert "sources are" in refusal(*command, *TINY, "--model.experts", "id+image")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "events.parquet").write_bytes(b"not parquet")
    assert "events.parquet" in refusal("train", "--data", broken, "--run", run)
    assert "run directory" in refusal("recommend", run, "--events", data, "--out", run)
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_are_named(run, data, tmp_path, refusal):
    wrong = data / "evnts.parquet"
    assert refusal("recommend", run, "--events", wrong, "--out", tmp_path / "out") == (
        f"error: {wrong}: no such file ({data} holds events.parquet, items.parquet)\n"
    )
    events = ["--events", data / "events.parquet"]
    missing = tmp_path / "strategy.yaml"
    message = refusal("recommend", run, *events, "--out", tmp_path / "out", "--strategy", missing)
    assert message == f"error: {missing}: no such file\n"
    wrong.touch()
    assert "is a file; name a directory" in refusal("recommend", run, *events, "--out", wrong)
    wrong.unlink()


def test_each_command_has_its_own_help(capsys):
    options = {
        "validate": {"--data", "--report", "--config"},
        "plan": {"SLICE", "--users", "--entities", "--data"},
        "train": {"--config", "--resume", "--data.ties", "--model.experts", "--train.bf16"},
        "pretrain": {"--out", "--tasks.contrast", "--tasks.tokens", "--layers", "--data.*"},
        "refit": {"RUN"},
        "transfer": {"RUN", "--items", "--out"},
        "add-forecast": {"RUN", "--steps"},
        "compare": {"--tolerance", "--since", "exit with 3"},
        "recommend": {
            "--events",
            "--states",
            "--strategy",
            "--caps",
            "--explore-events",
            "--explain",
        },
        "serve": {"--http", "--store", "--window", "--api-key"},
        "explain": {"USER", "--item", "--out"},
        "audience": {"ENTITY", "--bid", "--mask"},
        "profile": {"--last", "--states"},
        "similar": {"ENTITY", "--out"},
        "replay": {"--since"},
        "plot": {"USER", "--out"},
        "embed": {"--images", "--model", "--image-column"},
        "forget": {"USER", "--users", "--forgotten", "--stream", "--no-vacuum", "--json"},
        "export": {"--to", "--formats", "--item-precision"},
    }
    assert list(options) == list(cli.COMMANDS)
    for command, expected in options.items():
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in expected), command
        assert ("--http" in shown) == (command == "serve")
        assert ("--caps" in shown) == (command == "recommend")


def test_the_tool_describes_itself(refusal, capsys):
    for arguments, first in (["--help"], "usage: jaxrec COMMAND"), (["--version"], "0.1.0"):
        cli.main(arguments)
        assert capsys.readouterr().out.startswith(first)
    assert "a command is missing" in refusal()
    assert "give one of validate, plan, train" in refusal("recomend")
    shown = start(["-m", "jaxrec"], "--version", stdout=subprocess.PIPE, text=True)
    assert shown.communicate() == ("0.1.0\n", None)
    assert shown.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["--similar", "item:i01"], "jaxrec similar RUN item:ID"),
        (["--audience=brand:x", "--events", "f"], "jaxrec audience RUN brand:NAME --events FILE"),
        (["--profile"], "jaxrec profile RUN"),
        (["--plot", "u01"], "jaxrec plot RUN USER"),
        (["--replay"], "jaxrec replay RUN"),
        (["--http", ":80", "--profile"], "jaxrec profile RUN"),
    ],
)
def test_old_options_of_serve_py_are_refused_with_the_new_command(refusal, arguments, command):
    assert f"use: {command}" in refusal("run", *arguments, command=scripts.serve)
    assert "jaxrec recommend RUN" in refusal("serve", "run", "--events", "f", "--out", "d")


def test_an_internal_error_exits_with_1_and_a_traceback(run):
    program = (
        "import sys; from jaxrec import cli; from jaxrec.serving import reports\n"
        "def broken(*_): raise ValueError('this is a fault')\n"
        "reports.load_model = broken\n"
        "cli.main(sys.argv[1:])"
    )
    process = start(["-c", program], "similar", run, "item:i01", stderr=subprocess.PIPE, text=True)
    shown = process.communicate()[1]
    assert process.returncode == 1
    assert "Traceback" in shown
    assert shown.endswith("ValueError: this is a fault\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_exits_with_the_code_of_its_signal(monkeypatch, capsys, number, code):
    monkeypatch.setattr(reports, "load_model", lambda _: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        cli.main(["similar", "run", "item:i01"])
    assert stop.value.code == code
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(number) is before


@pytest.mark.thorough
def test_ctrl_c_saves_a_run_and_prints_how_to_continue(data, tmp_path):
    run = tmp_path / "run"
    forever = ["--train.epochs", "9999", "--train.patience", "9999"]
    process = start(
        [ROOT / "train.py"],
        *("--data", data, "--run", run, *TINY, *forever),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(run.glob("checkpoints/*/params")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    shown = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert shown.splitlines()[-1] == f"interrupted; continue with --resume {run}"
    assert "Traceback" not in shown
    jaxrec.load(run)


@pytest.mark.thorough
def test_neither_a_closed_pipe_nor_an_ascii_console_stops_a_job(run, data, tmp_path):
    events = pl.read_parquet(data / "events.parquet")
    named = tmp_path / "événements.parquet"
    events.with_columns(pl.format("{}é", "user_id").alias("user_id")).write_parquet(named)
    arguments = [run, "--events", named, "--k", "2", "--block", "1", "--preview"]
    process = start(
        [ROOT / "serve.py"],
        *(*arguments, "--out", tmp_path / "a"),
        env={"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline()[-10:].isascii()
    process.stdout.close()
    assert process.stderr.read().count(b"Traceback") == 0
    assert process.wait(120) == 0
    assert (tmp_path / "a" / "_SUCCESS").exists()
    assert len(list((tmp_path / "a").glob("part-*"))) == events["user_id"].n_unique()


@pytest.mark.thorough
def test_results_that_do_not_fit_on_the_disk_are_an_error(run, tmp_path):
    with Path("/dev/full").open("w") as full:
        process = start(
            ["-m", "jaxrec"],
            *("similar", run, "item:i01", "--out", tmp_path / "similar.csv"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
        shown = process.communicate()[1]
    assert shown == "error: stdout: No space left on device\n"
    assert process.returncode == 2
    assert len(pl.read_csv(tmp_path / "similar.csv")) == 10


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
LOST = {
    "in a destructor": """
class Doomed:
    def __del__(self): os.kill(os.getpid(), number)
def job(_):
    Doomed()
    for _ in range(1200): time.sleep(0.1)
""",
    "in a callback of the garbage collector": """
def job(_):
    gc.callbacks.append(lambda phase, info: phase == "start" and os.kill(os.getpid(), number))
    gc.collect()
    gc.callbacks.clear()
    for _ in range(1200): time.sleep(0.1)
""",
    "by a handler": """
def job(_):
    try: os.kill(os.getpid(), number)
    except BaseException: pass
    sys.exit(0)
""",
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("job", "number", "code"),
    [(job, *SIGNALS[n % 2]) for n, job in enumerate(LOST.values())],
    ids=LOST,
)
def test_a_signal_whose_exception_is_lost_stops_the_command(job, number, code):
    program = (
        "import gc, os, sys, time; from jaxrec import cli; from jaxrec.serving import reports\n"
        f"number = {int(number)}\n{job}\nreports.load_model = job\n"
        "cli.main(['similar', 'run', 'item:i01'])"
    )
    process = start(["-c", program], stderr=subprocess.PIPE, text=True)
    try:
        shown = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == code
    assert shown == "interrupted\n"


@pytest.mark.parametrize("name", ["config", "data", "run", "resume"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_of_train_is_refused(refusal, name, value):
    assert refusal("train", f"--{name}", value).endswith(
        f"error: {'recipe' if name == 'config' else name} is empty; give a value, or leave it out\n"
    )


def test_mistakes_on_the_command_line_are_answered_in_one_line(refusal):
    for name in ("--data", "--resume"):
        assert refusal("train", name) == f"error: {name}: expected one argument\n"
    assert refusal("train", "--dat", "shop") == (
        "error: there is no option dat; did you mean --data?\n"
    )
    assert "need --coordinator HOST:PORT" in refusal("train", "--process", "1")
    number = "9" * 5000
    assert refusal("train", "--train.epochs", number).count("\n") == 1
    assert "is not UTF-8" in refusal("recommend", "run", "--events", "odd/\udcff.csv")


def test_missing_options_are_listed(refusal):
    assert refusal("recommend") == (
        "error: Missing from jaxrec recommend:\n  RUN\n  --events PATH\n  --out PATH\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["serve", "-h"]], ids=str)
def test_a_help_that_does_not_fit_on_the_disk_is_an_error(arguments):
    with Path("/dev/full").open("w") as full:
        process = start(
            ["-m", "jaxrec"], *arguments, stdout=full, stderr=subprocess.PIPE, text=True
        )
        shown = process.communicate()[1]
    assert shown == "error: stdout: No space left on device\n"
    assert process.returncode == 2


def test_outputs_cannot_lie_in_a_file(run, data, refusal):
    inside = data / "events.parquet" / "x"
    events = ["--events", data / "events.parquet"]
    for command in (
        ["train", "--data", data, "--run", inside],
        ["recommend", run, *events, "--out", inside],
        ["profile", run, *events, "--out", data / "new", "--states", inside],
        ["similar", run, "item:i01", "--out", inside.with_suffix(".csv")],
        ["plot", run, "u01", *events, "--out", inside.with_suffix(".png")],
    ):
        assert "events.parquet is a file, not a directory; name another path" in refusal(*command)


def test_a_request_for_too_much_memory_is_no_internal_error(monkeypatch, refusal):
    def too_large(_):
        raise MemoryError

    monkeypatch.setattr(reports, "load_model", too_large)
    assert refusal("similar", "run", "item:i01") == "error: not enough memory\n"


@pytest.mark.thorough
def test_training_prints_where_the_model_is(data, tmp_path, capsys):
    run = tmp_path / "run"
    cli.main(["train", "--data", str(data), "--run", str(run), *TINY])
    assert f"the model is in {run}" in " ".join(capsys.readouterr().out.split())


def test_files_whose_names_hold_brackets_are_read(run, data, tmp_path):
    copy = tmp_path / "run [1]"
    shutil.copytree(run, copy)
    events = tmp_path / "ev[1].parquet"
    shutil.copy(data / "events.parquet", events)
    listed = tmp_path / "sh[1]" / "items.parquet"
    listed.parent.mkdir()
    pl.DataFrame({"item_id": ["i01"]}).write_parquet(listed)
    out = tmp_path / "out [1]"
    arguments = ["--events", events, "--without", listed, "--out", out]
    cli.main(["recommend", str(copy), *map(str, arguments)])
    written = pl.read_parquet(out / "part-00000.parquet", glob=False)
    assert "i01" not in written["item_id"]
