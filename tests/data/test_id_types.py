"""Ids leave in the type that they came in."""

import polars as pl
import pytest
from helpers.catalogs import ITEMS

from jaxrec.config import Config, DataConfig, SplitConfig
from jaxrec.data.dataset import prepare
from jaxrec.data.id_types import fitting_type, id_type, with_id_types
from jaxrec.data.sources import load_source


@pytest.fixture
def numbered(tables):
    """Events and items whose item ids are integers."""
    number = pl.col("item_id").str.slice(1).cast(pl.Int32)
    return tables.events.with_columns(number), tables.items.with_columns(number)


def test_a_data_set_remembers_that_item_ids_were_integers(numbered, tmp_path):
    events, items = numbered
    events.write_parquet(tmp_path / "events.parquet")
    items.write_parquet(tmp_path / "items.parquet")
    config = Config(
        data=DataConfig(source=str(tmp_path)), split=SplitConfig(scheme="leave_one_out")
    )
    assert prepare(config).item_id_type == "Int64"
    for source in (tmp_path / "events.parquet", tmp_path):
        assert load_source(str(source)).item_id_type == pl.Int64
    (tmp_path / "items.parquet").unlink()
    items.drop("categories").write_csv(tmp_path / "items.csv")  # which has no types
    assert load_source(str(tmp_path)).item_id_type == pl.String


def test_integers_leave_as_64_bits_and_all_else_as_text():
    assert [id_type(dtype) for dtype in (pl.Int8(), pl.UInt32(), pl.UInt64())] == [
        *(pl.Int64, pl.Int64, pl.UInt64)
    ]
    assert id_type(pl.Float64()) == id_type(pl.String()) == pl.String
    table = with_id_types(pl.DataFrame({"user_id": ["7"], "score": [0.5]}), {"user_id": pl.Int64()})
    assert table.schema == {"user_id": pl.Int64, "score": pl.Float64}


def test_one_id_that_is_no_integer_makes_all_of_them_text():
    ids = pl.Series([None, "7", "12"])
    assert fitting_type(ids, pl.Int64()) == pl.Int64
    for other in ("new-1", "07"):
        assert fitting_type(pl.concat([ids, pl.Series([other])]), pl.Int64()) == pl.String
    assert fitting_type(ITEMS["item_id"], pl.String()) == pl.String
