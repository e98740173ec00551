"""Compile a training step for accelerators that are not here, in all its forms, and compare them.

    pip install 'jaxrec[tpu]'                                                       # v5e, v5p
    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12   # h100
    python benchmarks/speed/compiled_steps.py [--chips v5e h100] [--rows 16 1024]
        [--config beauty] [--out FILE.jsonl] [--commit HASH] [--train.bf16 True]

Options of `train.py` may follow. No data are read: the sizes are those of Amazon Beauty. Nothing
runs on a chip, so all figures are the compiler's, for one chip and one step:

* kernels: what the program starts, those of a loop as often as it runs. Command buffers, which
  start several kernels at once, are not counted as one.
* in scans: those of them inside of loops.
* temporary: memory beside arguments and results.
* million cycles (TPUs): the compiler's estimate, which leaves out scatters, gathers, and kernels
  written in Pallas. So it says of a form with such kernels only what the rest takes.

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
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from jaxrec.config import PlanConfig, parse, read_recipe
from jaxrec.models.forms import BY_PLATFORM, Forms, traced_with
from jaxrec.runtime import compiling_for
from jaxrec.sharding import make_mesh
from jaxrec.training.plan.chips import ask_for_devices, devices_of, read_slice
from jaxrec.training.plan.hlo import NO_KERNEL, Instruction, executed, read_computations
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
    """Compile every form for every chip and batch size, and print a table."""
    options, overrides = read_options()
    if options.alone:
        print(json.dumps(measure(options, overrides)))
        return
    rows = []
    for chip in options.chips:
        for number in options.rows:
            for form in [form for form in CHIPS[chip] if form in options.forms]:
                rows.append(
                    in_process(chip, number, form, sys.argv[1:]) | {"commit": options.commit}
                )
                print(rows[-1], flush=True)
    if options.out:
        with options.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    Console(width=120).print(table(rows))


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and those of `train.py`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", default="beauty", help="a YAML recipe or a shipped one's name")
    parser.add_argument("--chips", nargs="*", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--rows", nargs="*", type=int, default=[16, 1024], help="of a batch")
    parser.add_argument("--out", type=Path, help="a file that the rows are added to")
    parser.add_argument("--commit", default="unknown", help="to be written into every row")
    parser.add_argument("--write", type=Path, help="a directory for the program texts")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_known_args()


def in_process(chip: str, number: int, form: str, arguments: list[str]) -> dict[str, Any]:
    """What `measure` gives in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    command += ["--chips", chip, "--rows", str(number), "--forms", form, "--alone"]
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
    start = time.perf_counter()
    compiled = lowered.compile({"xla_gpu_autotune_level": 0} if platform == "gpu" else None)
    seconds = time.perf_counter() - start
    row = {"config": options.config, "chip": chip, "rows": number, "form": form}
    row |= {"dtype": "bfloat16" if config.train.bf16 else "float32", "jax": jax.__version__}
    memory: Any = compiled.memory_analysis()
    row |= {"temporary": memory.temp_size_in_bytes, "compile_seconds": round(seconds, 1)}
    text = compiled.as_text() or ""
    if options.write:
        (options.write / f"{chip}-{number}-{form.replace(' ', '_')}.txt").write_text(text)
    return row | counts(text)


def devices(chip: str) -> list[jax.Device]:
    """Devices to compile for; they need not be here."""
    if chip != "h100":
        return devices_of(read_slice(f"{chip}:2x2" if chip == "v5e" else f"{chip}:2x2x1"))
    described = topologies.get_topology_desc(
        platform="cuda", target_config=H100.read_text(), topology="1x1x1"
    )
    return list(described.devices)


def counts(program: str) -> dict[str, Any]:
    """Kernels and estimated cycles of a program text."""
    executed_once = executed(read_computations(program), "ENTRY")
    kernels = [op for op in executed_once if is_kernel(op)]
    cycles, loops = 0, Counter[str]()
    for op in kernels:
        loops[op.loop] += op.times
        estimate = re.search(r'"estimated_cycles":"(\d+)"', op.text)
        cycles += op.times * int(estimate[1]) if estimate else 0
    return {
        "kernels": sum(op.times for op in kernels),
        "kernels_in_scans": sum(op.times for op in kernels if op.loop),
        "pallas_kernels": sum(op.times for op in kernels if "tpu_custom_call" in op.text),
        "cycles": cycles,
        "loops": dict(loops.most_common()),
    }


def is_kernel(op: Instruction) -> bool:
    """Whether an instruction starts a kernel of its own."""
    return not (op.fused or op.opcode in NO_KERNEL or op.opcode.endswith("-done"))


def table(rows: list[dict[str, Any]]) -> Table:
    """All programs."""
    result = Table()
    for heading in (
        *("chip", "rows", "form", "kernels", "in scans", "in Pallas"),
        *("temporary, MiB", "million cycles", "compiled, s"),
    ):
        result.add_column(heading, justify="left" if heading in ("chip", "form") else "right")
    for row in rows:
        result.add_row(
            row["chip"],
            f"{row['rows']:,}",
            row["form"],
            f"{row['kernels']:,}",
            f"{row['kernels_in_scans']:,}",
            f"{row['pallas_kernels']:,}",
            f"{row['temporary'] / MIB:,.0f}",
            f"{row['cycles'] / 1e6:,.1f}" if row["cycles"] else "",
            f"{row['compile_seconds']:.0f}",
        )
    return result


if __name__ == "__main__":
    main()
