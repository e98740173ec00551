"""Single results: profiles, audiences, similar nodes, plots and replays."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.jobs import BLOCK, read

from jaxrec.cli import main
from jaxrec.data.forgotten import add_forgotten
from jaxrec.serving.options import ReplayOptions
from jaxrec.serving.reports import log_to_replay
from jaxrec.serving.reports import replay as replay_run


@pytest.mark.thorough
def test_profiles_audiences_similar_nodes_and_plots(ask, trained_run, tmp_path, capsys):
    ask("profile", "--out", tmp_path / "profiles", "--k", 2, "--preview", *BLOCK)
    assert set(read(tmp_path / "profiles")["type"]) == {"brand", "category", "item"}
    assert " %; " in capsys.readouterr().out
    brand = ["audience", "brand:brand1", "--k", 5]
    ask(*brand, "--bid", 0.5, "--out", tmp_path / "who.csv", *BLOCK)
    audience = pl.read_csv(tmp_path / "who.csv")
    assert audience.columns == ["rank", "user_id", "probability", "ecpm"]
    assert len(audience) == 5
    ask(*brand, "--out", tmp_path / "all.csv", "--block", 999)
    whole = pl.read_csv(tmp_path / "all.csv")
    assert whole["user_id"].to_list() == audience["user_id"].to_list()
    main(["similar", str(trained_run), "item:i03", "--k", "3"])
    assert "cosine" in capsys.readouterr().out
    ask("plot", "u003", "--out", tmp_path / "u03.png")
    ask("plot", "u003", "--out", tmp_path / "parts.png", "--contributions")
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "u03.png").stat().st_size > 5000


def test_replay_reads_a_file_or_the_data_of_the_run(
    model, trained_run, known_shop, tmp_path, capsys
):
    known_shop.events.write_parquet(tmp_path / "events.parquet")
    known_shop.items.write_parquet(tmp_path / "items.parquet")
    data = replace(model.config.data, source=str(tmp_path))
    moved = replace(model, config=replace(model.config, data=data))
    options = ReplayOptions(run=trained_run)
    with_file = replace(options, events=tmp_path / "events.parquet")
    for name, values in vars(log_to_replay(moved, options)).items():
        np.testing.assert_array_equal(values, getattr(log_to_replay(model, with_file), name))
    key = tmp_path / "forgotten.txt"
    add_forgotten(key, ["u003"], 2**40)
    forgotten = replace(model.config.data, forgotten=str(key))
    known = replace(model, config=replace(model.config, data=forgotten))
    users = log_to_replay(known, with_file).user_ids
    assert len(users) == log_to_replay(model, with_file).num_users - 1 and "u003" not in users
    replay_run(with_file)
    assert "rank of the next event" in capsys.readouterr().out


def test_an_explanation_is_printed_and_written(ask, model, known_shop, tmp_path, capsys):
    ask("explain", "u003", "--out", tmp_path / "why.json")
    shown = capsys.readouterr().out
    assert shown.count("Recommended because you ") == 3
    assert "part id+graph: item_memory" in shown
    made = json.loads((tmp_path / "why.json").read_text())
    own = known_shop.events.filter(user_id="u003")
    best = model.recommend(own, k=3)["item_id"].to_list()
    assert [reason["item_id"] for reason in made] == best
    assert len(made[0]["events"]) == len(own)
    ask("explain", "u003", "--item", best[1], best[1])
    assert capsys.readouterr().out.count("Recommended because") == 1
