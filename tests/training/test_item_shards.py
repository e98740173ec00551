"""How many devices divide the items where the options leave it open."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from helpers.training import config, first_steps

from jaxrec.data.dataset import prepare
from jaxrec.training import item_shards
from jaxrec.training.context import make_context
from jaxrec.training.item_shards import Held, fitting_shards

ROWS, REST = 256 * 8 * 4, 3 * 4  # bytes
HELD = Held({"item_table": jnp.zeros((256, 8))}, (), (), jnp.zeros(3))


@pytest.mark.parametrize(
    ("memory", "devices", "expected"),
    [
        (0, 8, 1),  # unknown
        (2 * (ROWS + REST), 8, 1),
        (2 * (ROWS + REST) - 1, 8, 2),
        (2 * (ROWS / 4 + REST), 8, 4),
        (2 * (ROWS / 4 + REST), 6, 2),  # no larger power of two divides six
        (1, 8, 8),  # too small for any
        (1, 1, 1),
    ],
)
def test_as_few_devices_as_half_of_the_memory_allows(memory, devices, expected):
    assert fitting_shards(HELD, memory, devices) == expected


def test_a_platform_that_tells_no_memory_has_none(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda: statistics)]
    monkeypatch.setattr(item_shards.jax, "local_devices", lambda: devices)
    statistics = None
    assert item_shards.device_memory() == 0
    statistics = {"bytes_limit": 7}
    assert item_shards.device_memory() == 7


def test_a_training_takes_the_mesh_that_fits_and_says_so(tables, monkeypatch):
    recipe = config()
    whole = make_context(recipe, prepare(recipe, tables))
    assert dict(whole.mesh.shape) == {"users": 4, "items": 1}
    monkeypatch.setattr(item_shards, "device_memory", lambda: 100_000)
    context = make_context(recipe, prepare(recipe, tables))
    assert context.config.train.item_shards == 0
    shards = context.mesh.shape["items"]
    assert shards > 1
    assert any(f"{shards} devices divide the items" in note for note in context.notes)
    assert first_steps(context, 1)[0] == pytest.approx(first_steps(whole, 1)[0], rel=1e-5)
