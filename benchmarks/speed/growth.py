"""How the cost of training grows with users, items, positions, hidden size, edges and fan-out.

    python benchmarks/speed/growth.py [--axes items edges] [--doublings 4] [--repeats 5]
        [--rows FILE.jsonl]
    python benchmarks/speed/growth.py --large     # 1,000,000 items x 8,192 positions at D = 64

One size is doubled at a time, on random data. Printed, and plotted to `--out`, are the median time
of a training step and the temporary memory of its program, with the exponents of a log-log fit to
the last three points. For users the time is that of packing and training an epoch.
"""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before the imports, because it does not reach threads that run already

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import jax
import matplotlib
import numpy as np
import polars as pl
from accelerator_inputs import MIB
from loading import peak

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import append_row, commit

from jaxrec.config import parse
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import Tables, validate_tables
from jaxrec.training.batches import make_packing
from jaxrec.training.context import TrainContext, make_context
from jaxrec.training.loop import make_train_step
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state
from jaxrec.training.step import TrainState
from jaxrec.types import Batch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


@dataclass(frozen=True)
class Shop:
    """Sizes of a random data set and of the model that is trained on it."""

    users: int = 2048
    events: int = 48  # a user
    items: int = 4096
    edges: int = 4096  # without their reverses
    hidden_size: int = 64
    fan_out: int = 0  # of a relation; 0: all edges, and the full softmax
    batch_size: int = 32
    sequence_length: int = 64


AXES = {
    "users": Shop(users=1024, events=16),
    "items": Shop(items=2048),
    "sequence_length": Shop(sequence_length=32, batch_size=16, users=256, events=1024),
    "hidden_size": Shop(hidden_size=32, edges=0),
    "edges": Shop(edges=2**15),
    "fan_out": Shop(edges=2**17, fan_out=2),
}
"""Sizes before the first doubling. No exponent should exceed 1; that of hidden_size may be 2."""


def main() -> None:
    """Measure time and memory of training as each size of a shop grows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--axes", nargs="*", default=list(AXES))
    parser.add_argument("--doublings", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--rows", type=Path, help="a file that a row of every axis is added to")
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    if options.large:
        train_large()
        return
    if options.rows:
        commit()
    measured = {axis: measure(axis, options) for axis in options.axes}
    plot(measured, options.out)
    for axis, points in measured.items() if options.rows else ():
        append_row(options.rows, row_of(axis, points))


def row_of(axis: str, points: list[tuple[int, float, float]]) -> dict:
    """Sizes, seconds and bytes of an axis, and the exponents of both costs."""
    sizes, seconds, temporary = zip(*points, strict=True)
    return {
        "axis": axis,
        "sizes": sizes,
        "seconds": [round(value, 5) for value in seconds],
        "temporary": temporary,
        "time_exponent": round(exponent(points, 1), 3),
        "memory_exponent": round(exponent(points, 2), 3),
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def measure(axis: str, options: argparse.Namespace) -> list[tuple[int, float, float]]:
    """(size, seconds, bytes) of every doubling of an axis."""
    points = []
    for power in range(options.doublings + 1):
        size = getattr(AXES[axis], axis) << power
        context = build(replace(AXES[axis], **{axis: size}))
        cost = epoch_cost(context) if axis == "users" else step_cost(context, options.repeats)
        points.append((size, *cost))
        print(f"{axis} {size:>9,}: {points[-1][1] * 1e3:9.1f} ms {points[-1][2] / MIB:9.1f} MiB")
    print(f"{axis}: time ~ size^{exponent(points, 1):.2f}, memory ~ size^{exponent(points, 2):.2f}")
    return points


def exponent(points: list[tuple[int, float, float]], column: int) -> float:
    """The slope of a cost over the size in log-log, over the last three points."""
    logs = np.log(np.array(points[-3:], float))
    return float(np.polyfit(logs[:, 0], logs[:, column], 1)[0])


def build(shop: Shop) -> TrainContext:
    """A training context on random events, with experts of ids and, if there are edges, a graph."""
    options = {
        "data.time": "order",
        "split.scheme": "leave_one_out",
        "model.experts": ["id+graph" if shop.edges else "id"],
        "model.hidden_size": shop.hidden_size,
        "train.auxiliary": [],
        "train.batch_size": shop.batch_size,
        "train.sequence_length": shop.sequence_length,
    }
    if shop.fan_out:
        options |= {"train.loss": "sampled_softmax", "train.fan_out": shop.fan_out}
    config = parse(layers=[options])
    return make_context(config, prepare(config, random_tables(shop)))


def random_tables(shop: Shop) -> Tables:
    """Random events, and brands of random items if the shop has edges."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(shop.users), shop.events)
    events = pl.DataFrame(
        {
            "user_id": users.astype(str),
            "item_id": random.integers(0, shop.items, len(users)).astype(str),
            "timestamp": np.tile(np.arange(shop.events), shop.users),
        }
    )
    items = pl.DataFrame({"item_id": np.arange(shop.items).astype(str)})
    triples = None
    if shop.edges:
        heads = random.integers(0, shop.items, 2 * shop.edges)
        tails = random.integers(0, 1024, 2 * shop.edges)
        pairs = np.unique(np.stack([heads, tails], 1), axis=0)
        pairs = random.permutation(pairs)[: shop.edges].astype(str)
        names = {"head_type": "item", "relation": "has_brand", "tail_type": "brand"}
        triples = pl.DataFrame({"head": pairs[:, 0], "tail": pairs[:, 1]}).with_columns(
            **{column: pl.lit(name) for column, name in names.items()}
        )
    return validate_tables(events, items, triples, time="order")


def step_cost(context: TrainContext, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and bytes of its program's temporary memory."""
    state, batch, program = compiled_step(context)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = program(state, context.arrays, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])), temporary_bytes(program)


def epoch_cost(context: TrainContext) -> tuple[float, float]:
    """Seconds of packing and an epoch of steps, and bytes of the step's temporary memory."""
    state, _, program = compiled_step(context)
    start = time.perf_counter()
    packing = make_packing(context.config, context.dataset)
    repacked = replace(context, packing=packing)
    for batch, _ in prefetch(repacked, 0, range(packing.steps_per_epoch)):
        state, metrics = program(state, context.arrays, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start, temporary_bytes(program)


def compiled_step(context: TrainContext) -> tuple[TrainState, Batch, jax.stages.Compiled]:
    """A new state, the first batch, and the program of a step."""
    state, (batch, _) = initial_state(context), next(prefetch(context, 0, range(1)))
    program = make_train_step(context).lower(state, context.arrays, batch).compile()
    return state, batch, program


def temporary_bytes(program: jax.stages.Compiled) -> float:
    """Temporary memory of a compiled program."""
    return float(program.memory_analysis().temp_size_in_bytes)


def train_large() -> None:
    """A step over a million items, whose logits would fill 30 GiB in a dense loss."""
    shop = Shop(users=8192, events=64, items=1_000_000, edges=0, batch_size=128)
    seconds, temporary = step_cost(build(shop), 2)
    positions = shop.batch_size * shop.sequence_length
    flops = 6 * positions * shop.items * shop.hidden_size
    print(
        f"1,000,000 items x {positions:,} positions at D = {shop.hidden_size}: "
        f"{seconds:.1f} s a step, {flops / seconds / 1e9:.0f} GFLOP/s in the loss's products, "
        f"{temporary / MIB:,.0f} MiB of temporary memory, "
        f"peak of the process {peak() / MIB:,.0f} MiB"
    )


def plot(measured: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Time above memory, a column for every axis."""
    figure, panels = plt.subplots(2, len(measured), figsize=(3 * len(measured), 5.5), squeeze=False)
    for column, (axis, points) in enumerate(measured.items()):
        draw(panels[0, column], axis, points, 1, lambda seconds: seconds * 1e3, "ms")
        draw(panels[1, column], axis, points, 2, lambda size: size / MIB, "MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw(
    panel: plt.Axes,
    axis: str,
    points: list[tuple[int, float, float]],
    column: int,
    scale: Callable[[float], float],
    unit: str,
) -> None:
    """Plot one cost over the sizes of an axis, and linear growth through its last point."""
    sizes = np.array([point[0] for point in points])
    values = np.array([scale(point[column]) for point in points])
    panel.loglog(sizes, values, "o-", label=f"exponent {exponent(points, column):.2f}")
    panel.loglog(sizes, values[-1] * sizes / sizes[-1], ":", color="gray", label="linear")
    panel.set(title=axis, ylabel=unit)
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30, fontsize=8)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    for direction in (panel.xaxis, panel.yaxis):
        direction.set_minor_formatter(NullFormatter())
    panel.legend(fontsize=8)


if __name__ == "__main__":
    main()
