"""The last layers of a text encoder, trained together with the recommender."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int

from jaxrec.errors import ConfigError
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.layers import TextLayers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FinetunedText:
    """The input of the fine-tuned layers, and the whitening of their output."""

    hidden: Float16[Array, "I L hidden"]  # output of the frozen layers
    mask: Bool[Array, "I L"]
    mean: Float[Array, " hidden"]
    projection: Float[Array, "hidden text"]


class TextTower(TextLayers):
    """The last `num_layers` layers of a text encoder, and the pooling after them.

    Raises:
        ConfigError: the encoder has fewer layers.
    """

    def __init__(self, encoder: TextEncoder, num_layers: int):
        available = len(encoder.blocks)
        if not 0 < num_layers <= available:
            raise ConfigError(
                f"text.finetune_layers={num_layers}, but the encoder has {available} layers"
            )
        super().__init__(
            list(encoder.blocks)[-num_layers:],
            final_norm=encoder.final_norm,
            causal=encoder.causal,
            pooling=encoder.pooling,
        )

    def __call__(
        self, hidden: Float[Array, "K L D"], mask: Bool[Array, "K L"]
    ) -> Float[Array, "K D"]:
        """Text vectors from the outputs of the layers below."""
        return self.pool(self.layers(hidden, mask), mask)


def encode_finetuned_rows(
    tower: TextTower, text: FinetunedText, rows: Int[Array, " K"]
) -> Float[Array, "K text"]:
    """Whitened vectors of selected items through the fine-tuned layers; zero without text."""
    mask = text.mask[rows]
    hidden = text.hidden[rows].astype(text.mean.dtype)
    vectors = (tower(hidden, mask) - text.mean[None]) @ text.projection
    return jnp.where(mask.any(1, keepdims=True), vectors, 0)
