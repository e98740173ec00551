import json

import polars as pl

from jaxrec.evaluation import metrics


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
