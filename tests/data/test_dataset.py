"""From a configuration to a catalogue and a split log."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jaxrec.config import Config, DataConfig, EvaluationConfig, SplitConfig
from jaxrec.data.dataset import prepare
from jaxrec.errors import DataError
from jaxrec.types import ANY_EVENT_TYPE


def named_events(dataset) -> pl.DataFrame:
    log, ids = dataset.split.log, dataset.catalog.item_ids
    return pl.DataFrame(
        {
            "user_id": log.user_ids.gather(np.repeat(np.arange(log.num_users), log.lengths)),
            "item_id": ids.gather(log.items),
            "event": [log.event_type_names[event_type] for event_type in log.event_types],
            "seconds": log.times,
        }
    )


def test_every_event_is_in_the_log_by_user_and_time(tables):
    dataset = prepare(Config(), tables)
    expected = tables.events.with_columns(seconds=pl.col("timestamp") // 1000)
    expected = expected.sort("user_id", "timestamp", maintain_order=True)
    assert named_events(dataset).equals(expected.select("user_id", "item_id", "event", "seconds"))


def test_the_catalogue_begins_with_the_unknown_item(tables):
    catalog = prepare(Config(), tables).catalog
    assert catalog.num_items == len(tables.items) + 1
    assert all(value is None for value in catalog.items.row(0))
    assert catalog.items[1:].equals(tables.items)
    assert catalog.graph.types[0].ids.equals(catalog.item_ids)
    assert {t.name for t in catalog.graph.types} == {"item", "brand", "category"}


@pytest.mark.parametrize("scheme", ["leave_one_out", "global_time"])
def test_both_splits_leave_something_everywhere(tables, scheme):
    split = prepare(Config(split=SplitConfig(scheme=scheme)), tables).split
    assert split.in_training.any()
    assert min(map(len, (split.validation, *split.test.values()))) > 0


def test_k_core_counts_users_items_and_nodes_again(tables):
    config = Config(data=DataConfig(min_user_events=6, min_item_events=7))
    dataset = prepare(config, tables)
    kept = named_events(dataset)
    assert 0 < len(kept) < len(tables.events)
    assert min(Counter(kept["user_id"]).values()) >= 6
    assert min(Counter(kept["item_id"]).values()) >= 7
    assert set(dataset.catalog.item_ids[1:]) == set(kept["item_id"])
    assert dataset.notes[-1].startswith("Filtered to")


def test_event_types_weigh_as_configured_and_negative_ones_nothing(tables):
    data = DataConfig(event_weights={"buy": 3.0}, negative_event_types=("view",))
    dataset = prepare(Config(data=data), tables)
    events = named_events(dataset)
    expected = [3.0 if event_type == "buy" else 0.0 for event_type in events["event"]]
    assert dataset.target_weights.tolist() == expected


def test_negative_event_types_are_read_but_not_predicted(tables):
    dataset = prepare(Config(data=DataConfig(negative_event_types=("view",))), tables)
    event_types = named_events(dataset)["event"].to_numpy()
    queries = (dataset.split.validation, *dataset.split.test.values())
    assert all((event_types[q.positions] == "buy").all() for q in queries)
    assert dataset.split.log.event_type_names[dataset.target_event_type] == "buy"
    assert len(event_types) == len(tables.events)


def test_target_event_types_select_the_queries(tables):
    dataset = prepare(Config(split=SplitConfig(target_event_types=("buy",))), tables)
    event_types = named_events(dataset)["event"].to_numpy()
    assert (event_types[dataset.split.test["every"].positions] == "buy").all()
    assert (dataset.target_weights == 1).all()
    assert dataset.split.log.event_type_names[dataset.target_event_type] == "buy"
    assert prepare(Config(), tables).target_event_type == ANY_EVENT_TYPE


def test_many_queries_are_subsampled_evenly(tables):
    whole = prepare(Config(), tables)
    every = whole.split.test["every"]
    few = prepare(Config(evaluation=EvaluationConfig(queries=5)), tables)
    sets = (few.split.validation, *few.split.test.values())
    assert all(len(queries) == 5 for queries in sets)
    positions = few.split.test["every"].positions
    assert set(positions) <= set(every.positions)
    assert positions[0] == every.positions[0] and positions[-1] == every.positions[-1]
    assert few.notes[-1] == f"every: 5 of {len(every):,} events, evenly spaced, are ranked."
    np.testing.assert_array_equal(few.split.train_lengths, whole.split.train_lengths)


@pytest.mark.parametrize(
    "option",
    [
        {"split": SplitConfig(target_event_types=("buy", "purchase"))},
        {"data": DataConfig(event_weights={"buy": 2.0, "purchase": 3.0})},
    ],
)
def test_event_types_that_do_not_occur_are_an_error(tables, option):
    with pytest.raises(DataError, match=r"event_(types|weights) names \['purchase'\].*buy, view"):
        prepare(Config(**option), tables)


def test_order_data_have_no_gaps_and_no_split_by_time(tables):
    data = DataConfig(time="order")
    with pytest.raises(DataError, match="no split by time"):
        prepare(Config(data=data), tables)
    config = Config(data=data, split=SplitConfig(scheme="leave_one_out"))
    assert not prepare(config, tables).split.log.has_time


def test_ties_follow_the_item_table_if_configured(tables):
    events = tables.events.with_columns(timestamp=pl.lit(1_704_067_200_000))
    data = DataConfig(ties="item_id")
    config = Config(data=data, split=SplitConfig(scheme="leave_one_out"))
    log = prepare(config, replace(tables, events=events)).split.log
    for start, end in zip(log.offsets[:-1], log.offsets[1:], strict=True):
        assert (np.diff(log.items[start:end]) >= 0).all()


def test_a_directory_is_read_like_the_tables_in_it(tables, tmp_path):
    tables.events.write_parquet(tmp_path / "events.parquet")
    tables.items.write_parquet(tmp_path / "items.parquet")
    read = prepare(Config(data=DataConfig(source=str(tmp_path))))
    assert named_events(read).equals(named_events(prepare(Config(), tables)))
    assert read.catalog.items.equals(prepare(Config(), tables).catalog.items)
