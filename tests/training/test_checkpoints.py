"""Checkpoints that a run cannot resume from."""

import shutil

import pytest

import jaxrec
from jaxrec.errors import RunError


@pytest.mark.parametrize("part", ["params", "rest", "vectors", "progress"])
def test_a_run_without_a_part_of_its_checkpoint_does_not_resume(tables, whole_run, tmp_path, part):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for directory in (run / "checkpoints").glob(f"*/{part}"):
        shutil.rmtree(directory)
    with pytest.raises(RunError, match=r"checkpoint of step \d+ is incomplete or damaged"):
        jaxrec.fit(data=tables, resume=run)


@pytest.mark.thorough
@pytest.mark.parametrize("option", ["hidden_size: 8", "num_layers: 1"])
def test_a_run_whose_options_were_changed_does_not_resume(tables, whole_run, tmp_path, option):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(option, f"{option[:-1]}16"))
    with pytest.raises(RunError, match=r"config\.yaml or the checkpoint of step \d+"):
        jaxrec.fit(data=tables, resume=run)
