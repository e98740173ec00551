"""Checkpoints: a state and its position in the data, which training goes on from."""

from pathlib import Path

from orbax.checkpoint import CheckpointManager

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.sharding import laid_out
from jaxrec.training.context import TrainContext
from jaxrec.training.finite import refuse_not_finite
from jaxrec.training.state import catalog_vectors, state_layout
from jaxrec.training.step import TrainState


def load(
    context: TrainContext, manager: CheckpointManager, step: int
) -> tuple[TrainState, Progress]:
    """The state and the position of a checkpoint; another mesh may have saved it.

    Raises a RunError if the checkpoint is damaged, or does not fit the options.
    """
    target = laid_out(*state_layout(context))
    vectors = run_directory.vector_targets(context.config, context.sizes, target.text.sharding)
    rest = {"step": target.step, "opt_state": target.opt_state}
    run, what = Path(manager.directory).parent, f"config.yaml or the checkpoint of step {step}"
    with run_directory.reading(run, what):
        saved = run_directory.restore(
            manager, step, params=target.params, rest=rest, vectors=vectors
        )
        progress = run_directory.restore_progress(manager, step)
    text = saved["vectors"]["text"]
    return TrainState(params=saved["params"], text=text, **saved["rest"]), progress


def save(
    context: TrainContext,
    manager: CheckpointManager,
    state: TrainState,
    progress: Progress,
    scores: dict[str, float] | None = None,
) -> None:
    """Save the state, its position in the data and the vectors of all nodes.

    Raises a Diverged, and saves nothing, if a parameter is not finite.
    """
    number = int(state.step)
    refuse_not_finite(state.params, number)
    if scores is None and progress.step == context.packing.steps_per_epoch:
        number -= 1  # a number is saved once, and this state is saved again when it is validated
    rest = {"step": state.step, "opt_state": state.opt_state}
    vectors = {"nodes": catalog_vectors(context, state), "text": state.text}
    run_directory.save(manager, number, state.params, rest, vectors, progress, scores)
