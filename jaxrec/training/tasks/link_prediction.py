"""Predict the edges of the knowledge graph."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.training.tasks.base import STATIC, ExpertBatch
from jaxrec.types import NEG_INF


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinkPrediction:
    """The tail of an edge, among other nodes of the tail's type (sampled softmax)."""

    name: ClassVar[str] = "link_prediction"
    weight: float = field(metadata=STATIC)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the drawn edges, which no message of this step has passed."""
        links, decoder, vectors_of = inputs.links, inputs.expert.links, inputs.vectors_of
        assert links is not None and decoder is not None  # they are built with this task
        queries = decoder(vectors_of(links.heads), links.relations)
        positives = jnp.sum(queries * vectors_of(links.tails), -1, dtype=jnp.float32)
        logits = (queries @ vectors_of(links.candidates).T).astype(jnp.float32)
        is_negative = links.candidate_types[None] == links.tail_types[:, None]
        is_negative &= links.candidates[None] != links.tails[:, None]
        logits = jnp.where(is_negative, logits, NEG_INF)
        log_z = jax.nn.logsumexp(jnp.concatenate([positives[:, None], logits], 1), axis=1)
        return jnp.mean(log_z - positives)
