"""The last layers of a text encoder, trained together with the recommender."""

from jaxtyping import Array, Bool, Float

from jaxrec.errors import ConfigError
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.layers import TextLayers


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
