"""Devices: loss, ranking and training give the same results on one device and on four."""

import re

import numpy as np
import pytest
from helpers.ranking import catalogue, from_mask, rank_dense, small_integers
from helpers.training import config

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.models.forms import ON_CPU, traced_with
from jaxrec.ranking import item_table
from jaxrec.ranking.adjustments import (
    ScoreAdjustments,
    as_blocks,
    combine,
)
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, best_items, rank_queries
from jaxrec.sharding import make_mesh
from jaxrec.training.context import make_context
from jaxrec.training.loop import make_train_step
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state


@pytest.mark.parametrize(("block", "item_shards"), [(8, 1), (16, 2), (24, 4), (None, 4)])
def test_rankings_do_not_depend_on_blocks_or_devices(block, item_shards):
    """On vectors whose products are exact, with ties within and across the shards."""
    queries, items = small_integers(0, 37, 4), small_integers(1, 64, 4)
    valid, targets = catalogue(50, 64), np.random.default_rng(2).integers(0, 50, 37)
    mask = np.random.default_rng(3).random((37, 64)) < 0.2
    excluded = from_mask(mask)
    bias = np.where(np.arange(64) % 7, 0, -np.inf)
    mesh = make_mesh(item_shards)

    eval_queries, table = EvalQueries(queries, targets, excluded), ItemTable(items, valid)
    ranking = rank_queries(eval_queries, item_table.prepare(table, mesh, block), 20)
    expected = rank_queries(eval_queries, table, 20)
    for name, value in vars(ranking).items():
        np.testing.assert_array_equal(value, getattr(expected, name))

    prepared = item_table.prepare(ItemTable(items, valid, bias), mesh, block)
    top = best_items(queries, prepared, 20, excluded)
    allowed = valid & (bias == 0) & ~mask
    scores = np.where(allowed, queries @ items.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    expected_scores = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(top.scores, expected_scores)
    np.testing.assert_array_equal(top.items, np.where(expected_scores > -np.inf, order, 0))


@pytest.mark.parametrize("item_shards", [1, 2, 4])
def test_amounts_are_added_to_scores_on_any_mesh(item_shards):
    """To targets as well, twice for one item, and together with exclusions."""
    queries, items = small_integers(0, 8, 4), small_integers(1, 64, 4)
    valid, targets = catalogue(50, 64), np.random.default_rng(2).integers(1, 50, 8)
    random = np.random.default_rng(3)
    rows, columns = np.sort(random.integers(0, 8, 40)), random.integers(1, 50, 40)
    columns[:8] = targets[rows[:8]]
    amounts = random.integers(-3, 4, 40).astype(np.float32)
    out = random.random((8, 64)) < 0.2
    adjustments = combine(from_mask(out), as_blocks(ScoreAdjustments(rows, columns, amounts)))
    scores = queries @ items.T
    np.add.at(scores, (rows, columns), amounts)
    out[np.arange(8), targets] = False
    expected = rank_dense(np.where(out, -np.inf, scores), targets, valid=valid, k=5)
    mesh = make_mesh(item_shards)
    ranking_on_mesh = rank_queries(
        EvalQueries(queries, targets, adjustments), ItemTable(items, valid), 5, mesh=mesh
    )
    for name, value in vars(ranking_on_mesh).items():
        np.testing.assert_array_equal(value, getattr(expected, name))


@pytest.mark.parametrize("item_shards", [1, 2, 4])
def test_real_vectors_are_ranked_equally_on_any_mesh(item_shards):
    random = np.random.default_rng(0)
    queries, items = (random.normal(size=(n, 16)).astype(np.float32) for n in (30, 256))
    table = ItemTable(items, catalogue(250, 256))
    top, expected = (
        best_items(queries, item_table.prepare(table, mesh), 10, with_log_z=True)
        for mesh in (make_mesh(item_shards), None)
    )
    np.testing.assert_array_equal(top.items, expected.items)
    np.testing.assert_allclose(top.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(top.log_z, expected.log_z, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sequence", "as_one"),
    [("lstm", False), ("lstm", True), pytest.param("gru", False, marks=pytest.mark.slow)],
)
def test_no_loop_of_a_step_waits_for_other_devices(tables, monkeypatch, sequence, as_one):
    """Over time or over blocks of the loss, which has several here."""
    monkeypatch.setattr(FullSoftmax, "positions_per_block", lambda self, count: 16)
    options = config(**{"model.sequence": sequence, "train.batch_size": 8})
    context = make_context(options, prepare(options, tables))
    batch, _ = next(prefetch(context, 0, range(1)))
    with traced_with(ON_CPU._replace(gradients_as_one=as_one)):
        lowered = make_train_step(context).lower(initial_state(context), context.arrays, batch)
    outside, inside = collectives(lowered.compile().as_text())
    assert "all-reduce" in outside
    assert not inside


def collectives(program: str) -> tuple[set[str], set[str]]:
    """Names of the operations among devices outside and inside of the loops of a program."""
    bodies = set(re.findall(r"body=%([\w.-]+)", program))
    assert len(bodies) >= 4  # two directions in time, and two losses at least
    found: tuple[set[str], set[str]] = (set(), set())
    for part in program.split("\n}"):
        name = re.search(r"^(?:ENTRY )?%([\w.-]+) .*\{$", part, re.MULTILINE)
        names = re.findall(r" (all-[a-z]+|reduce-scatter|collective-[a-z]+)[a-z-]*\(", part)
        found[name is not None and name[1] in bodies].update(names)
    return found


@pytest.mark.parametrize("item_shards", [2, 4])
def test_lists_do_not_depend_on_the_mesh(trained_run, model, known_shop, item_shards):
    events = known_shop.events
    other = jaxrec.load(trained_run, item_shards).recommend(events, k=7)
    expected = model.recommend(events, k=7)
    np.testing.assert_allclose(other["score"], expected["score"], rtol=1e-6, atol=1e-5)
    assert (other["item_id"] == expected["item_id"]).mean() > 0.98
