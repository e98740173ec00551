"""A transformer that reads a sequence in both directions and predicts its hidden events."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.config import ModelConfig
from jaxrec.models.layers import Linear, unit_norm
from jaxrec.models.sequence.attention import rotations
from jaxrec.models.transformer import TransformerBlock

NO_SEQUENCE = -1  # of unused time steps


class MaskedItems(nnx.Module):
    """BERT4Rec (Sun et al., arXiv:1904.06690) over event vectors, with pre-norm blocks.

    A learned vector takes the place of each hidden event. The position in the sequence is added as
    sines and cosines (Vaswani et al., arXiv:1706.03762), so a sequence may have any length.

    Args:
        config: blocks have its `num_layers` and `sequence_heads`.

    Raises:
        ConfigError: the heads do not divide the hidden size.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width = config.hidden_size
        # event vectors have entries near 1
        self.hidden_event = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        blocks = [
            TransformerBlock(
                width, config.sequence_heads, 4 * width, norm="pre", dtype=None, rngs=rngs
            )
            for _ in range(config.num_layers)
        ]
        self.blocks = nnx.List(blocks)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = Linear(width, width, rngs=rngs)

    def __call__(
        self,
        events: Float[Array, "B T D"],
        hidden: Bool[Array, "B T"],
        sequences: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Unit vectors whose dot products with item vectors are the cosines of predictions.

        Args:
            events: event vectors; those of hidden events are not read.
            sequences: a number that the events of a sequence share, or NO_SEQUENCE. Sequences of a
                row lie one behind another, and none reads another.
        """
        events = jnp.where(hidden[..., None], self.hidden_event[...].astype(events.dtype), events)
        x = events + encoded(positions(sequences), events.shape[-1]).astype(events.dtype)
        mask = sequences[:, None, :, None] == sequences[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return unit_norm(self.output(self.norm(x)))


def positions(sequences: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place of every step in its sequence, from 0."""
    steps = jnp.arange(sequences.shape[1])[None]
    begins = jnp.diff(sequences, axis=1, prepend=sequences[:, :1] - 1) != 0
    return steps - jax.lax.cummax(jnp.where(begins, steps, 0), axis=1)


def encoded(places: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Cosines and sines of the places."""
    table = np.concatenate(rotations(places.shape[1], width), 1)[:, :width]
    return jnp.asarray(table)[places]
