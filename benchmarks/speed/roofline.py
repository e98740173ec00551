"""Where the time of a training step goes, part by part, beside what the machine could do.

    python benchmarks/speed/roofline.py [--config beauty] [--data path] [--repeats 5] [--out x.png]
    python benchmarks/speed/roofline.py --config ml100k --train.batch_size 32

Options of `train.py` may follow. Printed are milliseconds, GFLOP, megabytes and the share of the
two roofs for every part, and the utilisation of the whole step; `--out` gets the plots.

Every part is compiled and timed alone, forward and backward, with the shapes and data of the
recipe. A repetition runs two measures of the machine, all parts in turn and some steps of the real
loop; times are medians. FLOPs are those of the matrix products (two for a multiply-add), without
recomputation. Bytes are the least that must move: parameters, inputs, outputs and their gradients,
once each. A part far below both roofs is limited by work on single entries or edges. The loss of
first items is left out, because it is one row of logits.
"""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before the imports, because it does not reach threads that run already

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from roofline_parts import INPUT, Work, in_place, step_work
from roofline_report import STEP, SUM, Roofs, Row, plot, summary, table

from jaxrec.config import Config, parse, read_recipe
from jaxrec.data.dataset import prepare
from jaxrec.training.context import TrainContext, make_context
from jaxrec.training.logging import console
from jaxrec.training.loop import make_train_step
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state
from jaxrec.training.step import TrainState

WARM_UP = 3  # repetitions until the allocator holds enough memory for all parts
STEPS = 4  # of the real loop in a repetition
PRODUCT_SIZE, TRIAD_SIZE = 2048, 2**25  # entries: 128 MiB an array, more than the caches hold


def main() -> None:
    """Measure every part of a training step, and print and plot it beside the roofs."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", default="beauty", help="a YAML recipe or a shipped one's name")
    parser.add_argument("--data", help="short for --data.source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("roofline.png"))
    options, overrides = parser.parse_known_args()
    source = ["--data.source", options.data] if options.data else []
    config = parse([*source, *overrides], [read_recipe(options.config)])
    refuse_unsupported(config)
    context = make_context(config, prepare(config))
    rows, roofs, loop = measure(context, options.repeats)
    title = f"A training step of {options.config}"
    console.print(table(rows, roofs, title))
    console.print(summary(rows[-1], roofs, loop, context.packing.fill))
    plot(options.out, rows, roofs, title)


def refuse_unsupported(config: Config) -> None:
    """Exit if the parts of the model are not measured."""
    if config.text.mode == "finetune":
        sys.exit("fine-tuned text layers are not measured; use --text.mode frozen")
    if config.model.sequence != "lstm":
        sys.exit(f"model.sequence {config.model.sequence} is not measured; use lstm")


def measure(context: TrainContext, repeats: int) -> tuple[list[Row], Roofs, np.ndarray]:
    """The table, the machine, and wait, seconds and targets of every step of the loop."""
    state, step = initial_state(context), make_train_step(context)
    product, triad = matrix_product(), scaled_sum()
    works = step_work(context, initial_state(context))  # the loop donates its own state
    seconds: dict[str, list[float]] = {}
    loop: list[tuple[float, float, int]] = []
    for number in range(WARM_UP + repeats):
        times: dict[str, float] = {}
        for work in (product, triad, *works):
            times[work.part] = times.get(work.part, 0) + timed(work.run)
        state, steps = train_steps(context, step, state, epoch=number)
        if number >= WARM_UP:
            loop += steps
            for part, value in times.items():
                seconds.setdefault(part, []).append(value)
    roofs = Roofs(
        product.flops / min(seconds.pop(product.part)), triad.moved / min(seconds.pop(triad.part))
    )
    measured = np.array(loop)
    return rows_of(works, seconds, float(np.median(measured[:, 1]))), roofs, measured


def matrix_product() -> Work:
    """A product of square matrices, which measures the peak FLOP/s."""
    matrix = jnp.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    return Work("product", partial(jax.jit(jnp.matmul), matrix, matrix), flops=2 * PRODUCT_SIZE**3)


def scaled_sum() -> Work:
    """a * 2 + b, in place: a new array would also measure the allocation of its pages."""
    a, b = jnp.ones(TRIAD_SIZE), jnp.ones(TRIAD_SIZE)
    compiled = jax.jit(lambda b, a: a * 2 + b, donate_argnums=0)
    return Work("triad", in_place(compiled, b, a), moved=3 * a.nbytes)


def train_steps(context: TrainContext, step: Callable, state: TrainState, epoch: int):
    """The state after a few steps, and wait, seconds and targets of each but the first."""
    steps = []
    batches = prefetch(context, epoch, range(min(STEPS + 1, context.packing.steps_per_epoch)))
    start = time.perf_counter()
    for batch, targets in batches:
        ready = time.perf_counter()
        state, metrics = step(state, context.arrays, batch)
        jax.block_until_ready(metrics)
        done = time.perf_counter()
        steps.append((ready - start, done - ready, targets))
        start = done
    return state, steps[1:] or steps  # no step hides the making of the first batch


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call, with all work on the device."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def rows_of(works: list[Work], seconds: dict[str, list[float]], step: float) -> list[Row]:
    """Parts, their sum and the whole step; FLOPs and bytes of the step are sums of the parts."""
    rows = []
    for part, times in seconds.items():
        same = [work for work in works if work.part == part]
        flops, moved = sum(work.flops for work in same), sum(work.moved for work in same)
        rows.append(Row(part, statistics.median(times), flops, moved))
    flops, moved = sum(row.flops for row in rows), sum(row.moved for row in rows)
    rounds = zip(*(times for part, times in seconds.items() if part != INPUT), strict=True)
    total = statistics.median(map(sum, rounds))
    return [*rows, Row(SUM, total, flops, moved), Row(STEP, step, flops, moved)]


if __name__ == "__main__":
    main()
