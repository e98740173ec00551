"""Predict the brand, category or another entity of the next item."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.graph_arrays import first_neighbours
from jaxrec.training.losses.base import Loss
from jaxrec.training.micro_batches import MicroBatch
from jaxrec.training.tasks.base import ExpertBatch
from jaxrec.types import STATIC, Batch, KnowledgeGraph


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NextEntity:
    """The entity of the next item, among all entities of one node type."""

    name: str = field(metadata=STATIC)  # next_brand, for example
    criterion: Loss = field(metadata=STATIC)
    weight: float = field(metadata=STATIC)
    entity_of_item: Int[Array, " I"]  # positions in `nodes`; 0 for an item without an entity
    nodes: Int[Array, " K"]  # node ids of the type's block
    valid: Bool[Array, " K"]  # which of them are entities

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "B T"]:
        """The weights of the targets that have an entity."""
        return jnp.asarray(batch.weights) * (self._entities(batch) > 0)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the weighted targets that have an entity."""
        entities, weights = self._entities(inputs.batch), inputs.weights(self)
        vectors = inputs.vectors.of_entities(inputs.node_places(self.nodes))
        total = self.criterion(inputs.user_vectors, vectors, entities, weights, self.valid)
        return inputs.mean(self, total, weights)

    def _entities(self, batch: Batch) -> Int[Array, "B T"]:
        return self.entity_of_item[jnp.asarray(batch.targets)]


def next_entity(
    graph: KnowledgeGraph, type_name: str, criterion: Loss, weight: float
) -> NextEntity:
    """The task of predicting the next item's entity of a node type."""
    items, block = graph.types[0], graph.type(type_name)
    entities = first_neighbours(graph, type_name)
    return NextEntity(
        name=f"next_{type_name}",
        criterion=criterion,
        weight=weight,
        entity_of_item=jnp.asarray(np.pad(entities, (0, items.padded_size - len(entities)))),
        nodes=jnp.asarray(block.offset + np.arange(block.padded_size)),
        valid=jnp.asarray(block.valid),
    )
