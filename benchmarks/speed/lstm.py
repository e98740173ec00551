"""The LSTM of jaxrec, forward and backward, beside `torch.nn.LSTM` in the same run.

    python benchmarks/lstm.py --torch path/to/python [--rows 256] [--slots 64] [--repeats 9]

Both are measured in turn, in processes of their own. torch is measured as it comes, and once more
with freed memory kept, which `python train.py` asks for by itself; so is the scan over [rows,
features] whose gradient is left to JAX, which the recurrence replaced.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WIDTHS = (64, 128, 256)
# what jaxrec.host.keep_freed_memory asks for, for a process that does not call it
KEEP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}

TORCH = """
import sys, time, torch
rows, slots, width, repeats = map(int, sys.argv[1:])
layer = torch.nn.LSTM(width, width, batch_first=True)
x = torch.randn(rows, slots, width, requires_grad=True)
cotangent = torch.randn(rows, slots, width)
for _ in range(repeats + 2):
    layer.zero_grad(); x.grad = None
    began = time.perf_counter()
    layer(x)[0].backward(cotangent)
    print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", type=Path, help="a Python that has torch")
    for name, default in (("rows", 256), ("slots", 64), ("repeats", 9), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        measure_jax(options)
        return
    for width in WIDTHS:
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, times in one_round(options, width).items():
                seconds.setdefault(name, []).extend(times)
        work = 3 * 2 * options.rows * options.slots * 2 * width * 4 * width
        own = np.median(seconds["jaxrec"])
        for name, times in seconds.items():
            median = np.median(times)
            print(
                f"D={width:<4} {name:26} {median * 1e3:7.1f} ms {work / median / 1e9:5.0f} GFLOP/s"
                f"   jaxrec is {median / own:.2f} times as fast",
                flush=True,
            )


def one_round(options: argparse.Namespace, width: int) -> dict[str, list[float]]:
    sizes = [options.rows, options.slots, width, options.repeats]
    own = [sys.executable, __file__, "--width", str(width)]
    for name in ("rows", "slots", "repeats"):
        own += [f"--{name}", str(getattr(options, name))]
    times = {
        "jaxrec": run([*own, "--system", "jaxrec"], {}),
        "scan, automatic gradient": run([*own, "--system", "scan"], {}),
    }
    if options.torch:
        command = [str(options.torch), "-c", TORCH, *map(str, sizes)]
        times["torch.nn.LSTM"] = run(command, {})
        times["torch.nn.LSTM, memory kept"] = run(command, KEEP)
    return times


def run(command: list[str], environment: dict[str, str]) -> list[float]:
    """Seconds of every repetition but the first two."""
    shown = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout
    return [float(line) for line in shown.split()][2:]


def measure_jax(options: argparse.Namespace) -> None:
    from jaxrec.runtime import keep_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxrec.models.sequence.lstm import LSTM

    width = options.width
    graphdef, params = nnx.split(LSTM(width, nnx.Rngs(0)))
    shape = (options.rows, options.slots, width)
    x, cotangent = jax.random.normal(jax.random.key(0), (2, *shape))
    starts = jnp.zeros(shape[:2], bool)
    zeros = jnp.zeros((options.rows, width))

    def recurrence(layer: LSTM, x: jax.Array) -> jax.Array:
        return layer.scan(x, starts, None, zeros, zeros)[0]

    def scan(layer: LSTM, x: jax.Array) -> jax.Array:
        def slot(state, inputs):
            hidden, cell = state
            gates = inputs + hidden @ layer.recurrent[...]
            input_gate, forget_gate, cell_gate, output_gate = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget_gate) * cell
            cell += jax.nn.sigmoid(input_gate) * jnp.tanh(cell_gate)
            hidden = jax.nn.sigmoid(output_gate) * jnp.tanh(cell)
            return (hidden, cell), hidden

        inputs = jnp.swapaxes(layer.input(x), 0, 1)
        return jnp.swapaxes(jax.lax.scan(slot, (zeros, zeros), inputs)[1], 0, 1)

    function = recurrence if options.system == "jaxrec" else scan
    gradient = jax.jit(
        jax.grad(lambda p, x: (function(nnx.merge(graphdef, p), x) * cotangent).sum(), (0, 1))
    )
    for _ in range(options.repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(gradient(params, x))
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main()
