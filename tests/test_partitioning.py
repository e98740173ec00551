"""Arrays of a program that is traced for a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.partitioning import (
    WHOLE,
    by_column,
    by_row,
    divisible_rows,
    look_up,
    on_mesh,
    put_rows,
    row_shards,
    spread_rows,
    to_columns,
    to_rows,
)
from jaxrec.sharding import make_mesh, replicated

RANDOM = np.random.default_rng(0)
TABLE = jnp.asarray(RANDOM.normal(size=(10, 3)), jnp.float32)  # four devices do not divide its rows
ROWS = jnp.asarray(RANDOM.integers(0, 10, (4, 5)))
COLUMNS = jnp.asarray(RANDOM.integers(0, 3, (4, 5)))


def compiled(function, mesh, *arguments):
    """The results of a function that is traced for a mesh."""

    def traced(*arguments):
        with on_mesh(mesh):
            return function(*arguments)

    return jax.jit(traced)(*jax.device_put(arguments, replicated(mesh)))


def test_the_rows_of_a_batch_lie_on_as_many_devices_as_divide_them():
    mesh = make_mesh(2)
    with on_mesh(mesh):
        assert (row_shards(8), row_shards(6), row_shards(7)) == (4, 2, 1)
    assert row_shards(8) == 1
    lie = [compiled(spread_rows, mesh, jnp.zeros((n, 2))).sharding.spec for n in (8, 6)]
    assert [spec[0] for spec in lie] == [("users", "items"), "users"]


def test_rows_and_columns_lie_along_items_if_the_devices_divide_them():
    mesh, x = make_mesh(4), jnp.zeros((8, 4))
    shapes = [
        compiled(place, mesh, array).sharding.shard_shape(array.shape)
        for place, array in ((by_row, x), (by_column, x), (by_row, x[:7]), (by_column, x[:, :3]))
    ]
    assert shapes == [(2, 4), (8, 1), (7, 4), (8, 3)]
    with on_mesh(make_mesh(1)):
        assert by_row(x) is by_column(x) is divisible_rows(x) is x


@pytest.mark.parametrize("item_shards", [1, 2, 4])
@pytest.mark.parametrize("spec", [None, WHOLE])
def test_a_look_up_and_its_gradient_are_those_of_one_device(item_shards, spec):
    options = {} if spec is None else {"spec": spec}

    def both(table, weights):
        vectors = look_up(table, ROWS, **options)
        numbers = look_up(table, ROWS, COLUMNS, **options)
        return jnp.sum(vectors * weights) + jnp.sum(numbers**2), (vectors, numbers)

    weights = jnp.asarray(RANDOM.normal(size=(4, 5, 3)), jnp.float32)
    (_, found), gradient = compiled(
        jax.value_and_grad(both, has_aux=True), make_mesh(item_shards), TABLE, weights
    )
    for actual, expected in zip(found, (TABLE[ROWS], TABLE[ROWS, COLUMNS]), strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(
        gradient, jax.grad(lambda *x: both(*x)[0])(TABLE, weights), atol=1e-5
    )


def test_rows_are_put_where_they_belong():
    rows, values = jnp.array([7, 0, 3]), jnp.ones((3, 3))
    put = compiled(put_rows, make_mesh(2), TABLE, rows, values)
    np.testing.assert_array_equal(put, TABLE.at[rows].set(values))


@pytest.mark.parametrize("shape", [(8, 4), (7, 4), (8, 3), (8, 4, 2)])
def test_vectors_stay_what_they_are_when_devices_exchange_them(shape):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)

    def both(x):
        columns = to_columns(by_row(x))
        return columns, to_rows(columns)

    columns, rows = compiled(both, make_mesh(4), x)
    np.testing.assert_array_equal(columns, x)
    np.testing.assert_array_equal(rows, x)
    if shape[:2] == (8, 4):
        assert columns.sharding.shard_shape(shape)[:2] == (8, 1)
        assert rows.sharding.shard_shape(shape)[:2] == (2, 4)
