"""`jaxrec plan` end to end, on fake devices."""

import pytest
from helpers.training import config
from rich.console import Console

from jaxrec import cli
from jaxrec.cli import plan as command
from jaxrec.training.plan import chips

SIZES = [
    *("--users", "9", "--items", "300", "--events", "80", "--entities", "brand", "5"),
    *("--edges", "300", "--relations", "1"),
]
TINY = [
    *("--model.experts", "id+graph", "--model.hidden_size", "8", "--model.num_layers", "1"),
    *("--train.batch_size", "4", "--train.sequence_length", "4", "--train.item_shards", "1"),
]


def test_slices_give_a_row_each_and_what_does_not_fit_exits_with_3(monkeypatch):
    console = Console(record=True, width=120, soft_wrap=True)
    monkeypatch.setattr(command, "console", console)
    small = chips.Chip("gpu", 1e5, 1e12, 1e12, 1e12, "a test", usable=1)
    monkeypatch.setitem(chips.CHIPS, "gpu", small)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "gpu:1", "h100:2", "--config", "pod", *SIZES, *TINY])
    assert stop.value.code == cli.WARNED
    text = console.export_text()
    assert "9 users, 300 items, 5 other nodes, 300 edges" in text
    for name in ("parameters", "optimiser state", "temporary", "all-reduce", "(estimate)"):
        assert name in text
    assert "gpu:1: the program `train step` does not fit" in text
    assert "h100:2: the program" not in text
    assert "item_table float32[512,8]" in text
    rows = [line.split() for line in text.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["gpu:1"], ["h100:2"])] == [
        ["gpu:1", "1"],
        ["h100:2", "2"],
    ]


def test_sizes_come_from_the_data_unless_they_are_given(tables, tmp_path):
    tables.events.write_parquet(tmp_path / "events.parquet")
    tables.items.write_parquet(tmp_path / "items.parquet")
    recipe = config(**{"data.source": str(tmp_path), "plan.items": 7})
    assert command.sizes_of(recipe, read_data=False).items == 7
    counted = command.sizes_of(recipe, read_data=True)
    assert (counted.users, counted.items, counted.edges) == (40, 30, 69)


def test_a_slice_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "v9:4x4"])
    assert stop.value.code == 2
    assert "the chips are v5e" in capsys.readouterr().err
