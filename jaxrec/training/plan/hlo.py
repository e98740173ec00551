"""Reads the text of a compiled program: its loops, products, transfers and memory traffic.

All figures are for one device and one call. XLA's own cost analysis counts the body of a loop once;
here it counts as often as it runs.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jaxrec

PACKAGE = f"{Path(jaxrec.__file__).parent}/"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
NO_KERNEL = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call"),
    *("conditional", "after-all", "partition-id"),
)
LARGEST = 8  # arrays of a program that its costs list
# bytes that a device sends for one of the `size` bytes of a collective among n devices
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,  # of the operand, which is one share
    "reduce-scatter": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "all-to-all": lambda n: (n - 1) / n,
}

COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?([^}]*)\})?")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|\w+_computations)=\{?((?:%[^\s,}]+,? ?)+)")


@dataclass(frozen=True)
class Shape:
    """An array of the program and its layout in memory."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool  # in the fast memory of a TPU, whose traffic costs nothing here

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
    name: str = ""
    reads: tuple[str, ...] = ()  # names of the operands
    is_root: bool = False
    times: int = 1
    loop: str = ""  # source of the loop around it
    fused: bool = False  # part of a kernel


Computations = Mapping[str, Sequence[Instruction]]


@dataclass(frozen=True)
class Transfers:
    """The collectives of one kind."""

    count: int  # calls, those of loops as often as they run
    bytes: float  # that one device sends


@dataclass(frozen=True)
class Tensor:
    """An array that a program makes."""

    shape: Shape
    source: str


@dataclass(frozen=True)
class Costs:
    """What one call of a program costs one device."""

    flops: float  # of matrix products
    bytes: float  # read from and written to the memory
    collectives: dict[str, Transfers]
    largest: tuple[Tensor, ...]  # the largest arrays that are no arguments
    padding: int  # bytes that fill up the tiles of what kernels write


def read_costs(text: str, devices: int) -> Costs:
    """The costs of a program text for so many devices."""
    computations = read_computations(text)
    program = list(executed(computations, "ENTRY"))
    kernels = [op for op in program if is_kernel(op)]
    return Costs(
        flops=sum(op.times * product_flops(op) for op in program),
        bytes=sum(op.times * traffic(computations, op) for op in kernels),
        collectives=read_collectives(program, devices),
        largest=largest_tensors(kernels),
        padding=sum(op.times * shape.padding for op in kernels for shape in op.outputs),
    )


def is_kernel(op: Instruction) -> bool:
    """Whether an instruction starts a kernel of its own."""
    return not (op.fused or op.opcode in NO_KERNEL or op.opcode.endswith("-done"))


def read_collectives(program: Sequence[Instruction], devices: int) -> dict[str, Transfers]:
    """The collectives of the executed instructions by kind, those that send most first."""
    counts: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for op in program:
        if op.opcode not in COLLECTIVES:
            continue
        share = SENT[op.opcode](group_size(op.text, devices))
        counts[op.opcode] += op.times
        sent[op.opcode] += op.times * share * sum(shape.size for shape in op.operands)
    return {kind: Transfers(counts[kind], total) for kind, total in sent.most_common()}


def group_size(text: str, devices: int) -> int:
    """The number of devices that a collective joins."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # a part of an axis has its own
        return math.prod(int(own or sizes[name]) for name, own in axes)
    return devices


def largest_tensors(kernels: Sequence[Instruction]) -> tuple[Tensor, ...]:
    """The largest different results of kernels."""
    made = {
        (str(shape), op.source): Tensor(shape, op.source)
        for op in kernels
        for shape in op.outputs
        if not shape.on_chip
    }
    return tuple(sorted(made.values(), key=lambda t: -t.shape.size)[:LARGEST])


def product_flops(op: Instruction) -> int:
    """Operations of a matrix product; 0 for other instructions."""
    if op.opcode == "dot":
        (left, *_), text = op.operands, op.text
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
        dims = [int(n) for n in (summed[1] if summed else "").split(",") if n]
        return 2 * math.prod(op.outputs[0].dims) * math.prod(left.dims[n] for n in dims)
    if op.opcode == "convolution":
        return 2 * math.prod(op.outputs[0].dims) * product_depth(op)
    return 0


def product_depth(op: Instruction) -> int:
    """The number of products that are summed in an entry of a convolution, which TPUs use."""
    right = op.operands[1]
    kernel = dict(zip(re.findall(r"_(\w+)->", op.text)[0], right.dims, strict=True))
    kernel.pop("o")
    # batch dimensions are a dilated window
    return kernel["i"] if "_dilate" in op.text else math.prod(kernel.values())


def traffic(computations: Computations, op: Instruction) -> int:
    """Bytes that a kernel reads and writes; of an array that it cuts, only the slice."""
    if op.opcode.endswith("-done"):
        return 0
    if op.opcode == "fusion":
        inside = computations[called_by(op)[0]]
        return _read_by_fusion(computations, op, inside) + _written(computations, inside)
    if op.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _bytes(op.outputs)
    if op.opcode == "dynamic-update-slice":
        return 2 * _bytes(op.operands[1:2])
    if op.opcode == "scatter":
        return 3 * _bytes(op.operands[-1:])
    if op.opcode.endswith("-start") or op.opcode in COLLECTIVES:
        return 2 * _bytes(op.operands)  # an asynchronous one lists its operands as outputs too
    return _bytes(op.operands) + _bytes(op.outputs)


def _bytes(shapes: Sequence[Shape]) -> int:
    return sum(shape.size for shape in shapes if not shape.on_chip)


def _read_by_fusion(computations: Computations, op: Instruction, inside) -> int:
    numbers = {
        int(re.findall(r"parameter\((\d+)\)", p.text)[0]): p.name
        for p in inside
        if p.opcode == "parameter"
    }
    return sum(
        min(_bytes([shape]), _read(computations, inside, numbers[number], shape))
        for number, shape in enumerate(op.operands)
        if number in numbers
    )


def _read(computations: Computations, inside, name: str, shape: Shape) -> int:
    """Bytes that a computation reads of one of its values."""
    total = 0
    for op in inside:
        if name not in op.reads:
            continue
        first = op.reads[0] == name
        if op.opcode in ("dynamic-slice", "gather", "slice") and first:
            total += _bytes(op.outputs)
        elif op.opcode == "dynamic-update-slice" and first:
            continue  # it is written in place
        elif op.opcode == "scatter" and first:
            total += _bytes(op.operands[-1:])
        elif op.opcode == "bitcast":
            total += _read(computations, inside, op.name, shape)
        elif op.opcode == "fusion":
            total += _read_by_fusion(
                computations,
                replace(
                    op,
                    operands=tuple(
                        s if n == name else replace(s, on_chip=True)
                        for n, s in zip(op.reads, op.operands, strict=False)
                    ),
                ),
                computations[called_by(op)[0]],
            )
        else:
            return shape.size
    return total


def _written(computations: Computations, inside) -> int:
    """Bytes that a fusion writes: of an array that it updates in place, only the update."""
    named = {op.name: op for op in inside}
    waiting, total = [op for op in inside if op.is_root], 0
    while waiting:
        op = waiting.pop()
        if op.opcode == "dynamic-update-slice":
            total += _bytes(op.operands[1:2])
        elif op.opcode == "scatter":
            total += _bytes(op.operands[-1:])
        elif op.opcode in ("tuple", "bitcast"):
            waiting += [named[name] for name in op.reads if name in named]
        elif op.opcode == "fusion":
            total += _written(computations, computations[called_by(op)[0]])
        else:
            total += _bytes(op.outputs)
    return total


def read_computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation of a program text; `ENTRY` is the main one."""
    sources = read_sources(text)
    computations: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            instructions = computations.setdefault("ENTRY" if header[1] else header[2], [])
            known: dict[str, tuple[Shape, ...]] = {}
        elif match := INSTRUCTION.match(line):
            root, name, outputs, opcode, operands = match.groups()
            known[name] = tuple(map(read_shape, ARRAY.findall(outputs)))
            names = tuple(re.findall(r"%([^\s,]+)", operands))
            frame = re.search(r"stack_frame_id=(\d+)", line)
            instructions.append(
                Instruction(
                    # an asynchronous collective has a second instruction, `-done`
                    opcode.removesuffix("-start") if opcode.startswith(COLLECTIVES) else opcode,
                    known[name],
                    sum((known.get(operand, ()) for operand in names), ()),
                    sources.get(int(frame[1]), "") if frame else "",
                    line,
                    name=name,
                    reads=names,
                    is_root=bool(root),
                )
            )
    return computations


def read_shape(array: tuple[str, ...]) -> Shape:
    """The shape in a match of ARRAY."""
    dtype, *numbers, layout = array
    dims, order, tile = (tuple(map(int, filter(None, n.split(",")))) for n in numbers)
    # S(5) is the memory of the host
    return Shape(dtype, dims, order, tile, "S(" in layout and "S(5)" not in layout)


def read_sources(text: str) -> dict[int, str]:
    """The innermost line of jaxrec of every stack frame."""
    parts = re.split(r"\n{2,}", text.strip())
    tables = {name: rows for name, *rows in map(str.splitlines, parts)}
    if "StackFrames" not in tables:
        return {}
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
    computations: Computations,
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
        for called in called_by(op):
            yield from executed(computations, called, *inside)


def called_by(op: Instruction) -> list[str]:
    """The computations that an instruction calls."""
    return re.findall(r"%([^\s,]+)", " ".join(CALLED.findall(op.text)))


def iterations(computations: Computations, loop: Instruction) -> int:
    """How often a loop runs: as XLA says, or the number that a scan compares its counter with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(known[1])
    condition = re.findall(r"condition=%([^\s,]+)", loop.text)[0]
    text = "".join(op.text for op in computations[condition])
    return max(map(int, re.findall(r" constant\((\d+)\)", text)), default=1)


def whole_multiple(number: int, of: int) -> int:
    """Round a number up to a multiple of another."""
    return -(-number // of) * of
