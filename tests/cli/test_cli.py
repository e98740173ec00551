import subprocess
import sys

import polars as pl
import pytest

import jaxrec
from jaxrec import cli

TINY = [
    *("--split.scheme", "leave_one_out", "--model.experts", "id", "--model.hidden_size", "8"),
    *(
        "--model.num_layers",
        "1",
        "--train.epochs",
        "1",
        "--train.batch_size",
        "4",
        "--train.sequence_length",
        "16",
    ),
]


@pytest.fixture
def data(tables, tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    tables.events.write_parquet(directory / "events.parquet")
    tables.items.write_parquet(directory / "items.parquet")
    return directory


def refusal(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command()
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_own_tables_are_trained_and_scored(data, tmp_path):
    run, out = tmp_path / "run", tmp_path / "recommendations"
    cli.train(["--data", str(data), "--run", str(run), *TINY])
    cli.serve([str(run), "--events", str(data / "events.parquet"), "--out", str(out), "--k", "4"])
    written = pl.read_parquet(out / "part-00000.parquet")
    assert set(written.group_by("user_id").len()["len"]) == {4}


def test_bad_input_exits_with_2_and_writes_nothing(data, tmp_path, capsys):
    run = str(tmp_path / "run")
    command = ["--data", str(data), "--run", run]
    assert "--model.hidden_size" in refusal(
        lambda: cli.train([*command, "--model.widht", "8"]), capsys
    )
    assert "no recipe" in refusal(lambda: cli.train([*command, "--config", "nowhere"]), capsys)
    missing = str(tmp_path / "missing")
    assert "missing" in refusal(lambda: cli.train(["--data", missing, "--run", run]), capsys)
    assert "sources are" in refusal(
        lambda: cli.train([*command, *TINY, "--model.experts", "id+image"]), capsys
    )
    (data / "events.parquet").write_bytes(b"not parquet")
    assert "events.parquet" in refusal(lambda: cli.train(command), capsys)
    assert "run directory" in refusal(
        lambda: cli.serve([run, "--events", str(data), "--out", run]), capsys
    )
    assert "--resume" in refusal(lambda: cli.train(["--resume", run, "--data", "x"]), capsys)
    assert not (tmp_path / "run").exists()


def test_help_documents_every_section(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.train(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--config", "--resume", "--data.ties", "--model.experts", "--train.bf16"):
        assert option in shown


def test_public_names_are_lazy_and_real():
    assert {"fit", "load", "configure"} <= set(jaxrec.__all__)
    for name in jaxrec.__all__:
        assert getattr(jaxrec, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = jaxrec.nothing


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("jaxrec", ("jax", "polars", "jaxrec.training.loop")),
        (
            "jaxrec.inference.loading",
            ("jaxrec.training.loop", "jaxrec.training.objective", "matplotlib"),
        ),
        (
            "jaxrec.training.losses.full_softmax",
            ("jaxrec.data", "jaxrec.models", "jaxrec.training.loop"),
        ),
        ("jaxrec.data.dataset", ("jaxrec.models", "jaxrec.training.loop")),
        (
            "jaxrec.models.recommender",
            ("jaxrec.data", "jaxrec.training.losses", "jaxrec.training.loop"),
        ),
    ],
)
def test_imports_flow_down_only(module, absent):
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == []
