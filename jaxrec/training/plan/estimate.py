"""Compiles the programs of a run for a slice, and says what each needs of a chip."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import jax

from jaxrec.config import Config, PlanConfig
from jaxrec.errors import ConfigError
from jaxrec.models.forms import chosen_forms, traced_with
from jaxrec.runtime import compiling_for
from jaxrec.sharding import check_batch, make_mesh, single_device_mesh
from jaxrec.training import item_shards
from jaxrec.training.plan import programs
from jaxrec.training.plan.chips import Slice, devices_of, stand_ins
from jaxrec.training.plan.hlo import Costs, read_costs
from jaxrec.training.plan.shapes import plan_context, plan_experts
from jaxrec.training.state import state_layout

HOPELESS = 2  # times the memory of a chip
# nobody runs the programs for CPUs
QUICK: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass(frozen=True)
class Held:
    """One array that lies in the memory of a chip, or its share of it."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ProgramPlan:
    """What a program needs of one chip of a slice. Sizes are bytes."""

    name: str
    part: Slice
    parts: dict[str, int]  # of its arguments, and of what lies beside them
    temporary: int
    peak: int
    costs: Costs
    largest: tuple[Held, ...]  # arrays, the largest first
    rows: int  # events (training) or users (scoring) of a call
    is_estimate: bool  # read from a program for CPUs
    refusal: str = ""  # of the compiler, where the program does not fit

    @property
    def limit(self) -> float:
        """The memory that programs get."""
        return self.part.chip.memory * self.part.chip.usable

    @property
    def fits(self) -> bool:
        """Whether the compiler accepts the program, and everything fits beside it."""
        return not self.refusal and self.peak <= self.limit

    @property
    def seconds(self) -> dict[str, float]:
        """The least time that each of the chip's resources needs."""
        sent = sum(transfers.bytes for transfers in self.costs.collectives.values())
        return {
            "compute": self.costs.flops / self.part.chip.flops,
            "memory": self.costs.bytes / self.part.chip.bandwidth,
            "interconnect": sent / self.part.interconnect,
        }

    @property
    def bound(self) -> str:
        """The resource that needs most time."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def least_seconds(self) -> float:
        """The least time of a call (the roofline)."""
        return self.seconds[self.bound]

    @property
    def rate(self) -> float:
        """The most rows per second, of the whole slice."""
        return self.rows / self.least_seconds if self.least_seconds else math.inf


@dataclass(frozen=True)
class SlicePlan:
    """The plans of all programs for a slice."""

    part: Slice
    mesh: dict[str, int]  # devices along each axis
    training: ProgramPlan
    encoding: ProgramPlan
    validation: ProgramPlan
    scoring: ProgramPlan

    @property
    def programs(self) -> tuple[ProgramPlan, ...]:
        """The plans of all programs."""
        return self.training, self.encoding, self.validation, self.scoring


def check_slice(config: Config, part: Slice) -> None:
    """Raise a ConfigError unless the mesh and the batch can be divided among the chips.

    Without `train.item_shards`, `plan_slice` chooses the mesh and checks it.
    """
    shards, train = config.train.item_shards, config.train
    if not shards:
        return
    if part.size % shards:
        raise ConfigError(f"{part.name}: train.item_shards={shards} does not divide {part.size}")
    try:
        check_batch(train.batch_size, part.size // shards, train.accumulate)
    except ConfigError as error:
        raise ConfigError(f"{part.name}: {error}") from error


def plan_slice(config: Config, sizes: PlanConfig, part: Slice) -> SlicePlan:
    """Compile training and scoring for a slice.

    Raises:
        ConfigError, DataError: as `check_slice`, `devices_of` and `plan_experts`.
    """
    experts = plan_experts(config, sizes)
    config = with_item_shards(
        replace(config, model=replace(config.model, experts=experts)), sizes, part
    )
    check_slice(config, part)
    tpu = part.chip.platform == "tpu"
    mesh, stand_in = lower(config, sizes, part, stand_ins)
    own = lower(config, sizes, part, devices_of)[1] if tpu else (None,) * len(stand_in)
    pairs = zip(stand_in, own, strict=True)
    return SlicePlan(part, mesh, *(plan_program(*pair, part) for pair in pairs))


def with_item_shards(config: Config, sizes: PlanConfig, part: Slice) -> Config:
    """The options with the `train.item_shards` that a training on the slice would choose."""
    if config.train.item_shards:
        return config
    context = plan_context(config, sizes, single_device_mesh())
    state = state_layout(context)[0]
    held = item_shards.Held(state.params, state.opt_state, state.text, context.arrays)
    memory = part.chip.memory * part.chip.usable
    shards = item_shards.fitting_shards(held, memory, part.size)
    return replace(config, train=replace(config.train, item_shards=shards))


def lower(
    config: Config, sizes: PlanConfig, part: Slice, find: Callable[[Slice], list[jax.Device]]
) -> tuple[dict[str, int], tuple[programs.Program, ...]]:
    """The mesh of a slice, and the programs of `SlicePlan` lowered for it and for its host."""
    devices, shards = find(part), config.train.item_shards
    mesh = host = make_mesh(shards, devices)
    if part.host != part:  # as `process_mesh`
        host = make_mesh(gcd(shards, part.host.size), find(part.host))
    with compiling_for(part.chip.platform):
        forms = chosen_forms()
    if devices[0].platform == "cpu":  # it cannot compile kernels for TPUs
        forms = forms._replace(lstm_kernel=False)
    k = config.evaluation.k
    with compiling_for(part.chip.platform), traced_with(forms):
        context = plan_context(config, sizes, mesh)
        lowered = (
            programs.train_step(context),
            programs.catalogue_encoding(context),
            programs.validation(context, host, sizes, k),
            programs.scoring(context, sizes, k),
        )
    return dict(mesh.shape), lowered


def plan_program(
    stand_in: programs.Program, own: programs.Program | None, part: Slice
) -> ProgramPlan:
    """What a program needs of a chip.

    A program that is far too large takes the TPU compiler hours, or all memory of this machine. So
    the program for CPUs is compiled first, and that for the TPU only if it may fit.

    Args:
        own: the program for the chip itself, if there is a compiler for it.
    """
    estimate = describe(stand_in, stand_in.lowered.compile(QUICK), part, is_estimate=True)
    if own is None or estimate.peak > HOPELESS * estimate.limit:
        return estimate
    try:
        return describe(own, own.lowered.compile(), part, is_estimate=False)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return replace(estimate, refusal=" ".join(str(error).split())[:400])


def describe(
    program: programs.Program,
    compiled: jax.stages.Compiled,
    part: Slice,
    *,
    is_estimate: bool,
) -> ProgramPlan:
    """What a compiled program needs of a chip."""
    memory: Any = compiled.memory_analysis()
    costs = read_costs(compiled.as_text() or "", part.size)
    held = {name: held_arrays(name, tree) for name, tree in program.parts.items()}
    made = [
        Held(f"made at {t.source}: {t.shape}" if t.source else f"made: {t.shape}", t.shape.size)
        for t in costs.largest
    ]
    arrays = [array for arrays in held.values() for array in arrays]
    largest = sorted([*arrays, *made], key=lambda array: -array.bytes)
    beside = sum(array.bytes for array in held_arrays("", program.unused))
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments = memory.argument_size_in_bytes + memory.generated_code_size_in_bytes
    return ProgramPlan(
        name=program.name,
        part=part,
        parts={name: sum(array.bytes for array in arrays) for name, arrays in held.items()},
        temporary=memory.temp_size_in_bytes,
        peak=arguments + memory.temp_size_in_bytes + outputs + beside,
        costs=costs,
        largest=tuple(largest[:6]),
        rows=program.rows,
        is_estimate=is_estimate,
    )


def held_arrays(name: str, tree: Any) -> list[Held]:
    """The share of one device of every array in a tree of shapes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        Held(
            f"{name}: {jax.tree_util.keystr(path, simple=True, separator='.')} {shape_of(leaf)}",
            math.prod(local_shape(leaf)) * leaf.dtype.itemsize,
        )
        for path, leaf in leaves
    ]


def local_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of one device's share."""
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)


def shape_of(leaf: Any) -> str:
    """The dtype and the shape of one device's share."""
    return f"{leaf.dtype}[{','.join(map(str, local_shape(leaf)))}]"
