import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layouts, pods

from jaxrec.errors import ConfigError
from jaxrec.sharding import (
    ITEMS,
    USERS,
    host_rows,
    make_mesh,
    process_copy,
    process_mesh,
    replicated,
)


def test_a_mesh_divides_the_devices_between_users_and_items():
    assert dict(make_mesh(2).shape) == {USERS: 2, ITEMS: 2}
    with pytest.raises(ConfigError, match=r"does not divide the rows of tables.* power of two"):
        make_mesh(3)
    with pytest.raises(ConfigError, match="item_shards=8 does not divide 4 devices"):
        make_mesh(8)


def test_a_single_process_provides_the_whole_batch():
    for shards in (1, 2, 4):
        assert host_rows(8, make_mesh(shards)).tolist() == list(range(8))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"do not divide train\.batch_size=6"):
        host_rows(6, make_mesh())
    with pytest.raises(ConfigError, match=r"train\.accumulate=3 each, .* a multiple of 12"):
        host_rows(16, make_mesh(), 3)


@pytest.mark.parametrize("item_shards", [1, 2, 4])
def test_a_process_keeps_rows_of_tables_on_the_devices_that_divide_them(item_shards):
    mesh = make_mesh(item_shards)
    tree = {"item_table": jnp.arange(8.0).reshape(8, 1), "other": jnp.arange(8)}
    copy = process_copy(jax.device_put(tree, replicated(mesh)), mesh)
    assert copy["item_table"].sharding.mesh == process_mesh(mesh)
    assert {part.data.size for part in copy["item_table"].addressable_shards} == {8 // item_shards}
    assert {part.data.size for part in copy["other"].addressable_shards} == {8}
    jax.tree.map(np.testing.assert_array_equal, copy, tree)


@pytest.mark.slow
def test_two_processes_copy_tables_for_themselves_and_compare_what_they_have_read():
    address, environment = pods.free_address(), pods.with_devices(2)
    started = [
        subprocess.Popen([sys.executable, layouts.__file__, number, address], env=environment)
        for number in ("0", "1")
    ]
    assert pods.exit_codes(started) == [0, 0]
