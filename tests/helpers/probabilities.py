"""Queries, items and targets with dense log-probabilities in float64."""

import numpy as np

from jaxrec.evaluation import calibration
from jaxrec.ranking import top_k
from jaxrec.ranking.adjustments import no_adjustments
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import EvalQueries

WIDTH, NUM_ITEMS, CAPACITY = 4, 40, 48


def catalogue():
    """Row 0 is the unknown item, rows from NUM_ITEMS on are unused capacity."""
    rows = np.arange(CAPACITY)
    return (rows > 0) & (rows < NUM_ITEMS)


def fit_temperature(queries, items, targets, valid, adjustments=no_adjustments, **options):
    eval_queries = EvalQueries(queries, targets, adjustments)
    return calibration.fit_temperature(eval_queries, ItemTable(items, valid), **options)


def log_probabilities(
    queries, items, columns, valid, adjustments=no_adjustments, *, inverse_temperature, block=None
):
    table = prepare(ItemTable(items, valid), block=block)
    return top_k.log_probabilities(
        queries, table, columns, adjustments, inverse_temperature=inverse_temperature
    )


def vectors(seed, num_queries):
    random = np.random.default_rng(seed)
    shapes = (num_queries, WIDTH), (CAPACITY, WIDTH)
    queries, items = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return queries, items


def dense_log_probabilities(queries, items, inverse_temperature=1.0):
    """In float64, over the valid items alone."""
    scores = inverse_temperature * queries.astype(np.float64) @ items.astype(np.float64).T
    scores[:, ~catalogue()] = -np.inf
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def drawn_targets(seed, queries, items, inverse_temperature=1.0):
    """One item a query, drawn from the softmax of its scaled scores (by Gumbel noise)."""
    log_p = dense_log_probabilities(queries, items, inverse_temperature)
    noise = np.random.default_rng(seed).gumbel(size=log_p.shape)
    return np.argmax(log_p + noise, axis=1)
