"""Checksums of arrays and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.artifacts import checksums
from jaxrec.sharding import make_mesh


def tree(**changes):
    return {"a": jnp.arange(24.0).reshape(8, 3), "b": jnp.ones((), jnp.bfloat16), **changes}


@pytest.mark.parametrize(
    "changed",
    [
        tree(a=tree()["a"].at[7, 2].add(1e-6 * 23)),
        tree(a=tree()["a"][::-1]),
        tree(a=tree()["a"].reshape(3, 8).T),
        tree(b=jnp.zeros((), jnp.bfloat16)),
        {"a": tree()["a"], "c": tree()["b"]},
    ],
)
def test_the_checksum_of_a_tree_changes_with_values_places_and_names(changed):
    assert checksums.of_tree(changed) != checksums.of_tree(tree())


def test_the_checksum_of_a_tree_is_equal_on_any_number_of_devices():
    values = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    mesh = make_mesh(2)
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("items",), ("users",))]
    sums = {checksums.of_tree({"x": jax.device_put(values, sharding)}) for sharding in shardings}
    assert len(sums | {checksums.of_tree({"x": jnp.asarray(values)})}) == 1


def test_the_checksum_of_files_changes_with_names_and_contents(tmp_path):
    def of(**contents):
        for path in tmp_path.iterdir():
            path.unlink()
        for name, content in contents.items():
            (tmp_path / name).write_text(content)
        return checksums.of_files(tmp_path.iterdir())

    assert of(a="12", b="3") == of(b="3", a="12")
    assert len({of(a="12", b="3"), of(a="1", b="23"), of(a="12", c="3"), of(a="123"), of()}) == 5
