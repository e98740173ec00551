"""Time of the softmax loss and its gradients: dense, with recomputed blocks, and jaxrec's.

    python benchmarks/speed/loss.py [--items 12288] [--hidden-size 64] [--positions 2048]

Printed are, for every implementation, the median over `--repeats` interleaved repetitions, the
GFLOP/s of the three matrix products of the loss and its gradient, and the speed relative to the
dense loss.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.types import NEG_INF

BATCH_SIZE = 32


def main() -> None:
    """Measure the time of the loss and its gradient, dense and in blocks."""
    parser = argparse.ArgumentParser()
    sizes = {"items": 12288, "hidden-size": 64, "positions": 2048, "repeats": 7}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    steps, width = options.positions // BATCH_SIZE, options.hidden_size
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (BATCH_SIZE, steps, width))
    candidates = jax.random.normal(keys[1], (options.items, width)) / width
    targets = jax.random.randint(keys[2], (BATCH_SIZE, steps), 0, options.items)
    weights, valid = jnp.ones(targets.shape), jnp.ones(options.items, bool)

    def dense(q: jax.Array, c: jax.Array) -> jax.Array:
        return (cross_entropy(q, c, targets, valid) * weights).sum()

    def recomputed(q: jax.Array, c: jax.Array, block: int) -> jax.Array:
        length = min(max(1, block // BATCH_SIZE), steps)
        cut = partial(jnp.reshape, shape=(BATCH_SIZE, steps // length, length))

        @jax.checkpoint
        def one_block(block):
            return cross_entropy(block[0], c, block[1], valid).sum()

        blocks = q.reshape(BATCH_SIZE, steps // length, length, -1).swapaxes(0, 1)
        return jax.lax.map(one_block, (blocks, cut(targets).swapaxes(0, 1))).sum()

    def fused(q: jax.Array, c: jax.Array, block: int) -> jax.Array:
        loss = FullSoftmax(block * options.items, min_positions=block)
        return loss(q, c, targets, weights, valid)

    losses = {"dense": dense}
    for block in (128, 256, 512):
        losses[f"recomputed, block {block}"] = partial(recomputed, block=block)
        losses[f"jaxrec, block {block}"] = partial(fused, block=block)
    compiled = {name: jax.jit(jax.value_and_grad(f, (0, 1))) for name, f in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(options.repeats + 1):  # the first repetition compiles
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(queries, candidates))
            times[name].append(time.perf_counter() - start)
    flops = 6 * options.positions * options.items * width
    base = np.median(times["dense"][1:])
    for name, values in times.items():
        median = np.median(values[1:])
        print(
            f"{name:22} {median * 1e3:7.1f} ms {flops / median / 1e9:6.1f} GFLOP/s "
            f"{base / median:5.2f} x dense"
        )


def cross_entropy(q: jax.Array, c: jax.Array, targets: jax.Array, valid: jax.Array) -> jax.Array:
    """The dense softmax loss of every position, in float32."""
    logits = jnp.einsum("...d,kd->...k", q, c, preferred_element_type=jnp.float32)
    logits = jnp.where(valid, logits, NEG_INF)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


if __name__ == "__main__":
    main()
