import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.run_directory import (
    FORMAT,
    Progress,
    file_states,
    open_checkpoints,
    read_artifacts,
    read_config,
    refuse_existing,
)
from jaxrec.errors import RunError


@pytest.mark.parametrize("read", [read_config, read_artifacts])
def test_an_older_run_is_refused_by_its_format_and_not_by_its_options(tmp_path, read):
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "layout.json").write_text(json.dumps({"format": FORMAT - 1}))
    (tmp_path / "config.yaml").write_text("model: {an_old_name: 8}")
    with pytest.raises(RunError, match=f"has format {FORMAT - 1}; this version reads"):
        read(tmp_path)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut at the end": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "noise": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + bytes(range(256))),
    "other Parquet": lambda path: pl.DataFrame({"a": [1]}).write_parquet(path),
    "other JSON": lambda path: path.write_text("[1]"),
    "other array": lambda path: np.save(path.open("wb"), np.zeros((3, 2))),
}
FILES = ("layout.json", *(f"{name}.parquet" for name in ("items", "nodes", "edges")))


@pytest.fixture
def copied_run(trained_run, tmp_path):
    run = tmp_path / "run [1]"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return run


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in (*FILES, "counts.npy", "has_trained_id.npy", "whitening.npz")
        for damage in DAMAGES
        if (name, damage) != ("whitening.npz", "missing")  # a run without text has none
    ],
)
def test_a_damaged_file_of_the_catalogue_is_an_error_of_the_run(copied_run, name, damage):
    DAMAGES[damage](copied_run / "catalog" / name)
    message = r"run \[1\](: .* is incomplete or damaged \(.+\); copy it| is not a complete run)"
    with pytest.raises(RunError, match=message) as error:
        read_artifacts(copied_run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("items.parquet", lambda table: table.head(3)),
        ("items.parquet", lambda table: table.with_columns(item_id=pl.col("item_id").reverse())),
        ("nodes.parquet", lambda table: table.head(3)),
        ("edges.parquet", lambda table: table.with_columns(head=pl.col("head") + 100_000)),
        ("edges.parquet", lambda table: table.with_columns(tail=-1 - pl.col("tail"))),
        ("edges.parquet", lambda table: table.with_columns(relation=pl.lit(99))),
    ],
)
def test_a_table_of_another_run_is_refused(copied_run, name, change):
    path = copied_run / "catalog" / name
    change(pl.read_parquet(path, glob=False)).write_parquet(path)
    with pytest.raises(RunError, match="incomplete or damaged"):
        read_artifacts(copied_run)


@pytest.mark.parametrize(
    "entries",
    [
        {"sizes": {}},
        {"sizes": 5},
        {"node_types": {"item": 256}},
        {"node_types": []},
        {"relations": "one text"},
        {"event_types": ["one", "two", "three", "four"]},
        {"format": [FORMAT]},
    ],
    ids=str,
)
def test_a_layout_of_something_else_is_refused(copied_run, entries):
    path = copied_run / "catalog" / "layout.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(RunError, match=r"run \[1\]"):
        read_artifacts(copied_run)


def test_an_older_run_without_vectors_and_numbers_is_read(copied_run):
    path = copied_run / "catalog" / "layout.json"
    layout = json.loads(path.read_text())
    del layout["sizes"]["vectors"], layout["sizes"]["numbers"]
    path.write_text(json.dumps(layout))
    artifacts = read_artifacts(copied_run)
    assert not artifacts.features.vectors and not artifacts.sizes.vectors


def test_a_run_in_a_directory_with_brackets_is_read(copied_run):
    assert read_artifacts(copied_run).catalog.num_items > 1


def test_a_file_that_vanishes_while_a_run_is_watched_is_left_out(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "params").write_text("new")
    (checkpoint / "gone").symlink_to("nowhere")
    (tmp_path / "config.yaml").touch()
    states = {(Path(name).name, size) for name, size, _ in file_states(tmp_path)}
    assert states == {("params", 3), ("config.yaml", 0)}


def test_a_path_in_which_orbax_loses_checkpoints_is_refused(tmp_path):
    for name in ("[a]", "a*", "a?/run"):
        for refused in (refuse_existing, open_checkpoints):
            with pytest.raises(RunError, match="Orbax loses the checkpoints"):
                refused(tmp_path / name)


def test_a_run_cannot_lie_in_a_file(tmp_path):
    file = tmp_path / "events.parquet"
    file.touch()
    for path in (file / "run", file / "runs" / "run"):
        with pytest.raises(RunError, match=r"events\.parquet is a file, not a directory"):
            refuse_existing(path)
        with pytest.raises(RunError, match=r"events\.parquet is a file, not a directory"):
            open_directory(path)


def test_a_run_is_no_url():
    with pytest.raises(RunError, match=r"s3:/+bucket/run is a URL"):
        refuse_existing(Path("s3://bucket/run"))


def test_the_last_of_equal_epochs_is_the_best():
    history = tuple({"ndcg@10": score} for score in (0.1, 0.3, 0.3, 0.2))
    assert Progress().epochs_since_best == 0
    assert Progress(4, 0, history).epochs_since_best == 1
