"""The seam of text encoders."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.text.layers import Pooling


@runtime_checkable
class TextEncoder(Protocol):
    """Tokens -> one vector for each token, by a stack of layers with pretrained weights.

    To add an encoder, write a module with these members in a file beside this one, and name it in
    `build_text_encoder`. `TextLayers` has all that is the same for BERT and GPT. The layers can run
    in parts, because training fine-tunes the last ones (`TextTower`) on stored outputs of those
    below.
    """

    weight_names: ClassVar[Mapping[str, str]]
    """Paths of the encoder's modules -> their names in a checkpoint; {} is the layer."""

    hidden_size: int
    """Width of the vectors, D."""

    max_tokens: int
    """The longest text that the encoder has positions for."""

    word: nnx.Embed
    """The vectors of the vocabulary."""

    blocks: nnx.List
    """The layers: (hidden [B L D], visible [B 1 #L L]) -> hidden [B L D]."""

    final_norm: nnx.LayerNorm | None
    """The norm after the last layer, if it has one."""

    causal: bool
    """Whether a token sees itself and earlier tokens only."""

    pooling: Pooling
    """How the vectors of a text's tokens become one."""

    @staticmethod
    def checkpoint_entries(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The weights in an entry of a checkpoint, under the names of `weight_names`.

        Kernels are [outputs, inputs], as PyTorch stores them. Entries that the encoder has no use
        for, such as a head of pretraining, give none.
        """
        ...

    @staticmethod
    def stored_entries(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse of `checkpoint_entries`: a checkpoint's entries of all these weights."""
        ...

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
        """The output of layer `stop - 1` (None: of the encoder) from the input of layer `start`.

        `mask` is True at tokens and False at padding, which has no influence on tokens.
        """
        ...

    def pool(self, hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """One vector for each text, from the output of the encoder."""
        ...

    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """The output of the encoder."""
        ...
