"""The list of forgotten users, and the events that it leaves out."""

import re

import numpy as np
import polars as pl
import pytest
from helpers.training import config

from jaxrec.data.dataset import filtered
from jaxrec.data.forgotten import LeftOut, add_forgotten, read_forgotten
from jaxrec.data.stream import open_events
from jaxrec.data.tables import validate_tables
from jaxrec.data.user_filter import UserFilter
from jaxrec.errors import ConfigError, DataError

DAY = 86_400
NOON = 20_000 * DAY


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forgotten.txt"


def events(*users, days=3):
    """One event of each user a day."""
    pairs = [(user, day) for day in range(days) for user in users]
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "item_id": [f"i{day}" for _, day in pairs],
            "timestamp": [NOON + DAY * day for _, day in pairs],
        }
    )


def test_the_list_holds_hashes_and_times_for_its_owner_alone(path):
    assert add_forgotten(path, ["anna", "bob"], 7) == 2
    assert add_forgotten(path, ["anna"], 9) == 0
    assert add_forgotten(path, ["anna", "bob"], 8) == 0
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    assert all(re.fullmatch("[a-z2-7]{32} [89]", line) for line in lines[1:])
    assert sorted(read_forgotten(path).until.values()) == [8, 9]
    key = path.with_name("forgotten.key")
    assert {file.stat().st_mode & 0o777 for file in (path, key)} == {0o600}


def test_an_empty_list_needs_no_key(path):
    assert not read_forgotten("").until
    with pytest.raises(ConfigError, match="begin an empty one: touch "):
        read_forgotten(path)
    path.touch()
    assert not read_forgotten(path).until


def test_a_list_that_means_nothing_is_refused(path):
    add_forgotten(path, ["anna"], 7)
    key = path.with_name("forgotten.key")
    whole = key.read_bytes()
    key.unlink()
    for use in (lambda: read_forgotten(path), lambda: add_forgotten(path, ["bob"], 7)):
        with pytest.raises(ConfigError, match=r"take the key of forgotten\.txt from a backup"):
            use()
    key.write_bytes(whole)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="everybody on this machine may read the key"):
        read_forgotten(path)
    key.chmod(0o600)
    path.write_text(path.read_text() + "half-a-li")
    with pytest.raises(DataError, match="line 3: no hash and time"):
        read_forgotten(path)


def test_events_until_the_user_was_forgotten_are_left_out(path):
    """Later ones belong to somebody who has come back."""
    table = validate_tables(events("anna", "bob"), None, None).events
    add_forgotten(path, ["anna"], NOON + DAY)
    for codes in (table, table.with_columns(pl.col("user_id").cast(pl.Categorical))):
        left_out = LeftOut(read_forgotten(path))
        left = left_out.without(codes, has_time=True)
        assert left["item_id"].to_list() == ["i0", "i1", "i2", "i2"]
        assert left["user_id"].cast(pl.String).to_list() == ["bob", "bob", "anna", "bob"]
        assert left_out.notes == (f"{path}: 1 users with 2 events are forgotten and left out.",)
    everything = LeftOut(read_forgotten(path)).without(table, has_time=False)
    assert everything["user_id"].unique().to_list() == ["bob"]


def test_training_reads_no_event_of_a_forgotten_user(path, tables, tmp_path):
    add_forgotten(path, ["u03", "u04", "nobody"], 2**31)
    tables.events.write_parquet(tmp_path / "events.parquet")
    options = config(**{"data.forgotten": str(path)})
    of_files = config(**{"data.forgotten": str(path), "data.source": str(tmp_path)})
    gone = tables.events["user_id"].is_in(["u03", "u04"])
    note = f"{path}: 2 users with {gone.sum()} events are forgotten and left out."
    for left in (filtered(options, tables), filtered(of_files)):
        assert len(left.events) == (~gone).sum()
        assert note in left.notes
    add_forgotten(path, tables.events["user_id"].unique(), 2**31)
    with pytest.raises(DataError, match=r"all users are in .*forgotten\.txt"):
        filtered(options, tables)


@pytest.mark.parametrize("time", ["timestamp", "order"])
@pytest.mark.parametrize("grouped", [True, False])
def test_blocks_hold_no_event_of_a_forgotten_user(path, tmp_path, time, grouped):
    add_forgotten(path, ["bob", "dora"], NOON + DAY)
    table = events("anna", "bob", "carl", "dora")
    table = table.sort("user_id", maintain_order=True) if grouped else table
    table.write_csv(tmp_path / "events.csv")
    users = UserFilter(forgotten=read_forgotten(path))
    stream = open_events(tmp_path / "events.csv", 1, time=time, users=users, rows_per_batch=5)
    left = pl.concat(stream.blocks())
    last = ["bob", "dora"] if time == "timestamp" else []
    assert sorted(left["user_id"]) == sorted(["anna", "carl"] * 3 + last)
    assert stream.num_rows == len(left)
    number = 4 if time == "timestamp" else 6
    assert f"{path}: 2 users with {number} events are forgotten and left out." in stream.notes
    assert len(np.unique(left["user_id"])) == len(list(stream.blocks()))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_user_stays_forgotten_under_a_key_that_is_newer_than_the_list(path, tmp_path, grouped):
    key, source = tmp_path / "id.key", tmp_path / "events.parquet"
    key.write_text("a key of 32 bytes or more .......")
    key.chmod(0o600)
    table = events("anna", "bob")
    (table.sort("user_id", maintain_order=True) if grouped else table).write_parquet(source)
    add_forgotten(path, ["anna"], NOON + DAY)
    options = {"data.source": str(source), "data.forgotten": str(path), "data.id_key": str(key)}
    read = filtered(config(**options)).events
    assert sorted(read.group_by("user_id").len()["len"].to_list()) == [1, 3]
    users = UserFilter(forgotten=read_forgotten(path), id_key=key.read_bytes().strip())
    blocks = list(open_events(source, users=users, users_per_block=2).blocks())
    assert pl.concat(blocks).group_by("user_id").len()["len"].sort().to_list() == [1, 3]
