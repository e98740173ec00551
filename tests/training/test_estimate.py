from dataclasses import replace

import pytest
from helpers.encoders import values_of

from jaxrec.config import Config, ModelConfig, TrainConfig
from jaxrec.training.estimate import graph_products, scored_items, train_bytes


@pytest.mark.parametrize("layer", values_of("graph_layer"))
def test_every_graph_layer_and_what_is_added_to_it_cost_more(layer):
    one, two = (ModelConfig(graph_layer=layer, num_graph_layers=n) for n in (1, 2))
    assert graph_products(two) == 2 * graph_products(one)
    context = ModelConfig(graph_layer=layer, context="after")
    more = ModelConfig(graph_layer=layer, context="after", context_neighbours=9)
    assert graph_products(one) < graph_products(context) < graph_products(more)


def test_vectors_take_memory_as_given_and_whitened():
    sizes = (Config(), 256_000, 1000)
    more = train_bytes(*sizes, {"image": 512, "audio": 8}) - train_bytes(*sizes)
    assert more == 256_000 * 4 * (2 * 512 + 193 + 2 * 8 + 9)


def test_a_sampled_loss_scores_the_same_items_of_any_large_catalogue():
    full, sampled = Config(), Config(train=TrainConfig(loss="sampled_softmax", negatives=100))
    assert scored_items(full, 256_000) == 256_000
    assert scored_items(sampled, 256_000) == scored_items(sampled, 10**7) == 32 * 65 + 100
    assert scored_items(sampled, 256) == 256


def test_sparse_rows_need_no_gradient_of_whole_tables():
    model = ModelConfig(experts=("id",))
    train = TrainConfig(loss="sampled_softmax")
    dense, sparse = (
        Config(model=model, train=replace(train, sparse_rows=s)) for s in (False, True)
    )
    less = train_bytes(dense, 256_000, 1000) - train_bytes(sparse, 256_000, 1000)
    assert less == 256_000 * 4 * model.hidden_size
