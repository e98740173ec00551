"""The item neighbours that a run adds to its scores."""

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from helpers.training import config

import jaxrec
from jaxrec.artifacts.run_directory import read_config
from jaxrec.data.dataset import prepare
from jaxrec.evaluation.calibration import Correction, fit_neighbours
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.inference.comparison import held_out_ranks
from jaxrec.inference.loading import read_calibration
from jaxrec.inference.neighbours_file import read_neighbours
from jaxrec.ranking.adjustments import ScoreAdjustments, as_blocks
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries
from jaxrec.training.fit import fit, open_run


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    """After one epoch the model knows less than what follows what."""
    run = tmp_path_factory.mktemp("run") / "run"
    fit(config(**{"train.epochs": 1, "train.patience": 1}), run, tables=tables)
    return run


@pytest.mark.thorough
def test_the_ranks_of_a_run_are_those_of_the_loaded_model(run, tables):
    assert read_calibration(run)[1].cooccurrence.strength > 0
    model = jaxrec.load(run)
    log = prepare(model.config, tables).split.log
    queries = prepare(model.config, tables).split.test["last"]
    found = held_out_ranks(model, log, queries, model.config.evaluation.mask)
    written = pl.read_parquet(run / "ranks.parquet").filter(queries="test")["rank"]
    np.testing.assert_array_equal(found, written)
    without = held_out_ranks(
        replace(model, neighbours={}), log, queries, model.config.evaluation.mask
    )
    assert not np.array_equal(found, without)


@pytest.mark.thorough
def test_a_run_with_texts_fits_similar_texts_too(known_shop, tmp_path):
    options = {"train.epochs": 1, "train.patience": 1}
    options |= {"model.experts": ["text"], "text.pretrained": str(GOLDEN / "tiny_bert")}
    fit(config(**options), tmp_path / "run", tables=known_shop)
    correction = read_calibration(tmp_path / "run")[1]
    assert correction.cooccurrence is not None and correction.similar_text is not None
    assert set(read_neighbours(tmp_path / "run")) == set(correction.neighbours)


def test_a_context_has_the_neighbours_of_a_correction(trained_run, known_shop):
    context = open_run(read_config(trained_run), trained_run, known_shop, resume=True)
    fits = Correction(similar_text=NeighbourFit(half_life=3.0, strength=2.0))
    [(name, neighbours)] = context.neighbours(fits).items()
    assert name == "similar_text" and neighbours.half_life == 3
    first = neighbours.amounts[:, 0]
    assert first[first > 0].mean() == pytest.approx(2)
    assert not context.neighbours(Correction())


@pytest.mark.thorough
def test_a_refit_counts_its_own_training_events(run, tables, tmp_path):
    refitted = tmp_path / "run"
    shutil.copytree(run, refitted)
    jaxrec.refit(refitted, events="all", data=tables)
    before, after = (read_neighbours(run)["cooccurrence"] for run in (refitted, refitted / "refit"))
    assert before.half_life == after.half_life
    assert not np.array_equal(before.amounts, after.amounts)
    served = jaxrec.load(refitted).neighbours["cooccurrence"]
    np.testing.assert_array_equal(served.amounts, after.amounts)


@pytest.mark.thorough
def test_an_option_turns_it_off(tables, tmp_path):
    options = {"train.epochs": 1, "train.patience": 1}
    options |= {"model.cooccurrence": False, "model.similar_text": False}
    fit(config(**options), tmp_path / "run", tables=tables)
    correction = read_calibration(tmp_path / "run")[1]
    assert correction.cooccurrence is correction.similar_text is None
    assert not jaxrec.load(tmp_path / "run").neighbours


@pytest.mark.parametrize("right", [True, False])
def test_the_strength_is_0_unless_it_helps(right):
    random = np.random.default_rng(0)
    items = ItemTable(random.normal(size=(64, 4)).astype(np.float32), np.arange(64) > 0)
    targets = random.integers(1, 64, 200)
    raised = targets if right else random.integers(1, 64, 200)
    queries = EvalQueries(random.normal(size=(200, 4)).astype(np.float32), targets)

    def adjustments(fits):
        # another half-life or exponent weakens what is added, and the second neighbours add nothing
        fit = fits["first"]
        amount = fit.strength / fit.half_life / (1 + fit.popularity_exponent)
        rows = np.arange(len(targets))
        return as_blocks(ScoreAdjustments(rows, raised, np.full(200, amount, np.float32)))

    fits = fit_neighbours(queries, items, adjustments, {"first": (0.0, 0.5), "second": (0.0,)})
    assert list(fits) == ["first", "second"] and fits["second"].strength == 0
    assert fits["first"].strength > 2 if right else fits["first"].strength == 0
    assert fit_neighbours(queries, items, adjustments, {}) == {}


def test_one_lucky_query_does_not_choose_the_strength():
    """At a strength of 1, one of eighty targets is first by chance. The larger the strength, the
    smaller the mean log rank, but no other target comes to the first ten."""
    random = np.random.default_rng(0)
    items = ItemTable(np.eye(100, dtype=np.float32), np.arange(100) > 0)
    scores = random.normal(size=(80, 100)).astype(np.float32)
    targets = random.integers(1, 100, 80)
    rows = np.arange(80)
    scores[0, targets[0]] = -1
    is_low = (scores[rows, targets] < -0.2) & (rows > 0)
    assert is_low.sum() > 20

    def adjustments(fits):
        strength = fits["first"].strength
        amounts = np.where(rows == 0, 20.0 * (strength == 1), 0.1 * strength * is_low)
        return as_blocks(ScoreAdjustments(rows, targets, amounts.astype(np.float32)))

    fits = fit_neighbours(EvalQueries(scores, targets), items, adjustments, {"first": (0.0,)})
    assert fits["first"].strength == 0
