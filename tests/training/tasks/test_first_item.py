from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.objective import CONFIG, KEY, expert_batch, make_arrays, make_batch

from jaxrec.training.tasks.first_item import FirstItem


def test_first_items_train_the_vectors_of_their_event_type_and_of_any(model):
    """Requests may name an event type or none, so the gradient reaches both vectors."""
    batch, arrays = make_batch(), make_arrays()
    second = np.ones_like(batch.event_types)
    batch = replace(batch, first_weights=(batch.items > 0).astype(np.float32), event_types=second)
    expert = model.experts[0]
    graphdef, params = nnx.split(expert)
    items = jax.random.normal(KEY, (8, CONFIG.model.hidden_size))

    def loss(params):
        expert = nnx.merge(graphdef, params)
        return FirstItem(weight=1.0).loss(expert_batch(expert, arrays, batch, items))

    gradient = jax.grad(loss)(params)["target_type_table"][...]
    any_type, first_type, second_type = jnp.abs(gradient).sum(1) > 0
    assert any_type and second_type and not first_type
