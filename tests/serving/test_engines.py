"""The choice of who scores, without a cluster."""

import json
import shutil
import sys

import pytest
from helpers.jobs import BLOCK, contents, manifest

from jaxrec.errors import ConfigError
from jaxrec.serving.ray_engine import pool_of


def test_a_job_with_a_gap_is_continued(serve, tmp_path):
    """Workers end in any order, so a stopped job may lack a part in the middle."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    serve("--out", whole, "--k", 2, *BLOCK)
    shutil.copytree(whole, out)
    for name in ("_SUCCESS", "_manifest.parquet", "part-00001.parquet"):
        (out / name).unlink()
    written = manifest(whole)
    written["parts"].pop(1)
    (out / "_manifest.json").write_text(json.dumps(written))
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    serve("--out", out, "--k", 2, *BLOCK)
    assert contents(out) == contents(whole)
    assert manifest(out) == manifest(whole)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("resources", "machines", "workers", "pool"),
    [
        ({"CPU": 8.0}, 1, None, (1, 0)),  # each computes with all cores
        ({"CPU": 32.0}, 4, None, (4, 0)),
        ({"CPU": 2.0}, 1, 2, (2, 0)),
        ({"CPU": 32.0, "GPU": 8.0}, 2, None, (8, 1)),
        ({"CPU": 32.0, "GPU": 8.0}, 2, 3, (3, 1)),
    ],
)
def test_there_is_a_worker_for_each_device_or_machine(resources, machines, workers, pool):
    assert pool_of(resources, machines, workers) == pool


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="--workers 3: the cluster has 2 GPUs"):
        pool_of({"CPU": 4.0, "GPU": 2.0}, 1, 3)


def test_without_ray_the_message_says_what_to_install(serve, refused, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # makes its import fail
    shown = refused(serve, "--out", tmp_path / "out", "--engine", "ray")
    assert "--engine ray needs pip install 'jaxrec[ray]'" in shown
    assert not (tmp_path / "out").exists()


def test_workers_are_those_of_ray(serve, refused, tmp_path):
    shown = refused(serve, "--out", tmp_path / "out", "--workers", "2")
    assert "--workers needs --engine ray" in shown
