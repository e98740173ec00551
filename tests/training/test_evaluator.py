import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from helpers import evaluating, pods
from helpers.paths import ROOT
from helpers.training import config

from jaxrec.evaluation import metrics
from jaxrec.evaluation.calibration import Correction
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.training.evaluator import Evaluator
from jaxrec.training.fit import open_run
from jaxrec.training.state import initial_state


def test_metrics_are_those_of_the_ranks_beside_baselines(tables, whole_run):
    results = json.loads((whole_run / "metrics.json").read_text())
    assert results["protocol"]["candidates"] == len(tables.items)
    ranks = pl.read_parquet(whole_run / "ranks.parquet").filter(queries="test")["rank"]
    assert metrics.summarise(ranks.to_numpy()).items() <= results["test"]["model"].items()
    simple = {"popularity", "recent_popularity", "personal_frequency", "item_knn"}
    systems = simple | {"cooccurrence", "ease", "blend"}
    assert set(results["test"]) == {"model", "segments"} | systems
    assert set(results["baselines"]) == systems
    assert results["baselines"]["blend"]["baseline"] in systems


def test_scores_on_the_host_rank_as_the_model(tables, tmp_path):
    """With all corrections; a mask of no items leaves the repeat bias on."""
    options = {"model.experts": ["id"], "evaluation.mask": ["none"]}
    context = open_run(config(**options), tmp_path / "run", tables)
    evaluator = Evaluator(context, initial_state(context))
    queries, correction = (
        context.dataset.split.test["last"],
        Correction(-0.1, 0.5, 0.2, NeighbourFit(strength=2.0), NeighbourFit(strength=1.0)),
    )
    _, expected = evaluator.metrics(queries, correction)
    found = context.protocol.rank(evaluator.scorer(correction, queries), queries)
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    _, neutral = evaluator.metrics(queries, Correction())
    assert not np.array_equal(found.ranks, neutral.ranks)


@pytest.mark.slow
def test_two_processes_rank_as_one_without_a_table_in_either(tmp_path):
    """Of items that four devices divide, of which each process has two."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    address, environment = pods.free_address(), pods.with_devices(2) | {"PYTHONPATH": path}
    command = [sys.executable, evaluating.__file__]
    started = [
        subprocess.Popen([*command, number, address, str(tmp_path)], env=environment)
        for number in ("0", "1")
    ]
    assert pods.exit_codes(started) == [0, 0]
    first, other = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    expected = evaluating.evaluated()
    assert first["ranks"] == expected["ranks"]
    for name in ("validation", "model"):
        assert first[name] == pytest.approx(expected[name], rel=1e-5)
    assert other["validation"] == pytest.approx(first["validation"], rel=1e-6)
    assert other["correction"] == first["correction"] == pytest.approx(expected["correction"])
