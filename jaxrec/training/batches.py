"""The batches that a training reads."""

from jaxrec.config import Config
from jaxrec.data.dataset import Dataset
from jaxrec.data.packing import PackedWindows, Packing, cut_windows, pack_windows
from jaxrec.data.replay import replayed_weights
from jaxrec.training.privacy.budget import Budget
from jaxrec.training.privacy.sampling import UserSampling, user_sampling


def make_packing(
    config: Config, dataset: Dataset, budget: Budget | None = None, devices: int = 1
) -> Packing | UserSampling:
    """The batches of the training events.

    Args:
        budget: of a private training, whose rows are users.
        devices: that share the rows of a batch.
    """
    split, train, weights = dataset.split, config.train, dataset.target_weights
    if budget is not None:
        return user_sampling(
            split.log,
            split.train_lengths,
            weights,
            budget,
            sequence_length=train.sequence_length,
            burn_in=train.burn_in,
            devices=devices,
        )
    if dataset.carried is not None:
        weights = replayed_weights(
            split.log,
            weights,
            dataset.new & split.in_training,
            cut_windows(
                split.log.offsets, split.train_lengths, train.sequence_length, train.burn_in
            ),
            share=config.warm_start.replay,
            seed=(train.seed, max(dataset.carried.since, 0)),
        )
    packed = dataset.files.arrays(
        "windows",
        lambda: vars(
            pack_windows(
                split.log, split.train_lengths, weights, train.sequence_length, train.burn_in
            )
        ),
    )
    return Packing(
        split.log,
        weights,
        PackedWindows(**packed),
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        seed=train.seed,
    )
