"""The score of an edge from the vectors of its ends."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.models.layers import Table


class LinkDecoder(nnx.Module):
    """score(h, r, t) = scale <h * w_r, t> with a vector w_r for every relation.

    This is DistMult (Yang et al., arXiv:1412.6575) on unit vectors. The reverse of a relation has
    its own vector. At first all entries are 1, so that the score is the cosine.
    """

    def __init__(self, num_relations: int, width: int, temperature: float):
        self.relation_table = Table(jnp.ones((num_relations, width)))
        self.log_scale = nnx.Param(-jnp.log(jnp.full((), temperature, jnp.float32)))

    def __call__(
        self, heads: Float[Array, "K D"], relations: Int[Array, " K"]
    ) -> Float[Array, "K D"]:
        """Vectors whose dot products with node vectors are the scores of these as tails."""
        return heads * self.relation_table[...][relations] * jnp.exp(self.log_scale[...])
