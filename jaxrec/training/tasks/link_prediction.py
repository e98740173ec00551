"""Predict the edges of the knowledge graph."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrec.training.micro_batches import MicroBatch
from jaxrec.training.tasks.base import ExpertBatch
from jaxrec.types import NEG_INF, STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinkPrediction:
    """The tail of an edge, among other nodes of the tail's type (sampled softmax)."""

    name: ClassVar[str] = "link_prediction"
    weight: float = field(metadata=STATIC)

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "1"]:
        """An equal share for each part of the batch, as the edges are no part of it."""
        return jnp.full(1, part.share)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the drawn edges, which no message of this step has passed."""
        links, decoder = inputs.links, inputs.expert.links
        assert links is not None and decoder is not None  # they are built with this task

        def vectors_of(nodes: Int[Array, " K"]) -> Float[Array, "K D"]:
            return inputs.vectors.of_nodes(inputs.node_places(nodes))

        queries = decoder(vectors_of(links.heads), links.relations)
        candidates = vectors_of(links.candidates)
        positives = jnp.sum(queries * vectors_of(links.tails), -1, dtype=jnp.float32)
        products = (part.astype(inputs.expert.dtype) for part in (queries, candidates))
        logits = jnp.einsum("kd,cd->kc", *products, preferred_element_type=jnp.float32)
        is_negative = links.candidate_types[None] == links.tail_types[:, None]
        is_negative &= links.candidates[None] != links.tails[:, None]
        logits = jnp.where(is_negative, logits, NEG_INF)
        log_z = jax.nn.logsumexp(jnp.concatenate([positives[:, None], logits], 1), axis=1)
        weights = inputs.weights(self)
        return inputs.mean(self, jnp.mean(log_z - positives) * weights.sum(), weights)
