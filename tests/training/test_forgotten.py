"""Forgotten users are in no training that follows."""

import pytest
from helpers.training import TINY

import jaxrec
from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.erasing import erase_from_file
from jaxrec.artifacts.run_directory import read_artifacts
from jaxrec.data.forgotten import add_forgotten


@pytest.mark.slow
def test_training_refit_and_warm_start_leave_a_forgotten_user_out(tables, tmp_path, capsys):
    path, run = tmp_path / "forgotten.txt", tmp_path / "run"
    path.touch()
    options = {**TINY, "model.experts": ["id"], "train.epochs": 1, "data.forgotten": str(path)}
    jaxrec.fit(data=tables, run=run, overrides=options)
    assert "forgotten" not in capsys.readouterr().err
    own = (tables.events["user_id"] == "u03").sum()
    note = f"1 users with {own} events are forgotten and left out"
    add_forgotten(path, ["u03"], 2**31)

    jaxrec.refit(run, data=tables)
    assert note in capsys.readouterr().err
    assert read_artifacts(run / "refit").counts.sum() == len(tables.events) - own

    jaxrec.fit(data=tables, run=tmp_path / "next", base=run)
    assert note in capsys.readouterr().err
    gone = erase_from_file(open_directory(tmp_path / "next"), "ranks.parquet", {"u04"})
    assert not gone.users  # no event is new, so no rank is in the table

    jaxrec.fit(data=tables, run=tmp_path / "again", overrides=options)
    assert note in capsys.readouterr().err
