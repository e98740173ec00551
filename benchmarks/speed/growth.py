"""How the cost of training grows: users, items, history length, width and edges, each doubled.

    python benchmarks/growth.py [--doublings 4] [--repeats 5] [--out growth.png]
    python benchmarks/growth.py --large           # 1,000,000 items x 8,192 positions at D = 64

Every shop is made up. Printed and plotted are the median time of a training step and the
temporary memory of its program, with the exponents fitted in log-log over the last three points;
for users it is the time of packing and training an epoch.
"""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before imports start threads, which it would not reach

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import matplotlib
import numpy as np
import polars as pl
from loading import MIB, peak

from jaxrec.config import parse
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.training import loop as training
from jaxrec.training.state import (
    TrainContext,
    TrainState,
    initial_state,
    make_context,
    make_packing,
)
from jaxrec.types import Batch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


@dataclass(frozen=True)
class ItemContext:
    """Sizes of a made-up shop and of the model that is trained on it."""

    users: int = 2048
    events: int = 48  # a user
    items: int = 4096
    edges: int = 4096  # forward ones
    width: int = 64
    rows: int = 32
    slots: int = 64


AXES = {
    # axis -> sizes before the first doubling; its exponent may not exceed 1 but for width: 2
    "users": ItemContext(users=1024, events=16),
    "items": ItemContext(items=2048),
    "slots": ItemContext(slots=32, rows=16, users=256, events=1024),
    "width": ItemContext(width=32, edges=0),
    "edges": ItemContext(edges=2**15),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--axes", nargs="*", default=list(AXES))
    parser.add_argument("--doublings", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    if options.large:
        train_large()
        return
    measured = {axis: measure(axis, options) for axis in options.axes}
    plot(measured, options.out)


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
    last = np.log(np.array(points[-3:], float))
    return float(np.polyfit(last[:, 0], last[:, column], 1)[0])


def build(shop: ItemContext) -> TrainContext:
    """A training context on random events: ids, and a graph of brands if the shop has edges."""
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
    config = parse(
        layers=[
            {
                "data.time": "order",
                "split.scheme": "leave_one_out",
                "model.experts": ["id+graph" if shop.edges else "id"],
                "model.hidden_size": shop.width,
                "train.auxiliary": [],
                "train.batch_size": shop.rows,
                "train.sequence_length": shop.slots,
            }
        ]
    )
    return make_context(
        config, prepare(config, validate_tables(events, items, triples, time="order"))
    )


def step_cost(context: TrainContext, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and bytes of its program's temporary memory."""
    state, batch, program = compiled_step(context)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, metrics = program(state, context.arrays, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])), temporary_bytes(program)


def epoch_cost(context: TrainContext) -> tuple[float, float]:
    """Seconds of packing and an epoch of steps, and bytes of the step's temporary memory."""
    state, _, program = compiled_step(context)
    began = time.perf_counter()
    packing = make_packing(context.config, context.dataset)
    fresh = replace(context, packing=packing)
    for batch, _ in training.prefetch(fresh, 0, range(packing.steps_per_epoch)):
        state, metrics = program(state, context.arrays, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - began, temporary_bytes(program)


def compiled_step(context: TrainContext) -> tuple[TrainState, Batch, jax.stages.Compiled]:
    """A new state, the first batch, and the program of a step."""
    state, (batch, _) = initial_state(context), next(training.prefetch(context, 0, range(1)))
    program = training.make_train_step(context).lower(state, context.arrays, batch).compile()
    return state, batch, program


def temporary_bytes(program: jax.stages.Compiled) -> float:
    return float(program.memory_analysis().temp_size_in_bytes)


def train_large() -> None:
    """A step over a million items, whose logits would fill 30 GiB if they existed at once."""
    shop = ItemContext(users=8192, events=64, items=1_000_000, edges=0, rows=128, slots=64)
    seconds, temporary = step_cost(build(shop), 2)
    flops = 6 * shop.rows * shop.slots * shop.items * shop.width
    print(
        f"1,000,000 items x {shop.rows * shop.slots:,} positions at D = {shop.width}: "
        f"{seconds:.1f} s a step, {flops / seconds / 1e9:.0f} GFLOP/s in the loss's products, "
        f"{temporary / MIB:,.0f} MiB of temporary memory, "
        f"peak of the process {peak() / MIB:,.0f} MiB"
    )


def plot(measured: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
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
    """A line of one cost of an axis, and the line that is linear through its last point."""
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
