"""The measurement of an accelerator, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jraph import GraphsTuple

from jaxrec.api import configure
from jaxrec.config import parse
from jaxrec.training.fit import fit
from jaxrec.types import EventLog

REPOSITORY = Path(__file__).parents[2]
SPEED = REPOSITORY / "benchmarks" / "speed"
OPTIONS = (
    *("--split.scheme", "leave_one_out", "--model.experts", "id+graph", "id"),
    *("--model.hidden_size", "8", "--model.num_layers", "1", "--train.epochs", "1"),
    *("--train.batch_size", "4", "--train.sequence_length", "16"),
)
ABSENT = ("polars", "duckdb", "sqlglot", "tyro", "tokenizers", "transformers")


def run_script(name: str, *arguments: object, path: Path = REPOSITORY) -> None:
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, str(SPEED / name), *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, capture_output=True, text=True)


def test_counts_the_products_and_kernels_of_all_passes_of_a_loop(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    from accelerator_training import launches, product_flops

    def powers(x, matrix):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ matrix), None), x, length=50)[0]

    traced = jax.jit(powers).trace(jnp.ones((3, 4)), jnp.ones((4, 4)))
    assert product_flops(traced.jaxpr) == 50 * 2 * 3 * 4 * 4
    assert 50 <= launches(traced.lower().compile().as_text()) < 1000


def test_inputs_are_read_without_pickle(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SPEED)
    from accelerator_files import read, write

    log = EventLog(None, ("view", "buy"), *(np.arange(n) for n in (2, 4, 4, 4)), has_time=True)
    graph = GraphsTuple(np.arange(3), None, None, None, None, n_node=np.array([3]), n_edge=None)
    written = {"config": parse(layers=[]), "log": log, "rate": np.float32(0.1), "graph": graph}
    write(tmp_path / "inputs.npz", written)
    restored = read(tmp_path / "inputs.npz")
    assert restored["config"] == written["config"] and restored["rate"].dtype == np.float32
    assert restored["log"].event_type_names == log.event_type_names
    assert restored["graph"].edges is None and restored["graph"].n_node.tolist() == [3]
    for name in ("offsets", "items", "event_types", "times"):
        np.testing.assert_array_equal(getattr(restored["log"], name), getattr(log, name))
    with pytest.raises(TypeError, match="neither an array"):
        write(tmp_path / "other.npz", {"path": tmp_path})
    for module, name in (("subprocess", "Popen"), ("jaxrec.runtime", "sync")):
        described = {"class": [module, name], "fields": {"path": "/"}}
        np.savez(tmp_path / "evil.npz", structure=np.asarray(json.dumps(described)))
        with pytest.raises(ValueError, match="is no dataclass of"):
            read(tmp_path / "evil.npz")


@pytest.mark.slow
def test_every_part_is_measured_and_validation_is_that_of_a_training_run(tables, tmp_path):
    shop, inputs, out = tmp_path / "shop", tmp_path / "inputs", tmp_path / "out"
    shop.mkdir()
    tables.events.write_parquet(shop / "events.parquet")
    tables.items.write_parquet(shop / "items.parquet")
    run_script("accelerator_inputs.py", inputs, "--config", "ml100k", "--data", shop, *OPTIONS)
    for name in ABSENT:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text("raise ImportError")
    arguments = (inputs, "--out", out, "--tiny", "--seconds", 3000)
    run_script("accelerator.py", *arguments, path=tmp_path / "absent")
    rows = [json.loads(line) for line in (out / "accelerator.jsonl").read_text().splitlines()]
    assert all("seconds" in row or row["note"] == "not measured: no torch" for row in rows), rows
    parts = {row["part"] for row in rows}
    assert parts >= {"ceilings", "lstm", "step", "ranking", "training", "ranking-torch"}
    for row in rows:
        if "error" in row:
            assert row["error"] < (0.05 if "bf16" in row["system"] else 1e-4), row
        if row["part"] == "step":
            assert row["flops"] > 0 and row["launches"] > 0 and row["targets"] > 0
    config = configure("ml100k", shop, arguments=OPTIONS)
    results = fit(config, tmp_path / "run")
    assert rows[-1]["ndcg"] == pytest.approx(results["selected"]["ndcg@10"], abs=5e-3)
