"""Compile a training step for TPUs without having one, and describe the program.

    pip install 'jax[tpu]'
    python benchmarks/speed/tpu_program.py --config beauty --data path/to/amazon_beauty
    python benchmarks/speed/tpu_program.py --item-shards 4 --train.bf16 True

Options of `train.py` may follow. Printed are memory, and tables of loops, collectives, matrix
products and padding. All figures are for one device and one step. Cycles are the compiler's
estimates, which leave out scatters, gathers and collectives. The matrix unit rounds float32
operands to bfloat16, JAX's default on TPUs.
"""

import argparse
import math
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from jaxrec.api import configure
from jaxrec.data.dataset import prepare
from jaxrec.runtime import compiling_for
from jaxrec.sharding import make_mesh
from jaxrec.training.context import TrainContext, make_context
from jaxrec.training.logging import console
from jaxrec.training.plan.chips import ask_for_devices, devices_of, read_slice
from jaxrec.training.plan.hlo import (
    COLLECTIVES,
    Instruction,
    executed,
    is_kernel,
    product_depth,
    read_computations,
    whole_multiple,
)
from jaxrec.training.plan.programs import train_step

MATRIX_UNIT = 128  # rows and columns
MIB = 2**20


def main() -> None:
    """Compile a training step for TPUs and measure its memory, loops, transfers and products."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="ml100k")
    parser.add_argument("--data")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--item-shards", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a file for the program text")
    options, overrides = parser.parse_known_args()
    ask_for_devices([read_slice(options.topology)])
    with compiling_for("tpu"):
        lowered = train_step(pod_context(options, overrides)).lowered
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if options.write:
        options.write.write_text(text)
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    console.print(
        f"{options.topology}, {options.item_shards} item shards {' '.join(overrides)}: "
        f"{memory.argument_size_in_bytes / MIB:.1f} MiB of arguments, "
        f"{memory.output_size_in_bytes / MIB:.1f} of outputs "
        f"({memory.alias_size_in_bytes / MIB:.1f} in place of arguments), "
        f"{memory.temp_size_in_bytes / MIB:.1f} temporary, "
        f"{memory.generated_code_size_in_bytes / MIB:.1f} of code; {costs['flops'] / 1e9:.2f} "
        f"GFLOP and {costs['bytes accessed'] / MIB:,.0f} MiB accessed if loops ran once; "
        f"compiled in {seconds:.0f} s"
    )
    program = list(executed(read_computations(text), "ENTRY"))
    kernels = [op for op in program if is_kernel(op)]
    show_loops(kernels)
    show_collectives([op for op in program if op.opcode in COLLECTIVES])
    show_products([op for op in program if op.opcode == "convolution"])
    show_padding(kernels)


def pod_context(options: argparse.Namespace, overrides: list[str]) -> TrainContext:
    """A training context with data on this machine and a mesh of TPUs that it does not have."""
    config = configure(options.config, options.data, arguments=overrides)
    mesh = make_mesh(options.item_shards, devices_of(read_slice(options.topology)))
    return replace(make_context(config, prepare(config)), mesh=mesh)


def show_loops(kernels: list[Instruction]) -> None:
    """Print the kernels and estimated cycles of every loop."""
    started: Counter[str] = Counter()
    cycles: Counter[str] = Counter()
    for op in kernels:
        estimate = re.search(r'"estimated_cycles":"(\d+)"', op.text)
        started[op.loop] += op.times
        cycles[op.loop] += op.times * int(estimate[1]) if estimate else 0
    show(
        f"loops, {cycles.total():,} cycles with the instructions outside of loops",
        ("loop", "kernels", "cycles", "share"),
        [
            (loop or "none", started[loop], f"{count:,}", f"{count / max(cycles.total(), 1):.0%}")
            for loop, count in cycles.most_common()
        ],
    )


def show_collectives(collectives: list[Instruction]) -> None:
    """Print the collectives by the bytes that they send."""
    rows = []
    for op in collectives:
        largest = max(op.operands, key=lambda shape: shape.size)
        sent = sum(shape.size for shape in op.operands) * op.times
        rows.append((sent, op.opcode, op.loop, op.times, op.source, len(op.operands), largest))
    show(
        f"collectives, {sum(bool(op.loop) for op in collectives)} of them inside of a loop",
        ("MiB sent", "collective", "in loop", "times", "source", "arrays", "largest"),
        [(f"{sent / MIB:.3f}", *cells) for sent, *cells in sorted(rows, key=lambda row: -row[0])],
    )


def show_products(products: list[Instruction]) -> None:
    """Print the matrix products by FLOPs, and how far they fill the matrix unit."""
    flops: Counter[tuple] = Counter()
    half = 0
    for op in products:
        left, right = op.operands
        width = right.dims[re.findall(r"_(\w+)->", op.text)[0].index("o")]
        depth = product_depth(op)
        entries = math.prod(op.outputs[0].dims)
        sides = (entries // width, depth, width)
        filled = math.prod(n / whole_multiple(n, MATRIX_UNIT) for n in sides)
        count = 2 * entries * depth * op.times
        shapes = f"{left} {right}", str(op.outputs[0])
        flops[op.source, op.times, *shapes, f"{filled:.0%}"] += count
        half += count * (left.dtype == right.dtype == "bf16")
    show(
        f"products, {flops.total() / 1e9:.2f} GFLOP, "
        f"{half / max(flops.total(), 1):.0%} on bfloat16",
        ("GFLOP", "source", "times", "operands", "product", "unit used"),
        [(f"{count / 1e9:.3f}", *cells) for cells, count in flops.most_common(16)],
    )


def show_padding(kernels: list[Instruction]) -> None:
    """Print the results with the most bytes of padding."""
    padding: Counter[tuple] = Counter()
    for op in kernels:
        for shape in op.outputs:
            tile = "x".join(map(str, shape.tile))
            padding[op.source, op.times, str(shape), tile] += shape.padding * op.times
    show(
        f"results that tiles pad, {padding.total() / MIB:.1f} MiB of padding written",
        ("MiB", "source", "times", "result", "tile"),
        [(f"{count / MIB:.2f}", *cells) for cells, count in padding.most_common(10)],
    )


def show(title: str, columns: tuple[str, ...], rows: list[tuple]) -> None:
    """Print a table."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)


if __name__ == "__main__":
    main()
