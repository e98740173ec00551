"""What text encoders share: layers over tokens, and the pooling after them."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.errors import ConfigError
from jaxrec.models.transformer import TransformerBlock

Pooling = Literal["mean", "last"]
PoolingOption = Literal["auto", "mean", "last"]


class TextLayers(nnx.Module):
    """Layers over the tokens of texts, and the pooling of their outputs to one vector a text.

    Args:
        blocks: the layers, the lowest first.
        final_norm: after the last layer, where that one is pre-norm.
        causal: a token sees itself and earlier tokens only.
        pooling: the mean of a text's tokens, or its last token.
    """

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        *,
        final_norm: nnx.LayerNorm | None,
        causal: bool,
        pooling: Pooling,
    ) -> None:
        self.blocks = nnx.List(blocks)
        self.final_norm = final_norm
        self.causal = causal
        self.pooling = pooling

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The input of the first layer, which an encoder defines."""
        raise NotImplementedError

    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Output of the encoder; `mask` is true at tokens and false at padding."""
        return self.layers(self.embed(token_ids), mask)

    def layers(
        self,
        hidden: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "B L D"]:
        """Output of layer `stop - 1` from the input of layer `start`.

        With `stop` None it is the output of the encoder: of the last layer and the norm after it.
        """
        visible = mask[:, None, None, :]
        if self.causal:
            visible &= jnp.tril(jnp.ones((mask.shape[1], mask.shape[1]), bool))[None, None]
        for block in self.blocks[start:stop]:
            hidden = block(hidden, visible)
        return hidden if stop is not None or self.final_norm is None else self.final_norm(hidden)

    def pool(self, hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """One vector a text, in float32; zero for a text without tokens."""
        match self.pooling:
            case "mean":
                return mean_pool(hidden, mask)
            case "last":
                return last_pool(hidden, mask)


def mean_pool(hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over the tokens of a row, in float32; zero for a row without tokens."""
    total = jnp.sum(hidden, axis=1, where=mask[:, :, None], dtype=jnp.float32)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def last_pool(hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """The last token of a row, in float32; zero for a row without tokens."""
    positions = jnp.arange(mask.shape[1])[None]
    last = jnp.where(mask, positions, -1).max(axis=1)
    is_last = positions == last[:, None]
    return jnp.sum(hidden, axis=1, where=is_last[:, :, None], dtype=jnp.float32)


def position_vectors(position: nnx.Embed, length: int) -> Float[Array, "1 L D"]:
    """The vectors of the first L positions; raises a ConfigError if the encoder has fewer."""
    if length > position.num_embeddings:
        raise ConfigError(
            f"a text of {length} tokens exceeds the {position.num_embeddings} positions of the "
            "text encoder; lower text.max_tokens"
        )
    return position(jnp.arange(length)[None])
