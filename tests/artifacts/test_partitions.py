"""Directories of parts: a stopped job continues, and no job mixes with another."""

import polars as pl
import pytest

from jaxrec.artifacts.partitions import begun_job, open_partitions
from jaxrec.errors import RunError

PART = pl.DataFrame({"user_id": ["a"]})


def test_a_stopped_job_continues_after_its_last_part(tmp_path):
    started = open_partitions(tmp_path, {"k": 3})
    started.write({tmp_path / "part-0.csv": PART}, {"users": 1})
    (tmp_path / ".part-1.csv.draft").write_text("half")
    continued = open_partitions(tmp_path, {"k": 3})
    assert continued.done == ({"users": 1},)
    assert begun_job(tmp_path) == {"k": 3}
    assert not list(tmp_path.glob(".part-*"))
    continued.finish({"users": 1})
    with pytest.raises(RunError, match="is complete"):
        open_partitions(tmp_path, {"k": 3})


def test_parts_of_another_job_are_refused_with_the_difference(tmp_path):
    job = {"options": {"k": 3, "target": "item"}}
    open_partitions(tmp_path, job).write({tmp_path / "part-0.csv": PART}, {})
    with pytest.raises(RunError, match=r"another job \(options\.k: 3, now 4\)"):
        open_partitions(tmp_path, {"options": {"k": 4, "target": "item"}})
