"""A live engine and the exported programs give the same states and lists."""

import json
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, event
from helpers.paths import ROOT

from jaxrec.cli import main
from jaxrec.inference.edge.directory import write_directory
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

sys.path.insert(0, str(ROOT / "examples"))
import edge

EVENTS = [
    event(n * n * DAY, item, event_type)
    for n, (item, event_type) in enumerate(
        [("i01", "view"), ("i07", "buy"), ("none", "view"), ("i07", "view"), ("i12", "view")]
    )
]


@pytest.fixture(scope="module")
def engine(model):
    engine = LiveEngine(model, SQLiteStore(":memory:"), strategy=())
    engine.record([UserEvent("u", shown) for shown in EVENTS])
    return engine


@pytest.fixture(scope="module")
def directory(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("edge") / "exact"
    main(["export", str(run), "--to", str(path), "--item-precision", "float32"])
    return path


def lists(engine, users=("u", "new")):
    return [made.table for made in engine.recommend(list(users), k=10)]


def assert_same_list(items, scores, expected, tolerance):
    """Items may differ only where their scores tie."""
    np.testing.assert_allclose(scores, expected["score"], atol=tolerance)
    by_item = dict(zip(expected["item_id"], expected["score"], strict=True))
    last = expected["score"][-1]
    for item, score in zip(items, scores, strict=True):
        assert abs(by_item.get(item, last) - score) <= 2 * tolerance


def test_the_exported_programs_give_the_lists_of_the_live_engine(engine, directory):
    programs = {
        path.stem: jax.export.deserialize(bytearray(path.read_bytes()))
        for path in directory.glob("*.jax")
    }
    assert programs.keys() == {"update", "update_many", "user_vector"}
    assert {program.platforms for program in programs.values()} == {("cpu", "cuda", "tpu")}
    update, update_many, user_vector = (programs[name] for name in sorted(programs))
    manifest = json.loads((directory / "manifest.json").read_text())
    items = pl.read_parquet(directory / "items.parquet")
    vectors = np.load(directory / "item_vectors.npy")
    numbers = {item: number for number, item in enumerate(items["item_id"])}
    state, last_time = np.tile(np.float32(manifest["initial_state"]), (2, 1)), None
    inputs = []
    for shown in EVENTS:  # of the first user; the other one stays new
        rows = np.array([numbers.get(shown.item_id, 0)])
        kind = np.array([manifest["event_types"].index(shown.event_type)], np.int32)
        gap = -1 if last_time is None else shown.time - last_time
        inputs.append((vectors[rows], kind, np.array([gap], np.int32)))
        state[:1] = update.call(state[:1], *inputs[-1])
        last_time = shown.time
    np.testing.assert_allclose(state[0], engine.document("u").state, atol=1e-4)
    history = [np.stack(part, 1) for part in zip(*inputs, strict=True)]
    at_once = update_many.call(state[1:], *history, np.ones((1, len(EVENTS)), bool))
    np.testing.assert_allclose(at_once, state[:1], atol=1e-5)
    target = np.full(2, manifest["target_event_type"], np.int32)
    users = np.asarray(user_vector.call(state, target, np.full(2, -1, np.int32)))
    scores = users @ vectors.T + items["bias"].to_numpy()
    neighbours = [
        (part, np.load(directory / part["items"]), np.load(directory / part["amounts"]))
        for part in manifest["neighbours"]
    ]
    assert len(neighbours) == 2
    scores[0, 0], masked = -1e30, [0]
    bias = manifest["repeat_bias"][target[0] + 1]
    for age, shown in enumerate(reversed(EVENTS)):
        number = numbers.get(shown.item_id, 0)
        kind = manifest["event_types"].index(shown.event_type)
        scores[0, number] += bias[kind][age]
        for part, related, amounts in neighbours:
            if age < len(part["weights"]) and kind in part["event_types"]:
                np.add.at(scores[0], related[number], part["weights"][age] * amounts[number])
        if kind in manifest["masked_event_types"]:
            masked.append(number)
    scores[0, masked] = -1e30
    for row, expected in zip(scores, lists(engine), strict=True):
        best = np.argsort(-row, kind="stable")[: len(expected)]
        ids = items["item_id"].gather(best).to_list()
        assert_same_list(ids, row[best], expected, 1e-3)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("int16", 1e-3), ("int8", 1e-3)]
)
def test_onnx_gives_the_lists_of_the_live_engine(
    engine, model, directory, tmp_path, precision, tolerance
):
    if precision != "float32":
        directory = tmp_path / precision
        write_directory(model, directory, ["onnx"], precision)
    exported = edge.EdgeModel(directory)
    shopper = exported.new_shopper()
    new = exported.recommend(exported.new_shopper())
    for shown in EVENTS:
        exported.read(shopper, shown.item_id, shown.event_type, shown.time)
    np.testing.assert_allclose(shopper.state[0], engine.document("u").state, atol=tolerance)
    for made, expected in zip((exported.recommend(shopper), new), lists(engine), strict=True):
        assert_same_list(*zip(*made, strict=True), expected, tolerance)


def test_the_example_reads_events_and_prints_lists(engine, directory):
    program = [sys.executable, ROOT / "examples" / "edge.py", directory]
    lines = "".join(f"{e.item_id} {e.event_type} {e.time}\n" for e in EVENTS)
    lines += "\ni01 no_type\ni01 view noon\n"
    shown = subprocess.run(program, input=lines, capture_output=True, text=True, check=True)
    assert shown.stderr.count("This event is not read") == 2
    *_, last = shown.stdout.strip().split("\n\n")
    assert [line.split()[2] for line in last.splitlines()] == lists(engine)[0]["item_id"].to_list()


def test_item_neighbours_take_half_the_bytes_beside_int16_vectors(model, tmp_path):
    write_directory(model, tmp_path / "edge", ["onnx"])
    for part in json.loads((tmp_path / "edge" / "manifest.json").read_text())["neighbours"]:
        expected, count = model.neighbours[part["name"]], model.catalog.num_items
        items, amounts = (np.load(tmp_path / "edge" / part[name]) for name in ("items", "amounts"))
        assert items.dtype == amounts.dtype == np.uint16
        np.testing.assert_array_equal(items, expected.items[:count])
        unit, *later = part["weights"]
        assert unit == expected.amounts.max() / (2**16 - 1)
        np.testing.assert_allclose(
            later, unit * 0.5 ** (np.arange(1, expected.newest) / expected.half_life)
        )
        rounded = unit * amounts
        np.testing.assert_allclose(rounded, expected.amounts[:count], rtol=0, atol=0.51 * unit)


def test_an_export_refuses_what_it_cannot_do(model, directory, trained_run, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(trained_run), "--to", str(directory)])
    assert "is not overwritten; name another directory" in " ".join(capsys.readouterr().err.split())


def test_an_export_notes_that_it_holds_pairs_of_single_users(run, tmp_path, capsys):
    main(["export", str(run), "--to", str(tmp_path / "edge"), "--formats", "onnx"])
    printed = capsys.readouterr()
    assert "also those of one user alone" in " ".join((printed.out + printed.err).split())
