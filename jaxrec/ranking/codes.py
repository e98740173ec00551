"""Item vectors as 8-bit integers, to search a large catalogue in a quarter of the memory.

The search takes more items than a list needs, and their exact scores decide. Rounding to integers
of one scale a vector is the scalar quantisation of ScaNN (arXiv:1908.10396) without its learned
loss: the exact scores that follow make up for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int8

BLOCK = 4096  # items at a time: their floats stay in the cache of the processor
LARGEST = 127


class CodedRows(NamedTuple):
    """Vectors as integers; the float is `codes * scales`."""

    codes: Int8[Array | np.ndarray, "I F"]
    scales: Float[Array | np.ndarray, " I"]
    bias: Float[Array, " I"]  # added to the products, unrounded


def encode_rows(
    vectors: Float[Array | np.ndarray, "I F"],
) -> tuple[Int8[np.ndarray, "I F"], Float[np.ndarray, " I"]]:
    """Codes of vectors, and the scale of each vector; a block at a time."""
    codes = np.empty(vectors.shape, np.int8)
    scales = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float32)
        scale = np.maximum(np.abs(block).max(1), np.finfo(np.float32).tiny) / LARGEST
        codes[start : start + BLOCK] = np.rint(block / scale[:, None])
        scales[start : start + BLOCK] = scale
    return codes, scales


def coded_scores(queries: Float[Array, "Q F"], rows: CodedRows) -> Float[Array, "Q I"]:
    """Products of queries with coded vectors, plus the bias."""
    num_items, block = len(rows.scales), min(BLOCK, len(rows.scales))

    def fill(number: Array, scores: Float[Array, "Q I"]) -> Float[Array, "Q I"]:
        start = jnp.minimum(number * block, num_items - block)  # the last block may overlap
        codes, scales, bias = (lax.dynamic_slice_in_dim(part, start, block) for part in rows)
        products = jnp.einsum(
            "qf,if->qi", queries, codes.astype(queries.dtype), precision=lax.Precision.HIGHEST
        )
        return lax.dynamic_update_slice_in_dim(
            scores, products * scales[None] + bias[None], start, axis=1
        )

    start = jnp.zeros((len(queries), num_items), jnp.float32)
    return lax.fori_loop(0, -(-num_items // block), fill, start)


@jax.jit
def coded_products(
    queries: Float[Array | np.ndarray, "Q F"], rows: CodedRows, items: Int[Array, "Q C"]
) -> Float[Array, "Q C"]:
    """Products of each query with the coded vectors of its own items."""
    vectors = rows.codes[items].astype(jnp.float32) * rows.scales[items][..., None]
    return jnp.einsum("qf,qcf->qc", queries, vectors, precision=lax.Precision.HIGHEST)
