"""What `jaxrec plan` prints of its plans; `tests/training/plan` compiles real ones."""

import pytest
from helpers.training import config
from rich.console import Console

from jaxrec import cli
from jaxrec.cli import plan as command
from jaxrec.training.plan.estimate import Held, ProgramPlan, SlicePlan
from jaxrec.training.plan.hlo import Costs, Transfers

SIZES = [
    *("--users", "9", "--items", "300", "--events", "80", "--entities", "brand", "5"),
    *("--edges", "300", "--relations", "1", "--train.batch_size", "4"),
]


def program(part, name, peak):
    costs = Costs(2e12, 3 * 2**30, {"all-reduce": Transfers(7, 2**20)}, (), padding=0)
    return ProgramPlan(
        name=name,
        part=part,
        parts={"parameters": 2**30},
        temporary=peak - 2**30,
        peak=peak,
        costs=costs,
        largest=(Held("parameters: item_table float32[512,8]", 2**30),),
        rows=256,
        is_estimate=True,
    )


def planned(recipe, sizes, part):
    """A plan whose training needs 100 GiB."""
    assert (sizes.items, sizes.entities) == (300, {"brand": 5})
    training = program(part, "train step", 100 * 2**30)
    names = ("encode items", "validate", "score users")
    others = [program(part, name, 2**31) for name in names]
    return SlicePlan(part, {"users": part.size, "items": 1}, training, *others)


def test_slices_give_a_row_each_and_what_does_not_fit_exits_with_3(monkeypatch):
    console = Console(record=True, width=120, soft_wrap=True)
    monkeypatch.setattr(command, "console", console)
    monkeypatch.setattr(command, "plan_slice", planned)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "h100:2", "h200:4", "--config", "pod", *SIZES, "--train.item_shards=1"])
    assert stop.value.code == cli.WARNED
    text = console.export_text()
    assert "9 users, 300 items, 5 other nodes, 300 edges" in text
    for shown in ("parameters", "temporary", "7 x, 1.00 MiB", "NO (estimate)", "2 TFLOP"):
        assert shown in text
    assert "h100:2: the program `train step` does not fit: it needs 100.00 GiB of 60.00" in text
    assert "1.00 GiB  parameters: item_table float32[512,8]" in text
    assert "h200:4: the program" not in text
    rows = [line.split() for line in text.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["h100:2"], ["h200:4"])] == [
        ["h100:2", "2"],
        ["h200:4", "4"],
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
