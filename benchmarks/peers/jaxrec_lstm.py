"""jaxrec with one expert of ids: no graph, no text, no auxiliary loss."""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before the imports, because it does not reach threads that run already

from pathlib import Path
from tempfile import TemporaryDirectory

import jax
from protocol import Options, Reporter, read_options, timed

from jaxrec.api import configure, enable_compilation_cache
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.training import loop as training
from jaxrec.training.evaluator import validate
from jaxrec.training.logging import RunLog
from jaxrec.training.state import initial_state, make_context
from jaxrec.training.stopping import AgreedStop, StopSignal


def recipe(options: Options) -> Config:
    """The configuration of jaxrec with the sizes that all systems share."""
    return configure(
        data=options.data,
        overrides={
            "data.time": "order",
            "split.scheme": "leave_one_out",
            "model.experts": ["id"],
            "model.hidden_size": options.hidden_size,
            "model.num_layers": options.num_layers,
            "model.dropout": options.dropout,
            "model.id_dropout": 0.0,
            "train.auxiliary": [],
            "train.batch_size": options.packed_rows,
            "train.sequence_length": options.history,
            "train.epochs": options.epochs,
            "evaluation.history": options.history,
        },
    )


def main() -> None:
    """Measure training time, ranking time and NDCG@10 of jaxrec, epoch by epoch."""
    options = read_options()
    enable_compilation_cache()
    config = recipe(options)
    context = make_context(config, prepare(config))
    state, step = initial_state(context), training.make_train_step(context)
    reporter, progress = Reporter(options), Progress()
    never = AgreedStop(StopSignal(), context.mesh)
    targets = int((context.packing.weights > 0)[context.dataset.split.in_training].sum())
    targets -= int(
        (context.dataset.split.train_lengths > 0).sum()
    )  # a user's first event is no target
    with TemporaryDirectory() as folder, RunLog(Path(folder), 0) as log:
        while reporter.wants_more():

            def epoch(state=state, progress=progress):
                result = training.train_epoch(context, step, state, progress, log, never)
                return jax.block_until_ready(result[0])

            state, seconds = timed(epoch)
            scores, evaluation = timed(validate, context, state)
            progress = Progress(progress.epoch + 1, 0, ())
            reporter.report(seconds, targets, scores["ndcg@10"], evaluation)


if __name__ == "__main__":
    main()
