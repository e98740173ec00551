"""The last layers of a text encoder, trained together with the recommender."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.models.text.bert import Bert, mean_pool


class TextTower(nnx.Module):
    """The last `num_layers` layers of a BERT and the pooling behind them.

    Raises:
        ValueError: the BERT has fewer layers.
    """

    def __init__(self, bert: Bert, num_layers: int):
        if not 0 < num_layers <= len(bert.blocks):
            raise ValueError(
                f"text.finetune_layers={num_layers}, but the encoder has {len(bert.blocks)} layers"
            )
        self.blocks = nnx.List(list(bert.blocks)[-num_layers:])

    def __call__(
        self, hidden: Float[Array, "K L D"], mask: Bool[Array, "K L"]
    ) -> Float[Array, "K D"]:
        """Text vectors from the outputs of the layers below."""
        for block in self.blocks:
            hidden = block(hidden, mask[:, None, None, :])
        return mean_pool(hidden, mask)
