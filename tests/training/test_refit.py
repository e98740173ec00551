"""A refit on the validation events, which the test events measure."""

import json
import shutil

import jaxrec
from jaxrec.artifacts.run_directory import read_artifacts, read_config
from jaxrec.config import read_recipe
from jaxrec.inference.loading import read_calibration
from jaxrec.training import evaluator, loop
from jaxrec.training.logging import read_log


def test_a_refit_on_validation_events_is_tested(whole_run, tables, tmp_path):
    run = shutil.copytree(whole_run, tmp_path / "run")
    before = json.loads((run / "metrics.json").read_text())
    results = jaxrec.refit(run, events="validation", data=tables)
    assert {name: results[name] for name in before} == before | {"serves": "refit"}
    figures = dict(results["refit"])
    assert figures.pop("events") == "validation"
    assert figures.keys() == {name for name in before if name.startswith("test")}

    steps = [jaxrec.load(run, selected=selected).step for selected in (True, False)]
    assert steps == [jaxrec.load(whole_run).step, int(read_log(run / "refit")[-1]["step"])]

    config = read_config(run / "refit")
    assert config.train.refit == "validation"
    served, selected = read_artifacts(run / "refit"), read_artifacts(run)
    assert selected.trained_until < served.trained_until == selected.seen_until
    refit = loop.Refit(run, "validation")
    context = loop.open_run(config, run / "refit", tables, resume=True, refit=refit)
    with loop.run_directory.open_checkpoints(run / "refit", read_only=True) as manager:
        state, _ = loop.load(context, manager, manager.best_step())
    assert evaluator.test_metrics(context, state, read_calibration(run)[1]) == figures


def test_the_recipe_for_own_data_serves_a_model_of_all_events():
    assert read_recipe("shopping")["train.refit"] == "all"
