"""jaxrec with one expert of ids: no graph, no text, no auxiliary loss."""

# ruff: noqa: E402
from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # before the imports, because it does not reach threads that run already

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import polars as pl
from protocol import Histories, K, Options, Reporter, read_histories, read_options, timed

import jaxrec
from jaxrec.api import configure, enable_compilation_cache
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.training.context import make_context
from jaxrec.training.evaluator import validate
from jaxrec.training.fit import fit
from jaxrec.training.logging import RunLog
from jaxrec.training.loop import make_train_step, train_epoch
from jaxrec.training.state import initial_state
from jaxrec.training.stopping import AgreedStop, StopSignal


def recipe(options: Options, histories: Histories) -> Config:
    """The configuration of jaxrec with the sizes that all systems share."""
    lengths = [min(len(items), options.history) for items in histories.train()]
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
            "model.cooccurrence": False,
            "train.auxiliary": [],
            # packed rows that hold as many users as a batch of the peers
            "train.batch_size": round(options.batch_size * np.mean(lengths) / options.history),
            "train.sequence_length": options.history,
            "train.epochs": options.epochs,
            "evaluation.history": options.history,
        },
    )


def ranking_seconds(config: Config, histories: Histories) -> float:
    """Seconds of the lists of all users, by a model that has trained for an epoch."""
    train = histories.train()
    lengths = [len(items) for items in train]
    events = pl.DataFrame(
        {
            "user_id": np.repeat(histories.user_ids, lengths),
            "item_id": np.concatenate(train).astype(str),
            "timestamp": np.concatenate([np.arange(length) for length in lengths]),
        }
    )
    with TemporaryDirectory() as folder:
        run = Path(folder, "run")
        short = replace(
            config,
            train=replace(config.train, epochs=1),
            evaluation=replace(config.evaluation, queries=1000),
        )
        fit(short, run)
        model = jaxrec.load(run)
        model.recommend(events, K)  # compiles
        return float(np.median([timed(model.recommend, events, K)[1] for _ in range(3)]))


def main() -> None:
    """Measure training time, ranking time and NDCG@10 of jaxrec, epoch by epoch."""
    options = read_options()
    enable_compilation_cache()
    histories = read_histories(options)
    config = recipe(options, histories)
    ranking = ranking_seconds(config, histories)
    context = make_context(config, prepare(config))
    state, step = initial_state(context), make_train_step(context)
    reporter, progress = Reporter(options), Progress()
    never = AgreedStop(StopSignal(), context.mesh)
    packing = context.packing
    targets = int(packing.packed.targets.sum())
    slots = packing.steps_per_epoch * packing.shape[0] * packing.shape[1]
    with TemporaryDirectory() as folder, RunLog(Path(folder), 0) as log:
        while reporter.wants_more():

            def epoch(state=state, progress=progress):
                result = train_epoch(context, step, state, progress, log, never)
                return jax.block_until_ready(result[0])

            state, seconds = timed(epoch)
            score = validate(context, state)["ndcg@10"]
            progress = Progress(progress.epoch + 1, 0, ())
            reporter.report(seconds, targets, slots, score, ranking)


if __name__ == "__main__":
    main()
