"""What the run directory keeps of a training beside the checkpoints."""

from pathlib import Path

import numpy as np

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.data.dataset import Dataset
from jaxrec.data.pseudonyms import key_hash, read_key
from jaxrec.training.context import TrainContext


def run_artifacts(context: TrainContext) -> RunArtifacts:
    """What the run directory keeps beside the checkpoints; nothing of the events if private."""
    dataset, data = context.dataset, context.config.data
    trained_until, seen_until = (None, None) if context.budget else newest_events(dataset)
    counts = context.counts[: dataset.catalog.num_items]
    return RunArtifacts(
        catalog=dataset.catalog,
        counts=np.zeros_like(counts) if context.budget else counts,
        has_trained_id=context.id_rows > 0,
        event_type_names=dataset.split.log.event_type_names,
        sizes=context.sizes,
        whitening=context.text.whitening,
        text_encoder=context.text.encoder,
        item_id_type=dataset.item_id_type,
        trained_until=trained_until,
        seen_until=seen_until,
        features=context.features,
        id_key_hash=key_hash(read_key(Path(id_key))) if (id_key := data.id_key) else "",
        shops=tuple(dataset.shops),
    )


def newest_events(dataset: Dataset) -> tuple[int | None, int | None]:
    """Times of the newest event that trains, and of the newest that trains or validates.

    Seconds since 1970; None where times are positions.
    """
    split, log = dataset.split, dataset.split.log
    if not log.has_time:
        return None, None
    since = -1 if dataset.carried is None else dataset.carried.since
    trained = int(np.max(log.times, initial=since, where=split.in_training))
    return trained, int(log.times[split.validation.positions].max(initial=trained))
