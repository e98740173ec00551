"""The loss of link prediction against a computation by hand."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.objective import CONFIG, SIZES, expert_batch, make_arrays, make_batch

from jaxrec.config import TrainConfig
from jaxrec.errors import ConfigError, DataError
from jaxrec.models.graph.link_sampling import Links
from jaxrec.models.recommender import Recommender
from jaxrec.training.tasks.build import build_tasks
from jaxrec.training.tasks.link_prediction import LinkPrediction
from jaxrec.types import KnowledgeGraph, NodeType


def test_the_loss_is_a_softmax_over_tails_of_the_same_type():
    model = Recommender(CONFIG.model, SIZES, nnx.Rngs(0), links=True)
    decoder = model.experts[0].links
    random = np.random.default_rng(0)
    relations = random.normal(size=(3, 8)).astype(np.float32)
    decoder.relation_table[...] = jnp.asarray(relations)
    vectors = random.normal(size=(12, 8)).astype(np.float32)
    links = Links(
        heads=jnp.array([1, 9]),
        relations=jnp.array([0, 1]),
        tails=jnp.array([9, 2]),
        tail_types=jnp.array([1, 0]),
        candidates=jnp.array([9, 10, 2, 3, 5]),
        candidate_types=jnp.array([1, 1, 0, 0, 0]),
        hidden=jnp.zeros(2, bool),
    )
    inputs = expert_batch(model.experts[0], make_arrays(), make_batch(), jnp.asarray(vectors))
    loss = LinkPrediction(1.0).loss(replace(inputs, links=links))
    scale = 1 / CONFIG.model.temperature

    def score(head, relation, tail):
        return scale * float((vectors[head] * relations[relation] * vectors[tail]).sum())

    expected = []
    for head, relation, tail, tails in ((1, 0, 9, (9, 10)), (9, 1, 2, (2, 3, 5))):
        scores = np.array([score(head, relation, other) for other in tails])
        expected.append(np.logaddexp.reduce(scores) - score(head, relation, tail))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)


def test_tasks_of_weight_0_are_left_out():
    ids = pl.Series([None, "a", "b"])
    types = NodeType("item", ids, 0), NodeType("brand", ids, 256)
    edges = np.array([1, 2]), np.array([0, 0]), np.array([257, 258])
    graph = KnowledgeGraph(types, ("has_brand",), *edges)

    def names(**options):
        return [task.name for task in build_tasks(TrainConfig(**options), graph)]

    assert names() == ["next_item", "first_item", "next_brand"]
    assert names(link_weight=0.5)[-1] == "link_prediction"
    only = {"next_item_weight": 0.0, "auxiliary_weight": 0.0}
    assert names(**only, link_weight=1.0) == ["link_prediction"]
    no_edges = replace(graph, heads=edges[0][:0], edge_relations=edges[0][:0], tails=edges[0][:0])
    with pytest.raises(DataError, match="no edges to predict"):
        build_tasks(TrainConfig(**only, link_weight=1.0), no_edges)
    with pytest.raises(ConfigError, match="nothing to learn"):
        TrainConfig(**only)
