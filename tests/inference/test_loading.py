import os
import shutil
import time
import warnings

import polars as pl
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


def test_a_checkpoint_of_another_catalogue_is_refused(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    path = run / "catalog" / "items.parquet"
    items = pl.read_parquet(path)
    items.with_columns(pl.col("title").shift(1)).write_parquet(path)
    with pytest.raises(RunError, match=r"does not fit its checksums \(catalog\)"):
        jaxrec.load(run)


def test_the_identity_of_a_run_changes_with_what_is_served(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    identities = [checkpoint.identity(run)]
    (run / "checkpoints" / "other.txt").touch()
    assert checkpoint.identity(run) == identities[0] == checkpoint.identity(trained_run)
    for path in ("calibration.json", "cooccurrence.safetensors", "catalog/items.parquet"):
        with (run / path).open("ab") as file:
            file.write(b" ")
        identities.append(checkpoint.identity(run))
    [progress] = run.glob(f"checkpoints/{jaxrec.load(trained_run).step}/progress/metadata")
    progress.write_text(progress.read_text().replace('"params": "', '"params": "0'))
    identities.append(checkpoint.identity(run))
    assert len(set(identities)) == len(identities)


def test_a_fork_is_refused_instead_of_waiting_for_ever(trained_run, known_shop):
    model, events = jaxrec.load(trained_run), known_shop.events[:1]
    for compute in (
        lambda: jaxrec.load(trained_run),
        lambda: model.recommend(events, k=1),
        lambda: model.similar("item:i01", k=1),
    ):
        with warnings.catch_warnings(action="ignore"):  # of JAX and Python, that forks may wait
            child = os.fork()
        if not child:
            try:
                compute()
            except RunError as error:
                os._exit(7 if "get_context" in str(error) else 1)
            os._exit(2)
        until = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        if not ended[0]:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended[1]) == 7
