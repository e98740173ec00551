"""Checkpoints: a thread writes them, and what it cannot complete is never read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.disks import remount, small_disk

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import explained_disk_full
from jaxrec.artifacts.run_directory import Progress, all_saved, open_checkpoints
from jaxrec.errors import RunError

SHAPE = (400, 100)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "catalog").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def increase():
    return jax.jit(lambda params: jax.tree.map(lambda x: x + 1, params), donate_argnums=0)


def noise():
    """Parameters that cannot be compressed."""
    return {"table": jnp.asarray(np.random.default_rng(0).random(SHAPE, np.float32))}


def save(manager, step, params, score=None):
    scores = None if score is None else {run_directory.SELECTED_BY: score}
    vectors = {"nodes": params["table"]}
    run_directory.save(manager, step, params, {"step": step}, vectors, Progress(step), scores)


def saved(manager, step):
    target = {"table": jax.ShapeDtypeStruct(SHAPE, np.float32)}
    return np.asarray(run_directory.restore(manager, step, params=target)["params"]["table"])


def test_a_checkpoint_holds_the_values_that_it_was_given(run, increase):
    """Though the next steps donate the arrays before it is written."""
    params, expected = noise(), {}
    with open_checkpoints(run) as manager, all_saved(manager):
        for step, score in ((1, 0.1), (2, 0.3), (3, 0.2)):
            params = increase(params)
            expected[step] = np.array(params["table"])
            save(manager, step, params, score)
            params = increase(params)
    with open_checkpoints(run, read_only=True) as manager:
        assert manager.all_steps() == [2, 3] and manager.best_step() == 2
        for step in (2, 3):
            np.testing.assert_array_equal(saved(manager, step), expected[step])


def test_a_checkpoint_without_scores_is_the_last_but_never_the_best(run):
    with open_checkpoints(run) as manager:
        for step, score in ((1, 0.1), (2, None)):
            save(manager, step, noise(), score)
        assert (manager.latest_step(), manager.best_step()) == (2, 1)
        save(manager, 3, noise(), 0.05)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["1", "3"]


def test_what_a_killed_process_has_begun_is_named_and_deleted(run):
    with open_checkpoints(run) as manager:
        save(manager, 4, noise(), 0.1)
    assert run_directory.unfinished(run) == ()
    begun = run / "checkpoints" / "6.orbax-checkpoint-tmp"
    (begun / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    [note] = run_directory.unfinished(run)
    assert note.startswith("the checkpoint of step 6 was not complete")
    with open_checkpoints(run, read_only=True) as manager:
        assert manager.all_steps() == [4]
    assert begun.exists()  # a reader deletes nothing
    with open_checkpoints(run) as manager:
        assert manager.latest_step() == 4
        save(manager, 6, noise(), 0.2)
        manager.wait_until_finished()
        assert manager.all_steps() == [6]
    assert run_directory.unfinished(run) == ()


def test_a_full_disk_keeps_the_checkpoints_and_is_named(tmp_path):
    with small_disk(tmp_path / "disk", "500k") as disk:
        run = disk / "run"
        (run / "catalog").mkdir(parents=True)
        full = pytest.raises(RunError, match=f"no space left at {run}; make room and resume")
        params = noise()
        with full, explained_disk_full(run, lambda: "resume"), open_checkpoints(run) as manager:
            save(manager, 1, params, 0.1)
            save(manager, 2, params, 0.2)
            manager.wait_until_finished()
        assert len(run_directory.unfinished(run)) == 1
        remount(disk, "size=9m")
        with open_checkpoints(run) as manager:
            assert manager.all_steps() == [1]
            np.testing.assert_array_equal(saved(manager, 1), params["table"])
            save(manager, 2, params, 0.2)
        assert run_directory.unfinished(run) == ()


def test_a_failed_save_is_raised_by_the_next_step(tmp_path):
    with small_disk(tmp_path / "disk", "200k") as disk:
        run = disk / "run"
        (run / "catalog").mkdir(parents=True)
        with open_checkpoints(run) as manager:
            save(manager, 1, noise(), 0.1)
            with pytest.raises(ValueError, match="No space left"):
                while True:
                    run_directory.raise_failed_save(manager)


def test_a_read_only_disk_is_named(tmp_path):
    with small_disk(tmp_path / "disk", "9m") as disk:
        run = disk / "run"
        for name in ("catalog", "checkpoints"):
            (run / name).mkdir(parents=True)
        remount(disk, "ro")
        refused = pytest.raises(RunError, match=f"read-only at {run}; make it writable and resume")
        with refused, explained_disk_full(run, lambda: "resume"), open_checkpoints(run) as manager:
            save(manager, 1, noise(), 0.1)
