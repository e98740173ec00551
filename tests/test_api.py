"""The names that notebooks use."""

import errno
import os

import pytest
from helpers.training import TINY

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.errors import RunError


def test_public_names_are_lazy_and_real():
    assert {"fit", "load", "configure"} <= set(jaxrec.__all__)
    for name in jaxrec.__all__:
        assert getattr(jaxrec, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = jaxrec.nothing


FULL, READ_ONLY = (
    ("no space left at", "make room"),
    ("the file system is read-only at", "make it writable"),
)
UNWRITABLE = {
    "full, by the system": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), FULL),
    "full, by Orbax": (ValueError("RESOURCE_EXHAUSTED: No space left on device"), FULL),
    "read-only": (OSError(errno.EROFS, os.strerror(errno.EROFS)), READ_ONLY),
}


@pytest.mark.parametrize(("error", "reason"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_an_unwritable_disk_is_named_with_the_way_to_continue(
    tables, tmp_path, monkeypatch, error, reason
):
    def full(*_):
        raise error

    run = tmp_path / "run"
    monkeypatch.setattr("jaxrec.training.fit.train", full)
    with pytest.raises(RunError) as stop:
        jaxrec.fit(data=tables, run=run, overrides=TINY)
    what, do = reason
    assert str(stop.value) == f"{what} {run}; {do} and continue with --resume {run}"
    monkeypatch.setattr(run_directory, "create_run", full)
    with pytest.raises(RunError, match=f"{do} and start again"):
        jaxrec.fit(data=tables, run=tmp_path / "other", overrides=TINY)
