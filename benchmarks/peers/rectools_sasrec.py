"""SASRec and eSASRec of RecTools (the last argument): padded sequences, full softmax."""

import logging
import sys
import warnings

import numpy as np
import pandas as pd
from protocol import Options, Reporter, ndcg, ranks, read_histories, read_options, timed
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers


def build(options: Options, layers: type) -> SASRecModel:
    """The model with transformer layers of a class; it is not trained yet."""

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=options.batches or 1.0,
        )

    return SASRecModel(
        n_blocks=options.num_layers,
        n_heads=2,
        n_factors=options.hidden_size,
        dropout_rate=options.dropout,
        session_max_len=options.history,
        batch_size=options.batch_size,
        loss="softmax",
        transformer_layers_type=layers,
        get_trainer_func=trainer,
    )


def dataset_of(train: list[np.ndarray]) -> Dataset:
    """The data set of RecTools with the training items of every user, one a second."""
    lengths = [len(items) for items in train]
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(train)), lengths),
            Columns.Item: np.concatenate(train),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2020-01-01")
            + pd.to_timedelta(np.concatenate([np.arange(n) for n in lengths]), unit="s"),
        }
    )
    return Dataset.construct(frame)


def main() -> None:
    """Measure training time, ranking time and NDCG@10 of RecTools, epoch by epoch."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    name = sys.argv.pop()
    options = read_options()
    histories = read_histories(options)
    model = build(options, LiGRLayers if name == "esasrec" else SASRecTransformerLayers)
    dataset, reporter = dataset_of(histories.train()), Reporter(options)
    users = np.arange(len(histories.offsets) - 1)
    lengths = np.array([len(items) for items in histories.train()])
    # a sequence of n events has n - 1 targets; RecTools trains on the newest `history` of them
    kept = np.minimum(np.maximum(lengths - 1, 0), options.history)
    sequences = int((kept > 0).sum())
    share = 1.0
    if options.batches:
        share = min(options.batches * options.batch_size / sequences, 1.0)
    targets, slots = int(kept.sum() * share), int(sequences * options.history * share)

    def top_items(dataset: Dataset = dataset) -> np.ndarray:
        lists = model.recommend(users, dataset, k=10, filter_viewed=True)
        ranked = np.zeros((len(users), 10), np.int64)
        ranked[lists[Columns.User], lists[Columns.Rank] - 1] = lists[Columns.Item]
        return ranked

    while reporter.wants_more():
        _, seconds = timed(lambda: model.fit_partial(dataset, min_epochs=1, max_epochs=1))
        ranked, ranking = timed(top_items)
        score = ndcg(ranked, histories.validation_targets())
        reporter.report(seconds, targets, slots, score, ranking)
        if options.ranks and reporter.best[1] == reporter.epoch:
            ranked = top_items(dataset_of(histories.train(held_out=1)))
            test_ranks = ranks(ranked, histories.test_targets())
            np.savez(options.ranks, user_ids=histories.user_ids, ranks=test_ranks)


if __name__ == "__main__":
    main()
