"""The names that notebooks use."""

import errno
import os

import pytest
from helpers.training import TINY

import jaxrec
from jaxrec.errors import RunError
from jaxrec.training import loop


def test_public_names_are_lazy_and_real():
    assert {"fit", "load", "configure"} <= set(jaxrec.__all__)
    for name in jaxrec.__all__:
        assert getattr(jaxrec, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = jaxrec.nothing


FULL = {
    "by the system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "by Orbax": ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_is_named_with_the_way_to_continue(tables, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    run = tmp_path / "run"
    monkeypatch.setattr(loop, "train", full)
    with pytest.raises(RunError) as stop:
        jaxrec.fit(data=tables, run=run, overrides=TINY)
    assert str(stop.value) == (
        f"no space left at {run}; make room and continue with --resume {run}"
    )
    monkeypatch.setattr(loop.run_directory, "create_run", full)
    with pytest.raises(RunError, match="make room and start again"):
        jaxrec.fit(data=tables, run=tmp_path / "other", overrides=TINY)
