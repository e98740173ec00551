"""Directories of parts: a stopped job continues, and no job mixes with another."""

import json
from uuid import uuid4

import duckdb
import polars as pl
import pytest
from pyarrow import parquet

from jaxrec.artifacts.directories import LocalDirectory, RemoteDirectory, open_directory
from jaxrec.artifacts.partitions import (
    PartFile,
    begun_job,
    open_partitions,
    part_name,
    read_manifest,
)
from jaxrec.errors import ConfigError, RunError

PART = pl.DataFrame({"user_id": ["a"]})


@pytest.fixture(params=["local", "remote"])
def directory(request, tmp_path):
    """A new directory, on this machine and at a URL."""
    place = tmp_path / "out" if request.param == "local" else f"memory://{uuid4()}/out/"
    return open_directory(place)


def test_a_stopped_job_continues_after_its_last_part(directory):
    started = open_partitions(directory, {"k": 3})
    assert started.done == ()
    facts = {"name": "part-0", "users": 1}
    started.write([PartFile(directory, "part-0.csv", PART)], facts)
    if isinstance(directory, LocalDirectory):
        (directory.path / ".part-1.csv.draft").write_text("half")
    continued = open_partitions(directory, {"k": 3})
    assert continued.done == (facts,)
    assert continued.numbers == {0}
    assert continued.started == started.started
    assert begun_job(directory) == {"k": 3}
    assert directory.names() == ["_manifest.json", "part-0.csv"]
    continued.finish({"users": 1})
    assert directory.names() == ["_SUCCESS", "_manifest.json", "part-0.csv"]
    assert json.loads(directory.read("_manifest.json"))["totals"] == {"users": 1}
    with pytest.raises(RunError, match="is complete"):
        open_partitions(directory, {"k": 3})


def test_parts_are_recorded_in_the_order_of_their_numbers(directory):
    parts = open_partitions(directory, {"k": 3})
    for number in (2, 100_000, 0):
        parts = parts.record({"name": part_name(number)})
    names = ["part-00000", "part-00002", "part-100000"]
    assert [part["name"] for part in parts.done] == names
    assert open_partitions(directory, {"k": 3}).numbers == {0, 2, 100_000}


def test_parts_of_another_job_are_refused_with_the_difference(directory):
    job = {"options": {"k": 3, "target": "item"}}
    facts = {"name": "part-0"}
    open_partitions(directory, job).write([PartFile(directory, "part-0.csv", PART)], facts)
    with pytest.raises(RunError, match=r"another job \(options\.k: 3, now 4\)"):
        open_partitions(directory, {"options": {"k": 4, "target": "item"}})


def test_other_tools_read_a_complete_directory_as_one_table(tmp_path):
    directory = open_directory(tmp_path)
    parts = open_partitions(directory, {"k": 3})
    for number in range(2):
        facts = {"name": f"part-{number}", "users": 1}
        parts = parts.write([PartFile(directory, f"part-{number}.parquet", PART)], facts)
    parts.finish({"users": 2})
    assert directory.names() == [
        *("_SUCCESS", "_manifest.parquet", "part-0.parquet", "part-1.parquet")
    ]
    assert pl.read_parquet(tmp_path).equals(pl.concat([PART, PART]))
    assert parquet.read_table(tmp_path).num_rows == 2
    with duckdb.connect() as database:
        [[count]] = database.execute(f"SELECT count(*) FROM '{tmp_path}/*.parquet'").fetchall()
    assert count == 2
    assert read_manifest(directory)["totals"] == {"users": 2}
    with pytest.raises(RunError, match="is complete"):
        open_partitions(directory, {"k": 3})
    (tmp_path / "_SUCCESS").unlink()  # killed just before it was written
    open_partitions(directory, {"k": 3}).finish({"users": 2})
    assert pl.read_parquet(tmp_path).height == 2


def test_a_directory_of_an_earlier_version_is_refused_with_the_reason(tmp_path):
    (tmp_path / "manifest.json").write_text('{"job": {}, "parts": []}')
    with pytest.raises(RunError, match=r"earlier version \(manifest\.json\); name another"):
        open_partitions(open_directory(tmp_path), {"k": 3})


def test_addresses_that_nothing_opens_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere://x"):
        RemoteDirectory("nowhere://x")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; name a directory"):
        open_directory(tmp_path / "file")
