"""The last layers of a text encoder, trained together with the recommender."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.errors import ConfigError
from jaxrec.models.text.bert import mean_pool
from jaxrec.models.text.encoder import TextEncoder


class TextTower(nnx.Module):
    """The last `num_layers` layers of a text encoder, and mean pooling after them.

    Raises:
        ConfigError: the encoder has fewer layers.
    """

    def __init__(self, encoder: TextEncoder, num_layers: int):
        available = len(encoder.blocks)
        if not 0 < num_layers <= available:
            raise ConfigError(
                f"text.finetune_layers={num_layers}, but the encoder has {available} layers"
            )
        self.blocks = nnx.List(list(encoder.blocks)[-num_layers:])

    def __call__(
        self, hidden: Float[Array, "K L D"], mask: Bool[Array, "K L"]
    ) -> Float[Array, "K D"]:
        """Text vectors from the outputs of the layers below."""
        for block in self.blocks:
            hidden = block(hidden, mask[:, None, None, :])
        return mean_pool(hidden, mask)
