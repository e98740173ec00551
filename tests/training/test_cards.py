"""The cards of a run."""

import json
import re

import pytest
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.evaluation.calibration import Correction
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.inference.loading import read_calibration
from jaxrec.training import card_parts, cards, cost
from jaxrec.training import logging as report


def test_the_cards_tell_facts_of_the_run_and_name_no_user(whole_run, tables):
    model, data = ((whole_run / name).read_text() for name in (cards.MODEL_CARD, cards.DATA_CARD))
    results = json.loads((whole_run / "metrics.json").read_text())
    assert f"{results['test']['model']['ndcg@10']:.4f}" in model
    assert "id+graph, id" in model and "`train.batch_size: 4`" in model
    for name in ("model", "popularity", "cooccurrence", "blend"):
        row = results["test"][name]
        assert row["low"] < row["ndcg@10"] < row["high"]
        interval = f"{row['ndcg@10']:.4f} | {row['low']:.4f} to {row['high']:.4f}"
        assert f"| {name} | {row['count']} | {interval} |" in model
    row = results["groups"]["test"]["all"]
    assert f"| all | {row['count']} | {row['ndcg@10']:.4f} | {row['low']:.4f} to" in model
    assert "| popularity: decile 10 (most popular) |" in model
    assert f"| users | {tables.events['user_id'].n_unique()} |" in data
    assert f"| events | {len(tables.events)} |" in data
    assert "2024-" in data and "| brand |" in data
    for user in tables.events["user_id"].unique():
        assert f"'{user}'" not in model + data and f" {user} " not in model + data


def test_the_card_tells_the_corrections_and_the_cost(whole_run):
    card = (whole_run / cards.MODEL_CARD).read_text()
    scale, correction = read_calibration(whole_run)
    assert f"| corrections | {card_parts.corrections(scale, correction)} |" in card
    assert "| energy | " in card
    minutes = float(re.search(r"\| wall-clock time \| ([\d.]+) minutes", card)[1])
    assert minutes >= round(report.read_log(whole_run)[-1]["seconds"] / 60, 1)


def test_corrections_name_half_lives_and_strengths():
    correction = Correction(-0.25, 0.5, 0.125, cooccurrence=NeighbourFit(3.0, 0.5, 2.0))
    assert card_parts.corrections(2.0, correction) == (
        "temperature 0.5; popularity -0.25; repeat bias +0.5, and -0.125 at every doubling of an "
        "event's age; cooccurrence: strength 2, half-life of 3 events; similar text: none"
    )


def test_energy_is_told_where_the_machine_counts_it(monkeypatch):
    monkeypatch.setattr(cost, "read_counters", dict)
    assert card_parts.energy(cost.Meter()) == "not measured; *to be filled in*"
    monkeypatch.setattr(cost, "read_counters", lambda: {"package-0": (0.0, 1e9)})
    meter = cost.Meter()
    monkeypatch.setattr(cost, "read_counters", lambda: {"package-0": (1.8e6, 1e9)})
    meter.sample()
    assert card_parts.energy(meter).startswith("0.5 kWh in that time, by package-0; ")


@pytest.mark.thorough
def test_columns_form_groups_of_the_card(tables, tmp_path):
    from jaxrec.training.fit import fit

    run = tmp_path / "run"
    fit(config(**{"report.group_by": ["brand"], "train.epochs": 1}), run, tables=tables)
    groups = json.loads((run / "metrics.json").read_text())["groups"]["test"]
    brands = {f"brand: {brand}" for brand in tables.items["brand"].unique()}
    assert brands <= groups.keys()
    assert "| brand: " in (run / cards.MODEL_CARD).read_text()


def test_a_card_of_data_without_times_says_so(tables):
    options = config(**{"data.time": "order"})
    assert "positions, no times" in cards.data_card(prepare(options, tables), options, "here")
