import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models.transformer import Attention, TransformerBlock, gelu

BATCH, LENGTH, WIDTH, HEADS = 2, 5, 8, 2
EVERYTHING = jnp.ones((1, 1, LENGTH, LENGTH), bool)
CAUSAL = jnp.tril(EVERYTHING)


def random_hidden(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (BATCH, LENGTH, WIDTH))


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def test_gelu_is_the_exact_one():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(gelu(jnp.asarray(x)), expected, atol=1e-6)
    assert abs(gelu(jnp.array(2.0)) - jax.nn.gelu(2.0, approximate=True)) > 1e-5


def test_attention_equals_its_formula_head_by_head():
    attention = Attention(WIDTH, HEADS, rngs=nnx.Rngs(0))
    hidden = np.asarray(random_hidden())
    dense = {
        name: hidden @ np.asarray(getattr(attention, name).kernel[...])
        for name in ("query", "key", "value")
    }
    expected = np.zeros_like(hidden)
    for row in range(BATCH):
        for head in np.split(np.arange(WIDTH), HEADS):
            query, key, value = (dense[name][row][:, head] for name in ("query", "key", "value"))
            scores = query @ key.T / math.sqrt(WIDTH // HEADS)
            scores[np.triu_indices(LENGTH, 1)] = -np.inf
            shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            expected[row][:, head] = shares @ value
    expected = expected @ np.asarray(attention.out.kernel[...])
    np.testing.assert_allclose(attention(jnp.asarray(hidden), CAUSAL), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_norm_placement(norm):
    """Silencing both sub-layers leaves the residual path: bare in "pre", normalised in "post"."""
    block = TransformerBlock(WIDTH, HEADS, 16, norm=norm, rngs=nnx.Rngs(0))
    for silenced in (block.attention.out, block.mlp.down):
        silenced.kernel = nnx.Param(jnp.zeros_like(silenced.kernel[...]))
    hidden = random_hidden()
    expected = hidden if norm == "pre" else layer_norm(np.asarray(hidden))
    np.testing.assert_allclose(block(hidden, EVERYTHING), expected, atol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_masked_positions_have_no_influence(norm):
    block = TransformerBlock(WIDTH, HEADS, 16, norm=norm, rngs=nnx.Rngs(0))
    mask = (jnp.arange(LENGTH) < 3)[None, None, None, :]
    hidden = random_hidden()
    changed = hidden.at[:, 3:].set(random_hidden(1)[:, 3:])
    np.testing.assert_array_equal(block(hidden, mask)[:, :3], block(changed, mask)[:, :3])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_first_positions_alone_are_those_of_the_whole_sequence(norm):
    block = TransformerBlock(WIDTH, HEADS, 16, norm=norm, rngs=nnx.Rngs(0))
    hidden, mask = random_hidden(), (jnp.arange(LENGTH) < 4)[None, None, None, :]
    for visible in (mask, CAUSAL):
        expected = block(hidden, visible)[:, :2]
        np.testing.assert_allclose(block(hidden, visible, 2), expected, atol=1e-6)


def test_a_row_without_any_visible_position_stays_finite():
    block = TransformerBlock(WIDTH, HEADS, 16, norm="post", rngs=nnx.Rngs(0))
    assert jnp.isfinite(block(random_hidden(), jnp.zeros((1, 1, 1, LENGTH), bool))).all()


def test_bfloat16_computes_near_float32_with_float32_parameters():
    half = TransformerBlock(WIDTH, HEADS, 16, norm="pre", dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    full = TransformerBlock(WIDTH, HEADS, 16, norm="pre", rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.float32)}
    output = half(random_hidden().astype(jnp.bfloat16), EVERYTHING)
    assert output.dtype == jnp.bfloat16
    expected = full(random_hidden(), EVERYTHING)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, atol=0.1)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"width of 8 .* 3 attention heads"):
        TransformerBlock(WIDTH, 3, 16, norm="pre", rngs=nnx.Rngs(0))
