"""The transformer block, written once: post-norm for BERT, pre-norm with a causal mask for GPT."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxrec.errors import ConfigError
from jaxrec.models.layers import Linear


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Φ(x) with the exact error function (Hendrycks and Gimpel, arXiv:1606.08415)."""
    # jax.nn.gelu computes erfc, which costs twice as much on a CPU and differs by 1e-6
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The approximation of `gelu` by tanh (same paper), which differs by up to 5e-4."""
    return jax.nn.gelu(x, approximate=True)


class Attention(nnx.Module):
    """Multi-head scaled dot-product self-attention (Vaswani et al., arXiv:1706.03762).

    Args:
        dtype: of the computation; None: that of its operands.

    Raises:
        ConfigError: the number of heads does not divide the width.
    """

    def __init__(
        self, width: int, heads: int, *, dtype: DTypeLike | None = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        if width % heads:
            raise ConfigError(f"a width of {width} cannot be divided among {heads} attention heads")
        self.heads = heads
        self.query = Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        hidden: Float[Array, "B L D"],
        mask: Bool[Array, "#B #H #L L"],
        first: int | None = None,
    ) -> Float[Array, "B first D"]:
        """Attention of the first positions (None: all) over those that they see by `mask`."""
        batch_size, _, width = hidden.shape
        by_head = (batch_size, -1, self.heads, width // self.heads)
        attended = jax.nn.dot_product_attention(
            self.query(hidden[:, :first]).reshape(by_head),
            self.key(hidden).reshape(by_head),
            self.value(hidden).reshape(by_head),
            mask=mask[:, :, :first],
        )
        return self.out(attended.reshape(batch_size, -1, width))


class MLP(nnx.Module):
    """down(activation(up(hidden))); with dtype None in the dtype of its operands."""

    def __init__(
        self,
        width: int,
        inner_width: int,
        *,
        activation: Callable[[Array], Array] = gelu,
        dtype: DTypeLike | None = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        self.up = Linear(width, inner_width, dtype=dtype, rngs=rngs)
        self.down = Linear(inner_width, width, dtype=dtype, rngs=rngs)

    def __call__(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The outputs of every position."""
        return self.down(self.activation(self.up(hidden)))


class TransformerBlock(nnx.Module):
    """Attention and an MLP, each with a residual connection and a LayerNorm.

    Args:
        inner_width: width inside the MLP.
        norm: "post" normalises after adding, as in BERT; "pre" normalises the input of
            attention and MLP, as in GPT-2 (Xiong et al., arXiv:2002.04745, compare them).
        epsilon: added to the variance in LayerNorm.
        dtype: of the computation; None: that of its operands.
    """

    activation = staticmethod(gelu)

    def __init__(
        self,
        width: int,
        heads: int,
        inner_width: int,
        *,
        norm: Literal["pre", "post"],
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm = norm
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, inner_width, activation=self.activation, dtype=dtype, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        hidden: Float[Array, "B L D"],
        mask: Bool[Array, "#B #H #L L"],
        first: int | None = None,
    ) -> Float[Array, "B first D"]:
        """The residual stream after the block, of all positions or the first ones only.

        Args:
            mask: `mask[b, h, i, j]` lets i see j.
            first: number of positions to compute; None: all.
        """
        if self.norm == "pre":
            attended = self.attention(self.attention_norm(hidden), mask, first)
            hidden = hidden[:, :first] + attended
            return hidden + self.mlp(self.mlp_norm(hidden))
        hidden = self.attention_norm(hidden[:, :first] + self.attention(hidden, mask, first))
        return self.mlp_norm(hidden + self.mlp(hidden))
