"""`jaxrec plan`: whether a training fits accelerators, before they are rented."""

import argparse
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxrec import api
from jaxrec.cli import WARNED
from jaxrec.cli.parser import Parser
from jaxrec.config import Config, PlanConfig
from jaxrec.training.plan.chips import CHIPS, ask_for_devices, read_slice
from jaxrec.training.plan.estimate import ProgramPlan, SlicePlan, check_slice, plan_slice

WIDTH = 100  # of the tables, at least
console = Console(markup=False, highlight=False, soft_wrap=True)
SIZES = {
    "users": ("N", "users to score"),
    "items": ("N", "items of the catalogue; with it, no data are read"),
    "frequent-items": ("N", "those with model.min_events_for_id events (by default all)"),
    "events": ("N", "events of an epoch"),
    "entities": ("TYPE N", "nodes of the other types, such as brand 50000 category 2000"),
    "edges": ("N", "edges of the graph"),
    "relations": ("N", "relations of the graph"),
    "event-types": ("TYPE", "event types of the log"),
    "vectors": ("COLUMN N", "columns of vectors, and their widths"),
}


def run(arguments: Sequence[str]) -> None:
    """Print the plan of every slice, and exit with `WARNED` if one does not fit."""
    options, overrides = _parser().parse_known_args(arguments)
    slices = [read_slice(name) for name in options.slices]
    for name in SIZES:
        values = getattr(options, name.replace("-", "_"))
        if values is not None:
            overrides += [f"--plan.{name.replace('-', '_')}", *values]
    config = api.configure(options.config, options.data, arguments=overrides)
    ask_for_devices(slices)
    for part in slices:
        check_slice(config, part)
    sizes = sizes_of(config, read_data=options.data is not None)
    console.print(in_words(config, sizes))
    console.width = max(console.width, WIDTH)
    plans = []
    for part in slices:
        plans.append(plan_slice(config, sizes, part))
        show_slice(plans[-1])
    if len(plans) > 1:
        show_slices(plans, sizes)
    if not all(program.fits for plan in plans for program in plan.programs):
        sys.exit(WARNED)


def sizes_of(config: Config, *, read_data: bool) -> PlanConfig:
    """The sizes that the configuration gives, or those of its data."""
    if config.plan.items and not read_data:
        return config.plan
    from jaxrec.data.dataset import prepare
    from jaxrec.training.plan.shapes import counted

    return counted(prepare(config), config.model.min_events_for_id)


def in_words(config: Config, sizes: PlanConfig) -> str:
    """What is planned, in one line."""
    train, model = config.train, config.model
    return (
        f"{sizes.users:,} users, {sizes.items:,} items, {sum(sizes.entities.values()):,} other "
        f"nodes, {sizes.edges:,} edges; experts {', '.join(model.experts)}, hidden size "
        f"{model.hidden_size}, batches of {train.batch_size:,} x {train.sequence_length}"
        f"{', bfloat16' if train.bf16 else ''}"
    )


def show_slice(plan: SlicePlan) -> None:
    """Print a table of the programs of a slice, and what does not fit."""
    mesh = " x ".join(f"{count} {axis}" for axis, count in plan.mesh.items())
    console.print(f"\n{plan.part.name}: {plan.part.size:,} chips as {mesh}, figures of one chip")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for program in plan.programs:
        table.add_column(program.name, justify="right")
    columns = [cells(program) for program in plan.programs]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "") for column in columns))
    console.print(table)
    if any(program.is_estimate for program in plan.programs):
        console.print(
            "(estimate): compiled for CPU devices; on the chip, temporary memory, bytes moved and "
            "collectives differ."
        )
    for program in plan.programs:
        if not program.fits:
            show_too_large(program)


def cells(program: ProgramPlan) -> dict[str, str]:
    """The figures of a program by their names."""
    sizes = {name: in_bytes(count) for name, count in program.parts.items()}
    collectives = {
        name: f"{transfers.count:,} x, {in_bytes(transfers.bytes)}"
        for name, transfers in program.costs.collectives.items()
    }
    times = {f"{name} time": duration(t) for name, t in program.seconds.items()}
    return {
        **sizes,
        "temporary": in_bytes(program.temporary),
        "peak": in_bytes(program.peak),
        "memory of the chip": in_bytes(program.limit),
        "fits": ("yes" if program.fits else "NO") + " (estimate)" * program.is_estimate,
        "products": f"{program.costs.flops / 1e12:,.3g} TFLOP",
        "bytes moved": in_bytes(program.costs.bytes),
        **times,
        "at least": f"{duration(program.least_seconds)} ({program.bound})",
        **collectives,
    }


def show_too_large(program: ProgramPlan) -> None:
    """Print why a program does not fit."""
    console.print(
        f"{program.part.name}: the program `{program.name}` does not fit: it needs "
        f"{in_bytes(program.peak)} of {in_bytes(program.limit)}. The largest arrays of a chip:"
    )
    for array in program.largest:
        console.print(f"  {in_bytes(array.bytes)}  {array.name}")
    if program.refusal:
        console.print(f"  the compiler: {program.refusal}")


def show_slices(plans: Sequence[SlicePlan], sizes: PlanConfig) -> None:
    """Print one row a slice."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(
        ("slice", "chips", "peak", "of", "fits", "step", "bound by", "events/s", "epoch", "users/s")
    ):
        table.add_column(heading, justify="right" if place else "left")
    for plan in plans:
        step, largest = plan.training, max(plan.programs, key=lambda p: p.peak)
        table.add_row(
            plan.part.name,
            f"{plan.part.size:,}",
            in_bytes(largest.peak),
            in_bytes(largest.limit),
            "yes" if all(program.fits for program in plan.programs) else "NO",
            duration(step.least_seconds),
            step.bound,
            rounded(step.rate),
            duration(sizes.events / step.rate),
            rounded(plan.scoring.rate),
        )
    console.print(table)
    console.print(
        "Steps, epochs and rates are bounds that no chip beats: peak rates of the vendor, without "
        "the time to start kernels and to wait."
    )


def in_bytes(count: float) -> str:
    """Bytes in words."""
    units = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20))
    unit, size = next((pair for pair in units if count >= pair[1]), ("KiB", 2**10))
    return f"{count / size:,.2f} {unit}"


def rounded(number: float) -> str:
    """Three digits of a large number."""
    return f"{float(f'{number:.3g}'):,.0f}"


def duration(seconds: float) -> str:
    """A time in words."""
    units = (("h", 3600), ("s", 1), ("ms", 1e-3))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("us", 1e-6))
    return (
        f"{seconds / size:,.3g} {unit}"
        if seconds < 1000 * size
        else f"{seconds / size:,.0f} {unit}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "jaxrec plan",
        description="Compile training and scoring for accelerators that need not be here, and "
        "print what they need of one chip: memory, operations, transfers, and the least time of a "
        f"step. Chips: {', '.join(CHIPS)}. Sizes are those of the data, or those given. Exit code: "
        f"0 if everything fits, {WARNED} if not. --section.option VALUE overrides an option of the "
        "recipe, as in `jaxrec train`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "slices", nargs="+", metavar="SLICE", help="such as v5e:16x16, v5p:2x2x2 or h100:8"
    )
    parser.add_argument("--config", help="a YAML recipe, or the name of a shipped one")
    parser.add_argument("--data", help="short for --data.source; the sizes are those of the data")
    for name, (metavar, text) in SIZES.items():
        many = "+" if " " in metavar or name == "event-types" else 1
        parser.add_argument(f"--{name}", nargs=many, metavar=metavar.split(" ")[0], help=text)
    return parser
