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
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.markup import escape
from rich.table import Table

import jaxrec
from jaxrec.api import configure
from jaxrec.data.dataset import prepare
from jaxrec.models.graph import message_passing
from jaxrec.models.graph.message_passing import edges_at_a_time
from jaxrec.sharding import ITEMS, USERS, laid_out, replicated, state_shardings
from jaxrec.training import loop as training
from jaxrec.training.logging import console
from jaxrec.training.state import TrainContext, initial_state, make_context

PACKAGE = f"{Path(jaxrec.__file__).parent}/"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
NO_KERNEL = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while")
MATRIX_UNIT = 128  # rows and columns
MIB = 2**20
# libtpu would otherwise ask a cloud's metadata server for the TPU of this machine
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}

COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|\w+_computations)=\{?((?:%[^\s,}]+,? ?)+)")


@dataclass(frozen=True)
class Shape:
    """An array of the program and its layout in memory."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def size(self) -> int:
        """Bytes."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.dims) * (int(bits[0]) if bits else 8) // 8

    @property
    def padding(self) -> int:
        """Bytes that fill up the minor dimensions to whole tiles."""
        minor = [self.dims[number] for number in self.minor_to_major[: len(self.tile)]]
        whole = [whole_multiple(*pair) for pair in zip(minor, reversed(self.tile), strict=False)]
        return self.size * math.prod(whole) // max(math.prod(minor), 1) - self.size


@dataclass(frozen=True)
class Instruction:
    """An instruction of the program, and where it comes from."""

    opcode: str
    outputs: tuple[Shape, ...]
    operands: tuple[Shape, ...]
    source: str  # file and line of jaxrec
    text: str
    times: int = 1
    loop: str = ""  # source of the loop around it
    fused: bool = False  # part of a kernel


def main() -> None:
    """Compile a training step for TPUs and measure its memory, loops, transfers and products."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="ml100k")
    parser.add_argument("--data")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--item-shards", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a file for the program text")
    options, overrides = parser.parse_known_args()
    os.environ |= NO_TPU | os.environ
    jax.config.update("jax_platforms", "cpu")
    lowered = lower(pod_context(options, overrides))
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
    kernels = [op for op in program if not op.fused and op.opcode not in NO_KERNEL]
    show_loops(kernels)
    show_collectives([op for op in program if op.opcode in COLLECTIVES])
    show_products([op for op in program if op.opcode == "convolution"])
    show_padding(kernels)


def pod_context(options: argparse.Namespace, overrides: list[str]) -> TrainContext:
    """A training context with data on this machine and a mesh of TPUs that it does not have."""
    config = configure(options.config, options.data, arguments=overrides)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    devices = np.array(topology.devices).reshape(-1, options.item_shards)
    mesh = Mesh(devices, (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2)
    return replace(make_context(config, prepare(config)), mesh=mesh)


def lower(context: TrainContext) -> jax.stages.Lowered:
    """The training step for the mesh of a context."""
    # the block size follows the default backend, which is the CPU here
    message_passing.edges_at_a_time = partial(edges_at_a_time, "tpu")
    state = jax.eval_shape(lambda: initial_state(context))
    batch = context.packing.batch(0, 0, slice(0, context.config.train.batch_size))
    by_user = NamedSharding(context.mesh, PartitionSpec(USERS))
    return training.make_train_step(context).lower(
        laid_out(state, state_shardings(state, context.mesh)),
        laid_out(context.arrays, replicated(context.mesh)),
        laid_out(batch, by_user),
    )


def read_computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation of a program text; `ENTRY` is the main one."""
    sources = read_sources(text)
    computations: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            instructions = computations.setdefault("ENTRY" if header[1] else header[2], [])
            known: dict[str, tuple[Shape, ...]] = {}
        elif match := INSTRUCTION.match(line):
            name, outputs, opcode, operands = match.groups()
            known[name] = tuple(map(read_shape, ARRAY.findall(outputs)))
            read = [known.get(operand, ()) for operand in re.findall(r"%([^\s,]+)", operands)]
            frame = re.search(r"stack_frame_id=(\d+)", line)
            source = sources[int(frame[1])] if frame else ""
            opcode = opcode.removesuffix("-start")
            instructions.append(Instruction(opcode, known[name], sum(read, ()), source, line))
    return computations


def read_shape(array: tuple[str, ...]) -> Shape:
    """The shape in a match of ARRAY."""
    return Shape(array[0], *(tuple(map(int, filter(None, n.split(",")))) for n in array[1:]))


def read_sources(text: str) -> dict[int, str]:
    """The innermost line of jaxrec of every stack frame."""
    parts = re.split(r"\n{2,}", text.strip())
    tables = {name: rows for name, *rows in map(str.splitlines, parts)}
    files = [row.split('"')[1] for row in tables["FileNames"]]
    places = [list(map(int, re.findall(r"\d+", row))) for row in tables["FileLocations"]]
    sources: dict[int, str] = {}
    for row in tables["StackFrames"]:
        frame, place, parent = map(int, re.findall(r"\d+", row))
        file, line = files[places[place - 1][1] - 1], places[place - 1][3]
        # the number of a parent is one more than that of its frame; 1 stands for none
        outer = sources.get(parent - 1, "")
        sources[frame] = f"{file.removeprefix(PACKAGE)}:{line}" if PACKAGE in file else outer
    return sources


def executed(
    computations: dict[str, list[Instruction]],
    name: str,
    times: int = 1,
    loop: str = "",
    fused: bool = False,
) -> Iterator[Instruction]:
    """The instructions of a computation and of all computations it calls, with their counts."""
    for op in computations[name]:
        yield replace(op, times=times, loop=loop, fused=fused)
        is_loop = op.opcode == "while"
        inside = (
            times * (iterations(computations, op) if is_loop else 1),
            (op.source or "?") if is_loop else loop,
            fused or op.opcode not in ("while", "call", "conditional"),
        )
        for called in re.findall(r"%([^\s,]+)", " ".join(CALLED.findall(op.text))):
            yield from executed(computations, called, *inside)


def iterations(computations: dict[str, list[Instruction]], loop: Instruction) -> int:
    """The number with which the condition of a scan compares its counter."""
    condition = re.findall(r"condition=%([^\s,]+)", loop.text)[0]
    text = "".join(op.text for op in computations[condition])
    return max(map(int, re.findall(r" constant\((\d+)\)", text)), default=1)


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
        kernel = dict(zip(re.findall(r"_(\w+)->", op.text)[0], right.dims, strict=True))
        width = kernel.pop("o")
        # batch dimensions are a dilated window
        depth = kernel["i"] if "_dilate" in op.text else math.prod(kernel.values())
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


def whole_multiple(number: int, of: int) -> int:
    """Round a number up to a multiple of another."""
    return -(-number // of) * of


if __name__ == "__main__":
    main()
