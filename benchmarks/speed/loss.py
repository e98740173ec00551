"""Time of the softmax loss and its gradients: dense, recomputed by block, and as jaxrec does it.

    python benchmarks/loss.py [--items 12288] [--width 64] [--positions 2048] [--repeats 7]

Prints the median of interleaved repetitions, GFLOP/s of the three products that the gradient
needs, and the ratio to the dense loss.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.training.losses.full_softmax import blocked_cross_entropy, cross_entropy

ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("items", 12288), ("width", 64), ("positions", 2048), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    slots = options.positions // ROWS
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (ROWS, slots, options.width))
    candidates = jax.random.normal(keys[1], (options.items, options.width)) / options.width
    targets = jax.random.randint(keys[2], (ROWS, slots), 0, options.items)
    weights, valid = jnp.ones(targets.shape), jnp.ones(options.items, bool)

    def dense(q: jax.Array, c: jax.Array) -> jax.Array:
        return (cross_entropy(q, c, targets, valid) * weights).sum()

    def recomputed(q: jax.Array, c: jax.Array, block: int) -> jax.Array:
        width = max(1, block // ROWS)
        cut = partial(jnp.reshape, shape=(ROWS, slots // width, width))

        @jax.checkpoint
        def one(part):
            return cross_entropy(part[0], c, part[1], valid).sum()

        blocks = q.reshape(ROWS, slots // width, width, -1).swapaxes(0, 1)
        return jax.lax.map(one, (blocks, cut(targets).swapaxes(0, 1))).sum()

    def fused(q: jax.Array, c: jax.Array, block: int) -> jax.Array:
        return blocked_cross_entropy(q, c, targets, weights, valid, block)

    losses = {"dense": dense}
    for block in (128, 256, 512):
        losses[f"recomputed, block {block}"] = partial(recomputed, block=block)
        losses[f"jaxrec, block {block}"] = partial(fused, block=block)
    compiled = {name: jax.jit(jax.value_and_grad(f, (0, 1))) for name, f in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(options.repeats + 1):  # the first repetition compiles
        for name, function in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(function(queries, candidates))
            times[name].append(time.perf_counter() - began)
    work = 6 * options.positions * options.items * options.width
    base = np.median(times["dense"][1:])
    for name, values in times.items():
        median = np.median(values[1:])
        print(
            f"{name:22} {median * 1e3:7.1f} ms {work / median / 1e9:6.1f} GFLOP/s "
            f"{base / median:5.2f} x dense"
        )


if __name__ == "__main__":
    main()
