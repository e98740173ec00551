import pytest

from jaxrec.sharding import ITEMS, USERS, host_rows, make_mesh


def test_a_mesh_divides_the_devices_between_users_and_items():
    assert dict(make_mesh(2).shape) == {USERS: 2, ITEMS: 2}
    with pytest.raises(ValueError, match="does not divide"):
        make_mesh(3)


def test_a_single_process_provides_the_whole_batch():
    assert host_rows(6) == slice(0, 6)
