"""A refit on the validation events, which the test events measure."""

import json
import shutil

import pytest

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.config import read_recipe
from jaxrec.inference.loading import read_calibration
from jaxrec.training import evaluator
from jaxrec.training.checkpoints import load
from jaxrec.training.fit import open_run
from jaxrec.training.logging import read_log


@pytest.fixture(scope="module")
def refitted(whole_run, tables, tmp_path_factory):
    run = tmp_path_factory.mktemp("refit") / "run"
    shutil.copytree(whole_run, run)
    jaxrec.refit(run, events="validation", data=tables)
    return run


def results(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_refit_on_validation_events_serves_and_is_tested(whole_run, refitted):
    before, after = results(whole_run), results(refitted)
    assert {name: after[name] for name in before} == before | {"serves": "refit"}
    figures = after["refit"]
    assert figures.pop("events") == "validation"
    assert figures.keys() == {name for name in before if name.startswith("test")}
    assert all(
        scores["count"] == before[name]["model"]["count"] for name, scores in figures.items()
    )

    served, selected = (run_directory.read_artifacts(run) for run in (refitted / "refit", refitted))
    assert selected.trained_until < served.trained_until == selected.seen_until
    steps = [jaxrec.load(refitted, selected=selected).step for selected in (True, False)]
    assert steps == [jaxrec.load(whole_run).step, int(read_log(refitted / "refit")[-1]["step"])]


@pytest.mark.thorough
def test_the_figures_of_a_refit_are_those_of_its_weights(refitted, tables):
    directory = refitted / "refit"
    config = run_directory.read_config(directory)
    assert config.train.refit == "validation"
    context = open_run(config, directory, tables, resume=True, refit="validation")
    with run_directory.open_checkpoints(directory, read_only=True) as manager:
        state, _ = load(context, manager, manager.best_step())
    figures = evaluator.test_metrics(context, state, read_calibration(refitted)[1])
    assert results(refitted)["refit"] == {"events": "validation", **figures}


def test_the_recipe_for_own_data_serves_a_model_of_all_events():
    assert read_recipe("shopping")["train.refit"] == "all"
