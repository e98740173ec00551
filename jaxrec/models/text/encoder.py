"""The seam of text encoders."""

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class TextEncoder(Protocol):
    """Tokens -> one vector for each token, by a stack of layers with pretrained weights.

    To add an encoder, write an `nnx.Module` with these members in a file beside this one, and a
    function that loads it, as `load_bert` does with `load_weights`. The layers can run in parts,
    because training fine-tunes the last ones (`TextTower`) on stored outputs of those below.
    """

    weight_names: ClassVar[Mapping[str, str]]
    """Paths of the encoder's modules -> their names in a checkpoint; {} is the layer."""

    blocks: nnx.List
    """The layers: (hidden [B L D], visible [B 1 #L L]) -> hidden [B L D]."""

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The input of the first layer."""
        ...

    def layers(
        self,
        hidden: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "B L D"]:
        """The output of layer `stop - 1` (None: the last layer) from the input of layer `start`.

        `mask` is True at tokens and False at padding, which has no influence on tokens.
        """
        ...

    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """The output of the last layer."""
        ...
