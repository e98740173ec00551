"""Starting the live service: its store and its options."""

import shutil
from pathlib import Path

import fsspec
import pytest
from helpers.jobs import BLOCK
from helpers.live import rescaled

import jaxrec
from jaxrec.errors import ConfigError, RunError
from jaxrec.ranking.steps import Feedback
from jaxrec.serving import server, states
from jaxrec.serving.options import LiveOptions, ServeOptions


@pytest.mark.thorough
def test_states_of_a_finished_job_go_into_a_live_store(
    serve, trained_run, events_file, known_shop, tmp_path, capsys
):
    directory, address = tmp_path / "states", str(tmp_path / "store.db")
    serve("--out", tmp_path / "out", "--states", directory, *BLOCK)
    live = LiveOptions(store=address, load_states=str(directory))
    options = ServeOptions(run=trained_run, events=events_file, live=live)
    server.prepare_store(options, (Feedback(),))
    shown = capsys.readouterr().err
    assert "0 users of the store have the states" in shown  # the store was empty
    server.prepare_store(options, (Feedback(),))
    shown = capsys.readouterr().err
    count = known_shop.events["user_id"].n_unique()
    assert f"{count} users of the store have the states" in shown
    assert "0 users were added" in shown
    bucket = fsspec.filesystem("memory")
    for name in ("monday", "tuesday"):
        bucket.put(str(directory), f"/jobs/{name}", recursive=True)
    renamed = directory.rename(tmp_path / "states [1]")
    model = jaxrec.load(trained_run)
    assert len(states.read_states(model, renamed)) == count
    assert len(states.read_states(model, "memory://jobs/*day")) == count
    with pytest.raises(ConfigError, match="nothing matches"):
        states.read_states(model, "memory://jobs/none*")
    with pytest.raises(RunError, match="of another checkpoint"):
        states.read_states(rescaled(model), renamed)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:9]), Path.unlink):
        broken = tmp_path / "broken"
        shutil.copytree(renamed, broken)
        damage(broken / "part-00000.parquet")
        if damage is not Path.unlink:
            with pytest.raises(RunError, match="states is incomplete or damaged"):
                states.read_states(model, broken)
        shutil.rmtree(broken)
    (renamed / "layout.json").write_text('{"model": "another"}')  # of an earlier version
    with pytest.raises(RunError, match="of another checkpoint"):
        states.read_states(model, renamed)
    (renamed / "layout.json").unlink()
    directory = renamed
    (directory / "_SUCCESS").unlink()
    with pytest.raises(RunError, match="no states of a finished job"):
        states.read_states(jaxrec.load(trained_run), directory)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--profile"], "use: jaxrec profile RUN"),
        (["--where", "price < 5"], "Unrecognized options: --where"),
        (["--k", "3"], "Unrecognized options: --k"),
        (["--window", "0"], "window must be 1 or more"),
        (["--keep-users", "-1"], "keep_users must be 1 or more"),
        (["--expire-share", "2"], "expire_share must be 1 or less"),
        (["--state-precision", "float8"], "float8"),
        (["--store", "nowhere/store.db"], "nowhere/store.db cannot be used as a store"),
    ],
)
def test_batch_options_are_refused_by_the_live_service(serve, refused, wrong, message):
    assert message in refused(serve, "--http", "127.0.0.1:0", *wrong)


def test_an_invalid_strategy_is_refused_at_the_start(serve, refused, tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text("- where: colour > 3")
    store = tmp_path / "store.db"
    live = ("--http", "127.0.0.1:0", "--store", store, "--strategy", file)
    assert "colour" in refused(serve, *live)
