import json

import numpy as np
import polars as pl
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
