"""The gate: a new run against the last one on events that neither has seen."""

import shutil

import numpy as np
import polars as pl
import pytest
from helpers.training import complete_run

from jaxrec import cli
from jaxrec.artifacts import run_directory
from jaxrec.errors import InputError
from jaxrec.inference.comparison import compare_models, load_unseen, seconds_seen
from jaxrec.inference.loading import load, load_directory


@pytest.fixture(scope="session")
def whole_run(tables, tmp_path_factory, worker_id):
    return complete_run(tables, tmp_path_factory, worker_id)


@pytest.fixture(scope="module")
def newest(tables):
    """The events, and two new ones of every user a year later: of a known and a new item."""
    users = tables.events["user_id"].unique().sort()
    stamps = pl.lit(1_735_689_600_000) + 1000 * pl.int_range(pl.len())
    known = pl.DataFrame({"user_id": users}).select(
        "user_id", item_id=pl.lit("i03"), timestamp=stamps, event=pl.lit("buy")
    )
    unknown = known.with_columns(
        item_id=pl.lit("brand new"), timestamp=pl.col("timestamp") + 1_000_000
    )
    return pl.concat([tables.events, known, unknown])


def test_a_run_equals_itself_and_unknown_items_count_as_missed(whole_run, newest):
    model, since = load(whole_run), seconds_seen([whole_run])
    compared = compare_models(model, model, newest, max(since, 1_735_600_000))
    assert len(compared.new) == 80
    np.testing.assert_array_equal(compared.new, compared.last)
    assert compared.interval == (0, 0)
    assert np.isinf(compared.new).sum() == 40


def test_items_that_one_run_lacks_are_found_by_the_other(whole_run, newest):
    model = load(whole_run)
    own = model.for_shop(pl.DataFrame({"item_id": ["brand new"], "brand": ["brand1"]}))
    for new, last in ((model, own), (own, model)):
        compared = compare_models(new, last, newest, 1_735_600_000)
        found = [np.isfinite(ranks).sum() for ranks in (compared.new, compared.last)]
        assert sorted(found) == [40, 40] and len(compared.new) == 80
        assert (np.isfinite(compared.new) != np.isfinite(compared.last)).all()


def test_a_refit_that_has_seen_the_events_gives_way_to_the_selected_model(whole_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    shutil.copytree(whole_run, run / "refit")
    seen = run_directory.read_artifacts(run).seen_until
    layout = run / "refit" / "catalog" / "layout.json"
    text = layout.read_text()
    layout.write_text(text.replace(f'"seen_until": {seen}', f'"seen_until": {seen + 100}'))
    assert seconds_seen([run]) == seen
    assert load_unseen(run, seen).step == load_directory(run).step
    with pytest.raises(InputError, match="has learned from events up to"):
        load_unseen(run, seen - 1)


@pytest.mark.thorough
def test_a_worse_run_is_refused_in_one_line(whole_run, newest, tmp_path, capsys):
    """The worse run does not know the item that everybody buys."""
    data, worse = tmp_path / "data", tmp_path / "worse"
    data.mkdir()
    newest.write_parquet(data / "events.parquet")
    shutil.copytree(whole_run, worse)
    path = worse / "calibration.json"
    text = path.read_text()
    start = text.index('"popularity"')
    end = text.index(",", start)
    path.write_text(f'{text[:start]}"popularity": -50.0{text[end:]}')
    since = ["--data", str(data), "--since", "2024-12-31"]
    cli.main(["compare", str(whole_run), str(whole_run), *since])
    assert "is not worse than" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", str(worse), str(whole_run), *since])
    assert stop.value.code == cli.WARNED
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"refused: {worse} is worse than {whole_run}: NDCG@10 ")
    assert "\n" not in error
    cli.main(["compare", str(worse), str(whole_run), *since, "--tolerance", "1"])
