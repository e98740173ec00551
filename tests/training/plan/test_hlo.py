"""Costs read from program texts equal what the programs do."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.sharding import USERS, make_mesh
from jaxrec.training.plan.hlo import group_size, read_costs


def costs(function, *shapes, devices=1):
    compiled = jax.jit(function).lower(*shapes).compile()
    return read_costs(compiled.as_text(), devices)


def matrix(*shape, spec=None, mesh=None):
    sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_the_products_of_a_loop_count_as_often_as_it_runs():
    def program(x, weights):
        return lax.scan(lambda x, _: (jnp.tanh(x @ weights), None), x, length=5)[0]

    assert costs(program, matrix(8, 16), matrix(16, 16)).flops == 5 * 2 * 8 * 16 * 16


def test_an_all_reduce_is_counted_with_the_bytes_that_a_device_sends():
    mesh = make_mesh(2)
    rows = matrix(64, 32, spec=PartitionSpec(USERS), mesh=mesh)
    found = costs(lambda x: x.sum(0), rows, devices=4).collectives["all-reduce"]
    assert (found.count, found.bytes) == (1, 2 * (2 - 1) / 2 * 32 * 4)


def test_a_slice_of_a_large_table_moves_only_the_slice():
    def program(table, rows):
        return table[rows] * 2

    rows = jax.ShapeDtypeStruct((4,), jnp.int32)
    assert costs(program, matrix(10_000, 8), rows).bytes < 10_000


def test_the_largest_array_is_named_with_its_line():
    largest = costs(lambda x, y: jnp.sin(x @ y) @ y.T, matrix(64, 8), matrix(8, 512)).largest[0]
    assert (str(largest.shape), largest.shape.size) == ("f32[64,512]", 64 * 512 * 4)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups=[32,8]<=[256]", 8),
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups={}", 16),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, use_global_device_ids=true", 2),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 4),
    ],
)
def test_groups_are_read_in_all_forms(text, size):
    assert group_size(text, 16) == size
