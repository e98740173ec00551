"""The cards of a run."""

import json

import pytest
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.training import cards


def test_the_cards_tell_facts_of_the_run_and_name_no_user(whole_run, tables):
    model, data = ((whole_run / name).read_text() for name in (cards.MODEL_CARD, cards.DATA_CARD))
    results = json.loads((whole_run / "metrics.json").read_text())
    assert f"{results['test']['model']['ndcg@10']:.4f}" in model
    assert "id+graph, id" in model and "`train.batch_size: 4`" in model
    for name in ("popularity", "cooccurrence", "popularity: decile 10 (most popular)"):
        assert f"| {name} |" in model
    row = results["groups"]["test"]["all"]
    assert f"{row['low']:.4f} to {row['high']:.4f}" in model
    assert f"| users | {tables.events['user_id'].n_unique()} |" in data
    assert f"| events | {len(tables.events)} |" in data
    assert "2024-" in data and "| brand |" in data
    for user in tables.events["user_id"].unique():
        assert f"'{user}'" not in model + data and f" {user} " not in model + data


@pytest.mark.thorough
def test_columns_form_groups_of_the_card(tables, tmp_path):
    from jaxrec.training import loop

    run = tmp_path / "run"
    loop.fit(config(**{"report.group_by": ["brand"], "train.epochs": 1}), run, tables=tables)
    groups = json.loads((run / "metrics.json").read_text())["groups"]["test"]
    brands = {f"brand: {brand}" for brand in tables.items["brand"].unique()}
    assert brands <= groups.keys()
    assert "| brand: " in (run / cards.MODEL_CARD).read_text()


def test_a_card_of_data_without_times_says_so(tables):
    options = config(**{"data.time": "order"})
    assert "positions, no times" in cards.data_card(prepare(options, tables), options, "here")
