"""Forecasts of all users of a file."""

import os
import signal

import numpy as np
import polars as pl
import pytest
from helpers.jobs import contents, read

import jaxrec
from jaxrec.artifacts.partitions import Partitions
from jaxrec.cli import scripts

ONE_PART = ["--block", "60", "--forecast", "3", "--k", "4"]


@pytest.fixture
def forecast(forecast_run, events_file):
    def command(*arguments):
        scripts.serve([str(forecast_run), "--events", str(events_file), *map(str, arguments)])

    return command


@pytest.mark.slow
def test_a_stopped_forecast_continues_and_is_that_of_the_model(
    forecast, forecast_run, known_shop, tmp_path, monkeypatch, capsys
):
    out, whole, write = tmp_path / "out", tmp_path / "whole", Partitions.write

    def stop_at_the_second(parts, tables, facts):
        if parts.done:
            os.kill(os.getpid(), signal.SIGINT)
        return write(parts, tables, facts)

    monkeypatch.setattr(Partitions, "write", stop_at_the_second)
    with pytest.raises(SystemExit):
        forecast("--out", out, *ONE_PART)
    monkeypatch.undo()
    forecast("--out", out, *ONE_PART)
    forecast("--out", whole, *ONE_PART, "--preview")
    assert contents(out) == contents(whole)
    assert "brand" in capsys.readouterr().out
    expected = jaxrec.load(forecast_run).forecast(known_shop.events, 3, k=4)
    table = read(out)
    assert table.columns == expected.columns
    np.testing.assert_allclose(table["weight"], expected["weight"], atol=1e-5)
    by_brand = tmp_path / "brands"
    forecast("--out", by_brand, "--forecast", "2", "--target", "brand", "--columns", "model")
    columns = ["user_id", "step", "rank", "brand", "weight", "low", "median", "high", "model"]
    assert read(by_brand).columns == columns
    assert read(by_brand)["step"].unique().sort().to_list() == [1, 2]


def test_the_mask_acts_and_no_other_rule(forecast, serve, tmp_path, refused, known_shop):
    out = ["--out", tmp_path / "out", "--forecast", "2"]
    for rule in (["--where", "price < 9"], ["--caps", "brand", "2"]):
        assert "neither a strategy nor a rule but --mask" in refused(forecast, *out, *rule)
    assert "trained for 1 to 4" in refused(forecast, *out[:2], "--forecast", "9")
    assert "no decoder" in refused(serve, *out)
    assert not (tmp_path / "out").exists()
    forecast(*out, "--mask", "none", "--k", "39")
    own = known_shop.events.select("user_id", "item_id").unique()
    assert len(read(tmp_path / "out").join(own, ["user_id", "item_id"])) == 2 * len(own)
    assert read(tmp_path / "out")["weight"].min() >= 0
    assert isinstance(read(tmp_path / "out"), pl.DataFrame)
