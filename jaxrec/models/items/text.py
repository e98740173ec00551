"""Item texts as a source of item vectors."""

from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import Linear


class TextSource(nnx.Module):
    """An MLP over whitened text vectors."""

    def __init__(self, text_width: int, width: int, rngs: nnx.Rngs):
        self.hidden = Linear(text_width, 2 * width, rngs=rngs)
        self.output = Linear(2 * width, width, rngs=rngs)

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """output(gelu(hidden(text)))."""
        text = nodes.text.astype(self.hidden.kernel[...].dtype)
        return self.output(nnx.gelu(self.hidden(text)))
