import pytest

from jaxrec.errors import ConfigError
from jaxrec.sharding import ITEMS, USERS, host_rows, make_mesh, on_mesh, row_shards


def test_a_mesh_divides_the_devices_between_users_and_items():
    assert dict(make_mesh(2).shape) == {USERS: 2, ITEMS: 2}
    with pytest.raises(ValueError, match="does not divide"):
        make_mesh(3)


def test_a_single_process_provides_the_whole_batch():
    for shards in (1, 2, 4):
        assert host_rows(8, make_mesh(shards)).tolist() == list(range(8))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"do not divide train\.batch_size=6"):
        host_rows(6, make_mesh())


def test_rows_are_summed_by_shard_inside_of_a_program_for_a_mesh_alone():
    with on_mesh(make_mesh(2)):
        assert (row_shards(8), row_shards(7)) == (2, 1)
    assert row_shards(8) == 1
