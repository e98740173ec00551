import shutil

import pytest

import jaxrec
from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.errors import RunError


def test_a_run_that_is_incomplete_or_of_another_version_is_refused(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    step = jaxrec.load(run).step
    calibration = run / checkpoint.CALIBRATION
    whole = calibration.read_text()
    for text in ("", whole[:40], "[1]", "{}", '{"inverse_temperature": "x", "correction": {}}'):
        calibration.write_text(text)
        with pytest.raises(RunError, match=r"calibration\.json is incomplete or damaged"):
            jaxrec.load(run)
    calibration.write_text(whole)
    for data in (run / "checkpoints" / str(step) / "params").rglob("d/*"):
        data.unlink()
    with pytest.raises(RunError, match=f"step {step} in .* cannot be read"):
        jaxrec.load(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(RunError, match="no validated checkpoint"):
        jaxrec.load(run)
    layout = run / "catalog" / "layout.json"
    layout.write_text(layout.read_text().replace(f'"format": {checkpoint.FORMAT}', '"format": 0'))
    with pytest.raises(RunError, match="has format 0"):
        jaxrec.load(run)
    layout.unlink()
    with pytest.raises(RunError, match=r"no catalog/layout\.json"):
        jaxrec.load(run)
