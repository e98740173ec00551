"""Plans for devices: sizes are those of the arrays, and what does not fit is named."""

from dataclasses import replace
from importlib.util import find_spec

import jax
import pytest
from helpers.training import config

from jaxrec.config import PlanConfig
from jaxrec.data.dataset import prepare
from jaxrec.errors import ConfigError
from jaxrec.training.context import make_context
from jaxrec.training.plan import chips
from jaxrec.training.plan.chips import CHIPS, devices_of, read_slice, stand_ins
from jaxrec.training.plan.estimate import (
    check_slice,
    held_arrays,
    lower,
    plan_slice,
    with_item_shards,
)
from jaxrec.training.plan.shapes import counted
from jaxrec.training.state import initial_state

OPTIONS = {"model.experts": ["id+graph"], "train.item_shards": 2, "train.sequence_length": 4}
SIZES = PlanConfig(users=9, items=500, events=80, entities={"brand": 5}, edges=500, relations=1)


def bytes_on(device, tree):
    """Bytes of the shards that one device holds."""
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.fixture(scope="module")
def recipe():
    return config(**OPTIONS)


@pytest.fixture(scope="module")
def plan(recipe, tables):
    """Of a data set, for four devices."""
    return plan_slice(recipe, counted(prepare(recipe, tables)), read_slice("gpu:4"))


@pytest.mark.thorough
def test_planned_bytes_are_those_of_the_arrays_of_training(plan, recipe, tables):
    context = make_context(recipe, prepare(recipe, tables))
    state, device = initial_state(context), jax.devices()[0]
    parts = plan.training.parts
    assert plan.mesh == {"users": 2, "items": 2}
    assert parts["parameters"] == bytes_on(device, state.params)
    assert parts["optimiser state"] == bytes_on(device, state.opt_state)
    assert parts["items and graph"] == bytes_on(device, (state.text, context.arrays))
    assert parts["batch"] == 4 // 2 * 4 * (9 * 4 + 1)
    assert plan.training.peak > sum(parts.values()) + plan.training.temporary


def test_a_plan_gives_the_roofline(plan):
    training, chip = plan.training, CHIPS["gpu"]
    assert training.costs.collectives["all-reduce"].count > 1
    assert training.seconds["compute"] == training.costs.flops / chip.flops
    assert training.least_seconds == max(training.seconds.values())
    assert training.rate == training.rows / training.least_seconds
    assert training.rows == 4 * 4
    assert all(program.fits and program.is_estimate for program in plan.programs)


def test_a_validation_holds_the_vectors_on_the_chips_of_one_host(recipe, monkeypatch):
    """Of four chips along `items` a host has two, whose half of the vectors lies beside the state.

    A table of the scores' vectors has a column for the bias.
    """
    monkeypatch.setattr(chips, "GPU_HOST", 2)
    recipe = replace(recipe, train=replace(recipe.train, item_shards=4))
    part = read_slice("gpu:4")
    _, lowered = lower(recipe, SIZES, part, stand_ins)
    held = {program.name: held_arrays("", dict(program.parts)) for program in lowered}
    sizes = {name: sum(array.bytes for array in arrays) for name, arrays in held.items()}
    rows, width = 512, recipe.model.hidden_size
    vectors = rows // 2 * (2 * width + 1) * 4
    assert sizes["validate"] - sizes["encode items"] >= vectors
    half = f"float32[{rows // 2},{width + 1}]"
    assert any(array.name.endswith(half) for array in held["validate"])
    assert not any(array.name.endswith(half) for array in held["score users"])


def test_what_does_not_fit_is_named(plan):
    small = replace(plan.training.part, chip=replace(CHIPS["gpu"], memory=1e5))
    program = replace(plan.training, part=small)
    assert not program.fits
    sizes = [array.bytes for array in program.largest]
    assert sizes == sorted(sizes, reverse=True)
    assert any("table" in array.name or "[" in array.name for array in program.largest)


def test_a_slice_of_many_hosts_names_that_of_one():
    names = {"v5e:16x16": "v5e:2x2", "v5p:4x4x8": "v5p:2x2x1", "v6e:2x2": "v6e:2x2"}
    for name, host in (names | {"h100:64": "h100:8", "gpu:4": "gpu:4"}).items():
        assert read_slice(name).host == read_slice(host)


def test_a_plan_chooses_the_devices_along_items_by_the_memory_of_a_chip():
    recipe, part = config(**{"train.item_shards": 0}), read_slice("gpu:4")
    assert with_item_shards(recipe, SIZES, part).train.item_shards == 1
    small = replace(part, chip=replace(part.chip, memory=1e5))
    assert with_item_shards(recipe, SIZES, small).train.item_shards > 1
    assert with_item_shards(config(**OPTIONS), SIZES, small).train.item_shards == 2


def test_slices_are_checked_before_anything_is_compiled(recipe):
    for name, message in (
        ("v9:4x4", "chips are v5e"),
        ("v5e:16", "v5e:4x4"),
        ("h100:2x2", "h100:8"),
        ("gpu:0", "gpu:8"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_slice(name)
    with pytest.raises(ConfigError, match="item_shards=2 does not divide 3"):
        check_slice(recipe, read_slice("gpu:3"))
    with pytest.raises(ConfigError, match="batch_size=4"):
        check_slice(recipe, read_slice("gpu:64"))
    with pytest.raises(ConfigError, match="host_platform_device_count=64"):
        devices_of(read_slice("gpu:64"))


def test_a_missing_compiler_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxrec\[tpu\]'"):
        devices_of(read_slice("v5e:4x4"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_programs_compile_for_a_tpu_that_is_not_here(recipe, monkeypatch):
    for name, value in chips.NO_TPU.items():
        monkeypatch.setenv(name, value)
    plan = plan_slice(recipe, SIZES, read_slice("v5e:2x2"))
    assert all(program.fits and not program.is_estimate for program in plan.programs)
    assert plan.training.costs.flops > 0
    assert "all-reduce" in plan.training.costs.collectives
