"""Vectors of an extended catalogue."""

import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.catalogs import ITEMS, TRIPLES, make_catalog, many_items, node_names

from jaxrec.config import ModelConfig
from jaxrec.data.extend import extend_catalog
from jaxrec.inference.encoding import catalog_arrays, encode_catalog
from jaxrec.models.inputs import Sizes
from jaxrec.models.items.id import IdSource, id_rows
from jaxrec.models.recommender import Model, Recommender, split
from jaxrec.types import PADDING_MULTIPLE, Catalog


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return make_catalog(ITEMS, TRIPLES)


@pytest.fixture(scope="module")
def model(catalog) -> Model:
    graph = catalog.graph
    items = graph.types[0].padded_size
    sizes = Sizes(items, graph.num_nodes, len(graph.relations), num_event_types=1, text_width=2)
    model = Recommender(ModelConfig(hidden_size=4, num_layers=1), sizes, nnx.Rngs(0))
    for expert in model.experts:  # every row of the tables counts
        ids = (source for source in expert.item_encoder.sources if isinstance(source, IdSource))
        for table in (expert.item_encoder.entity_table, *(source.item_table for source in ids)):
            table[...] = 50 * table[...]
    return Model(*split(model))


TEXT = np.array([[0, 0], [1, 0], [0, 1], [-1, 2]], np.float32)
TRAINED = np.array([False, True, True, False])  # c was not


def vectors_by_name(model, catalog, text=(), entities=None) -> dict[tuple, np.ndarray]:
    """The vector of every node; `text` belongs to the new items, whose ids are unknown."""
    text = np.concatenate([TEXT, np.reshape(text, (-1, 2))]).astype(np.float32)
    ids = id_rows(np.pad(TRAINED, (0, len(text) - len(TEXT))), 0)
    vectors = np.asarray(encode_catalog(model, catalog_arrays(catalog, text, ids, entities)))
    return {name: vectors[node] for node, name in node_names(catalog.graph).items()}


def extended_vectors(model, catalog, items, text) -> dict[tuple, np.ndarray]:
    extension = extend_catalog(catalog, items)
    return vectors_by_name(model, extension.catalog, text, extension.entities)


def test_an_item_without_edges_moves_no_other_node(model, catalog):
    before = vectors_by_name(model, catalog)
    after = extended_vectors(model, catalog, pl.DataFrame({"item_id": ["d"]}), [3, 3])
    assert set(after) - set(before) == {("item", "d")}
    for name, vector in before.items():
        np.testing.assert_allclose(after[name], vector, atol=1e-6, err_msg=str(name))


def test_a_new_item_moves_its_neighbours_alone(model, catalog):
    before = vectors_by_name(model, catalog)
    new = pl.DataFrame({"item_id": ["d"], "brand": ["zeta"]})
    after = extended_vectors(model, catalog, new, [3, 3])
    moved = {name for name in before if np.abs(after[name] - before[name]).max() > 1e-6}
    assert moved == {("brand", "zeta")}


def test_a_new_item_like_an_untrained_one_gets_its_vector(model, catalog):
    new = pl.DataFrame({"item_id": ["d", "e"], "brand": ["acme", "zeta"]})
    after = extended_vectors(model, catalog, new, [TEXT[3], TEXT[3]])
    np.testing.assert_allclose(after["item", "d"], after["item", "c"], atol=1e-6)
    assert np.abs(after["item", "e"] - after["item", "c"]).max() > 1e-2


def test_a_catalogue_larger_than_the_tables_is_encoded_equally(model, catalog):
    before = vectors_by_name(model, catalog)
    new = many_items(PADDING_MULTIPLE)
    after = extended_vectors(model, catalog, new, np.ones((len(new), 2)))
    for name, vector in before.items():
        np.testing.assert_allclose(after[name], vector, atol=1e-6, err_msg=str(name))
    # unknown brands differ by nothing but their items, which are alike
    np.testing.assert_allclose(after["item", "n0"], after["item", "n255"], atol=1e-6)
    np.testing.assert_allclose(after["brand", "brand 0"], after["brand", "brand 255"], atol=1e-6)
