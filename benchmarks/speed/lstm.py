"""The LSTM of jaxrec, forward and backward, beside `torch.nn.LSTM` in the same run.

    python benchmarks/speed/lstm.py --torch path/to/python [--batch-size 256]
        [--sequence-length 64] [--repeats 9]

Printed are, for each hidden size D, the median time, the GFLOP/s and how fast jaxrec is in
comparison. Every system runs in processes of its own, in turn with the others: jaxrec's LSTM, the
plain `lax.scan` with JAX's automatic gradient that it replaced, and `torch.nn.LSTM`, once as it is
and once with freed memory kept, as `python train.py` does. `--torch` is a Python that has torch.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxrec.runtime import KEEP_FREED_MEMORY

HIDDEN_SIZES = (64, 128, 256)
SIZES = {"batch_size": 256, "sequence_length": 64, "repeats": 9}

TORCH = """
import sys, time, torch
batch_size, length, width, repeats = map(int, sys.argv[1:])
layer = torch.nn.LSTM(width, width, batch_first=True)
x = torch.randn(batch_size, length, width, requires_grad=True)
cotangent = torch.randn(batch_size, length, width)
for _ in range(repeats + 2):
    layer.zero_grad(); x.grad = None
    start = time.perf_counter()
    layer(x)[0].backward(cotangent)
    print(time.perf_counter() - start)
"""


def main() -> None:
    """Measure the time of an LSTM and its gradient by hidden size and system."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", type=Path, help="a Python that has torch")
    for name, default in SIZES.items():
        parser.add_argument(flag(name), type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        measure_jax(options)
        return
    for width in HIDDEN_SIZES:
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, times in one_round(options, width).items():
                seconds.setdefault(name, []).extend(times)
        positions = options.batch_size * options.sequence_length
        flops = 3 * 2 * positions * 2 * width * 4 * width
        jaxrec = np.median(seconds["jaxrec"])
        for name, times in seconds.items():
            median = np.median(times)
            print(
                f"D={width:<4} {name:26} {median * 1e3:7.1f} ms {flops / median / 1e9:5.0f} GFLOP/s"
                f"   jaxrec is {median / jaxrec:.2f} times as fast",
                flush=True,
            )


def one_round(options: argparse.Namespace, width: int) -> dict[str, list[float]]:
    """Seconds of every repetition, by system."""
    sizes = [options.batch_size, options.sequence_length, width, options.repeats]
    script = [sys.executable, __file__, "--hidden-size", str(width)]
    for name in SIZES:
        script += [flag(name), str(getattr(options, name))]
    times = {
        "jaxrec": run([*script, "--system", "jaxrec"], {}),
        "scan, automatic gradient": run([*script, "--system", "scan"], {}),
    }
    if options.torch:
        command = [str(options.torch), "-c", TORCH, *map(str, sizes)]
        times["torch.nn.LSTM"] = run(command, {})
        times["torch.nn.LSTM, memory kept"] = run(command, KEEP_FREED_MEMORY)
    return times


def flag(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


def run(command: list[str], environment: dict[str, str]) -> list[float]:
    """Seconds of every repetition but the first two."""
    output = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout
    return [float(line) for line in output.split()][2:]


def measure_jax(options: argparse.Namespace) -> None:
    """Print the seconds of every repetition of one JAX implementation."""
    from jaxrec.runtime import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxrec.models.sequence.blocks import Masks
    from jaxrec.models.sequence.lstm import LSTM

    width = options.hidden_size
    graphdef, params = nnx.split(LSTM(width, nnx.Rngs(0)))
    shape = (options.batch_size, options.sequence_length, width)
    x, cotangent = jax.random.normal(jax.random.key(0), (2, *shape))
    masks = Masks(jnp.zeros(shape[1::-1], bool), None)
    zeros = jnp.zeros((options.batch_size, width))

    def recurrence(layer: LSTM, x: jax.Array) -> jax.Array:
        return layer.scan(x, masks, (zeros, zeros))[0]

    def scan(layer: LSTM, x: jax.Array) -> jax.Array:
        def step(state, inputs):
            hidden, cell = state
            gates = inputs + hidden @ layer.recurrent[...]
            input_gate, forget_gate, cell_gate, output_gate = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget_gate) * cell
            cell += jax.nn.sigmoid(input_gate) * jnp.tanh(cell_gate)
            hidden = jax.nn.sigmoid(output_gate) * jnp.tanh(cell)
            return (hidden, cell), hidden

        inputs = jnp.swapaxes(layer.input(x), 0, 1)
        return jnp.swapaxes(jax.lax.scan(step, (zeros, zeros), inputs)[1], 0, 1)

    function = recurrence if options.system == "jaxrec" else scan
    gradient = jax.jit(
        jax.grad(lambda p, x: (function(nnx.merge(graphdef, p), x) * cotangent).sum(), (0, 1))
    )
    for _ in range(options.repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(gradient(params, x))
        print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
