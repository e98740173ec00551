"""A residual block with causal attention over a window of past events."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.sequence.blocks import Masks, ResidualBlock
from jaxrec.models.transformer import Attention

ROTARY_BASE = 10_000.0
EMPTY = -1  # the sequence of places without an event


class Window(NamedTuple):
    """The last W events of users as one layer attends to them, the newest last."""

    keys: Float[Array, "B *G W D"]  # without their rotation, which depends on the reader
    values: Float[Array, "B *G W D"]
    filled: Bool[Array, "B *G W"]  # places that hold an event; a short history fills the last ones


class WindowedAttention(Attention):
    """Causal self-attention of an event over itself and the W events before it.

    Queries and keys are rotated by their positions (Su et al., arXiv:2104.09864), so that only the
    number of events between two events counts, not the length of the history.

    Args:
        window: W.
    """

    def __init__(self, width: int, heads: int, window: int, *, rngs: nnx.Rngs):
        super().__init__(width, heads, dtype=None, rngs=rngs)
        self.window = window

    def initial_state(self, batch_size: int) -> Window:
        """A window without events."""
        kernel = self.query.kernel[...]
        zeros = jnp.zeros((batch_size, self.window, len(kernel)), kernel.dtype)
        return Window(zeros, zeros, jnp.zeros(zeros.shape[:2], bool))

    def scan(
        self, x: Float[Array, "B T D"], masks: Masks, state: Window
    ) -> tuple[Float[Array, "B T D"], Window]:
        """The outputs of every step, and the window after the last.

        Queries are read in blocks of up to W steps with the keys that they may see, so that time
        and memory are in proportion to T * W.
        """
        keys = jnp.concatenate([state.keys, self.key(x)], 1)
        values = jnp.concatenate([state.values, self.value(x)], 1)
        # the events of the state belong to sequence 0, and every start begins the next one
        sequences = jnp.concatenate(
            [jnp.where(state.filled, 0, EMPTY), jnp.cumsum(masks.starts.T, 1)], 1
        )
        attended = self._attend(self.query(x), keys, values, sequences)
        return self.out(attended), newest(keys, values, sequences, masks.valid, self.window)

    def _attend(
        self,
        queries: Float[Array, "B T D"],
        keys: Float[Array, "B places D"],
        values: Float[Array, "B places D"],
        sequences: Int[Array, "B places"],
    ) -> Float[Array, "B T D"]:
        """Attention of T steps over W places and themselves, before the output layer."""
        rows, steps, width = queries.shape
        size, block = self.window, min(steps, self.window)
        cos, sin = rotations(size + steps, width // self.heads)
        queries = self._rotated(queries, cos[size:], sin[size:])
        keys = self._rotated(keys, cos, sin)
        values = values.reshape(keys.shape)
        queries, keys, values, sequences = (
            jnp.pad(part, ((0, 0), (0, -steps % block), *((0, 0),) * (part.ndim - 2)))
            for part in (queries, keys, values, sequences)
        )
        keys, values, sequences = (overlapping(x, size, block) for x in (keys, values, sequences))
        distances = size + np.arange(block)[:, None] - np.arange(size + block)[None]
        mask = (sequences[:, None] == sequences[:, size:, None]) & (
            (distances >= 0) & (distances <= size)
        )[None]
        attended = jax.nn.dot_product_attention(
            queries.reshape(-1, block, *queries.shape[2:]), keys, values, mask=mask[:, None]
        )
        return attended.reshape(rows, -1, width)[:, :steps]

    def _rotated(
        self,
        x: Float[Array, "B places D"],
        cos: Float[np.ndarray, "places half"],
        sin: Float[np.ndarray, "places half"],
    ) -> Float[Array, "B places H head"]:
        """Vectors by head, each pair of entries rotated by an angle in proportion to its place."""
        rows, places, width = x.shape
        left, right = jnp.split(x.reshape(rows, places, self.heads, width // self.heads), 2, -1)
        x_cos, x_sin = (part[None, :, None].astype(x.dtype) for part in (cos, sin))
        return jnp.concatenate([left * x_cos - right * x_sin, right * x_cos + left * x_sin], -1)


class AttentionBlock(ResidualBlock):
    """A pre-norm transformer block whose events attend to the window before them."""

    parallel = True

    def __init__(self, heads: int, window: int, width: int, rate: float, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = WindowedAttention(width, heads, window, rngs=rngs)
        super().__init__(width, rate, rngs)

    def initial_state(self, batch_size: int) -> Window:
        """A window without events."""
        return self.attention.initial_state(batch_size)

    def mix(
        self, x: Float[Array, "B T D"], masks: Masks, state: Window
    ) -> tuple[Float[Array, "B T D"], Window]:
        """Attention(Norm x), and the window after the last step."""
        return self.attention.scan(self.attention_norm(x), masks, state)


def rotations(
    places: int, width: int
) -> tuple[Float[np.ndarray, "places half"], Float[np.ndarray, "places half"]]:
    """Cosines and sines of the angles of every place, for heads of a width."""
    # float64, as an angle of many turns has few digits left after the point in float32
    frequencies = ROTARY_BASE ** -(np.arange(0, width, 2) / width)
    angles = np.arange(places)[:, None] * frequencies[None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def overlapping(x: Array, size: int, block: int) -> Array:
    """[B, size + n * block, ...] as n blocks of size + block places, one every `block` places.

    There are several blocks only where `size` equals `block`.
    """
    rest = x.shape[2:]
    if x.shape[1] == size + block:
        return x
    parts = x.reshape(len(x), -1, block, *rest)
    pairs = jnp.concatenate([parts[:, :-1], parts[:, 1:]], 2)
    return pairs.reshape(-1, size + block, *rest)


def newest(
    keys: Float[Array, "B places D"],
    values: Float[Array, "B places D"],
    sequences: Int[Array, "B places"],
    valid: Bool[Array, "T B"] | None,
    size: int,
) -> Window:
    """The last places up to the last valid step, without those of other sequences."""
    rows, places = sequences.shape
    ends = jnp.full(rows, places - size) if valid is None else valid.sum(0)

    def cut(x: Array) -> Array:
        return jax.vmap(lambda row, end: jax.lax.dynamic_slice_in_dim(row, end, size))(x, ends)

    keys, values, sequences = cut(keys), cut(values), cut(sequences)
    filled = (sequences == sequences[:, -1:]) & (sequences != EMPTY)
    keys, values = (jnp.where(filled[..., None], part, 0) for part in (keys, values))
    return Window(keys, values, filled)
