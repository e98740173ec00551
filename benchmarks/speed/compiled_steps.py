"""Compile a training step for accelerators that are not here, in all its forms, and compare them.

    pip install 'jaxrec[tpu]'                                                       # v5e, v5p
    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12   # h100
    python benchmarks/speed/compiled_steps.py [--chips v5e h100] [--rows 16 1024]
        [--config beauty] [--out FILE.jsonl] [--train.bf16 True]

Options of `train.py` may follow. No data are read: the sizes are those of Amazon Beauty. Nothing
runs on a chip, so all figures are the compiler's, for one chip and one step:

* kernels: what the program starts, those of a loop as often as it runs. Command buffers, which
  start several kernels at once, are not counted as one.
* in scans: those of them inside of loops.
* fusions: kernels that XLA made of several operations.
* temporary: memory beside arguments and results.
* moved, padding: bytes that kernels read and write, and those that only fill tiles.
* million cycles (TPUs): the compiler's estimate, which leaves out scatters, gathers, and kernels
  written in Pallas. So it says of a form with such kernels only what the rest takes.
* matrix unit (TPUs): the share of these cycles that the products of the same kernels would take at
  the peak rate of the chip for bfloat16.

`--lstm-widths 128 256` compiles the Pallas kernel of the LSTM alone, forward and backward (TPUs):
the compiler refuses a kernel whose arrays do not fit on the chip.

Every program is compiled in a process of its own.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import append_row, commit

from jaxrec.config import PlanConfig, parse, read_recipe
from jaxrec.models.forms import BY_PLATFORM, Forms, traced_with
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm_kernel import kernel_lstm
from jaxrec.models.sequence.lstm_scan import Weights
from jaxrec.runtime import compiling_for
from jaxrec.sharding import make_mesh
from jaxrec.training.plan.chips import CHIPS as KNOWN_CHIPS
from jaxrec.training.plan.chips import ask_for_devices, devices_of, read_slice
from jaxrec.training.plan.hlo import executed, is_kernel, read_computations, read_costs
from jaxrec.training.plan.programs import train_step
from jaxrec.training.plan.shapes import plan_context, plan_experts

APART, AS_ONE, KERNEL = "experts apart", "experts as one", "experts as one, LSTM kernel"
FORMS: dict[str, Forms] = {
    APART: BY_PLATFORM["cpu"],
    AS_ONE: BY_PLATFORM["gpu"],
    KERNEL: BY_PLATFORM["tpu"],
}
CHIPS = {"v5e": (APART, AS_ONE, KERNEL), "v5p": (APART, AS_ONE, KERNEL), "h100": (APART, AS_ONE)}
"""The forms that a chip can run."""
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9}
"""Cycles per second: what the peak rate means for four units of 128 x 128, and for eight."""
STEPS = 64  # time steps of a row
H100 = Path(__file__).with_name("h100_target_config.txt")
BEAUTY = PlanConfig(
    users=22_363,
    items=12_101,
    events=153_776,
    entities={"category": 261, "brand": 2_075},
    edges=22_344,
    relations=3,
    event_types=("review",),
)
MIB = 2**20


def main() -> None:
    """Compile every program for every chip and batch size, and print a table."""
    options, overrides = read_options()
    if options.alone:
        row = measure_lstm(options) if options.lstm_widths else measure(options, overrides)
        print(json.dumps(row))
        return
    if options.out:
        commit()
    rows = []
    for chip in options.chips:
        for number in options.rows:
            for arguments in programs(options, chip):
                place = ["--chips", chip, "--rows", str(number), *arguments]
                rows.append(in_process([*sys.argv[1:], *place]))
                if options.out:
                    append_row(options.out, rows[-1] | {"code": commit()})
    Console(width=160).print(table(rows))


def programs(options: argparse.Namespace, chip: str) -> list[list[str]]:
    """The arguments of every program for a chip: the widths of a kernel, or the forms of a step."""
    if options.lstm_widths:
        return [["--lstm-widths", str(width)] for width in options.lstm_widths]
    return [["--forms", form] for form in CHIPS[chip] if form in options.forms]


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and those of `train.py`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", default="beauty", help="a YAML recipe or a shipped one's name")
    parser.add_argument("--chips", nargs="*", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--rows", nargs="*", type=int, default=[16, 1024], help="of a batch")
    parser.add_argument("--out", type=Path, help="a file that the rows are added to")
    parser.add_argument("--write", type=Path, help="a directory for the program texts")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--lstm-widths", nargs="*", type=int, help="compile the LSTM kernel alone")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_known_args()


def in_process(arguments: list[str]) -> dict[str, Any]:
    """The row of one program, compiled in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--alone"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Compile one form for one chip and batch size."""
    [chip], [number], [form] = options.chips, options.rows, options.forms
    ask_for_devices([read_slice("v5e:1x1")])
    arguments = [*overrides, "--train.batch_size", str(number)]
    config = parse(arguments, [read_recipe(options.config)])
    experts = plan_experts(config, BEAUTY)
    config = replace(config, model=replace(config.model, experts=experts))
    platform = "gpu" if chip == "h100" else "tpu"
    mesh = make_mesh(1, devices(chip)[:1])
    with compiling_for(platform), traced_with(FORMS[form]):
        lowered = train_step(plan_context(config, BEAUTY, mesh)).lowered
    options_of_compiler = {"xla_gpu_autotune_level": 0} if platform == "gpu" else None
    compiled, text, costs = compile_program(lowered, chip, options_of_compiler)
    if options.write:
        (options.write / f"{chip}-{number}-{form.replace(' ', '_')}.txt").write_text(text)
    row = {"config": options.config, "chip": chip, "rows": number, "form": form}
    return row | {"dtype": "bfloat16" if config.train.bf16 else "float32"} | compiled | costs


def measure_lstm(options: argparse.Namespace) -> dict[str, Any]:
    """Compile the Pallas kernel of an LSTM with its gradient, in both dtypes."""
    [chip], [number], [width] = options.chips, options.rows, options.lstm_widths
    ask_for_devices([read_slice("v5e:1x1")])
    place = SingleDeviceSharding(devices(chip)[0])

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def loss(weights, x, masks, state):
        outputs, _ = kernel_lstm(weights, x, masks, state)
        return outputs.astype(jnp.float32).sum()

    row: dict[str, Any] = {"chip": chip, "rows": number, "width": width}
    for dtype in (jnp.float32, jnp.bfloat16):
        weights = Weights(array(2 * width, 4 * width, dtype=dtype), array(4 * width, dtype=dtype))
        x, state = array(STEPS, number, width, dtype=dtype), array(number, width, dtype=dtype)
        masks = Masks(array(STEPS, number, dtype=bool), array(STEPS, number, dtype=bool))
        with compiling_for("tpu"):
            lowered = jax.jit(jax.grad(loss, (0, 1))).lower(weights, x, masks, (state, state))
        compiled, _, costs = compile_program(lowered, chip)
        row[jnp.dtype(dtype).name] = {"pallas_kernels": costs["pallas_kernels"], **compiled}
    return row


def compile_program(
    lowered: jax.stages.Lowered, chip: str, options: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """What the compiler says of a program, its text, and the counts of the text."""
    start = time.perf_counter()
    compiled = lowered.compile(options)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    about = {
        "jax": jax.__version__,
        "temporary": memory.temp_size_in_bytes,
        "compile_seconds": round(seconds, 1),
    }
    return about, text, counts(text, chip)


def devices(chip: str) -> list[jax.Device]:
    """Devices to compile for; they need not be here."""
    if chip != "h100":
        return devices_of(read_slice(f"{chip}:2x2" if chip == "v5e" else f"{chip}:2x2x1"))
    described = topologies.get_topology_desc(
        platform="cuda", target_config=H100.read_text(), topology="1x1x1"
    )
    return list(described.devices)


def counts(program: str, chip: str) -> dict[str, Any]:
    """Kernels, traffic and estimated cycles of a program text."""
    kernels = [op for op in executed(read_computations(program), "ENTRY") if is_kernel(op)]
    costs = read_costs(program, devices=1)
    cycles, loops = 0, Counter[str]()
    for op in kernels:
        loops[op.loop] += op.times
        estimate = re.search(r'"estimated_cycles":"(\d+)"', op.text)
        cycles += op.times * int(estimate[1]) if estimate else 0
    row = {
        "kernels": sum(op.times for op in kernels),
        "kernels_in_scans": sum(op.times for op in kernels if op.loop),
        "fusions": sum(op.times for op in kernels if op.opcode == "fusion"),
        "pallas_kernels": sum(op.times for op in kernels if "tpu_custom_call" in op.text),
        "product_flops": costs.flops,
        "moved": costs.bytes,
        "padding": costs.padding,
        "collectives": {kind: sent.count for kind, sent in costs.collectives.items()},
        "cycles": cycles,
        "loops": dict(loops.most_common()),
    }
    if cycles:
        seconds = cycles / CLOCKS[chip]
        row["matrix_unit"] = round(costs.flops / (KNOWN_CHIPS[chip].flops * seconds), 4)
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    """All programs; of a kernel alone, what both dtypes take."""
    result = Table()
    alone = "width" in rows[0]
    for heading in LSTM_COLUMNS if alone else STEP_COLUMNS:
        result.add_column(heading, justify="left" if heading in ("chip", "form") else "right")
    for row in rows:
        result.add_row(row["chip"], f"{row['rows']:,}", *(lstm_cells if alone else cells)(row))
    return result


STEP_COLUMNS = (
    *("chip", "rows", "form", "dtype", "kernels", "in scans", "fusions", "in Pallas"),
    *("temporary, MiB", "moved, MiB", "padding, MiB"),
    *("million cycles", "matrix unit", "compiled, s"),
)
LSTM_COLUMNS = ("chip", "rows", "width", "float32: kernels", "MiB", "bfloat16: kernels", "MiB")


def cells(row: dict[str, Any]) -> list[str]:
    """The columns of a training step behind the number of rows."""
    return [
        row["form"],
        row["dtype"],
        *(f"{row[name]:,}" for name in ("kernels", "kernels_in_scans", "fusions")),
        f"{row['pallas_kernels']:,}",
        *(f"{row[name] / MIB:,.0f}" for name in ("temporary", "moved", "padding")),
        f"{row['cycles'] / 1e6:,.1f}" if row["cycles"] else "",
        f"{row['matrix_unit']:.1%}" if "matrix_unit" in row else "",
        f"{row['compile_seconds']:.0f}",
    ]


def lstm_cells(row: dict[str, Any]) -> list[str]:
    """The columns of a kernel behind the number of rows."""
    parts = [row[dtype] for dtype in ("float32", "bfloat16")]
    columns = ([str(p["pallas_kernels"]), f"{p['temporary'] / MIB:,.0f}"] for p in parts)
    return [str(row["width"]), *(cell for pair in columns for cell in pair)]


if __name__ == "__main__":
    main()
