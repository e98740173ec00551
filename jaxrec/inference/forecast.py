"""Forecasts: the interest after further events, by rolling the decoder out.

A roll-out draws an item by its probability, reads it as if it had happened, and goes on. The mean
and the quantiles of several roll-outs are the forecast. Only the nodes that are likeliest now are
followed one by one; the others together keep the share of exp(score) that they have now.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.config.ranges import LARGEST
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.forecast_candidates import CANDIDATES, Candidates, find_candidates
from jaxrec.inference.ranker import UserBatch, list_length
from jaxrec.inference.roll_out import RollOuts, Weights, roll_out
from jaxrec.models.sequence.decoder import Decoder
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.ranking.option_types import check_counts, is_whole
from jaxrec.ranking.top_k import padded

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose methods call these

SAMPLES = 32  # roll-outs of a user
DEFAULT_STEPS = 5
USERS = 32  # users to roll out at a time


@dataclass(frozen=True)
class ForecastOptions:
    """What to forecast.

    Args:
        steps: number of next events; the first one is what the model predicts now.
        target: the node type to report.
        k: length of the list of every step.
        samples: roll-outs of a user; 0: one, which reads the expected item in place of a drawn one.
        seed: of the draws, together with the id of the user.
    """

    steps: int = 5
    target: str = ITEM
    k: int = 10
    samples: int = SAMPLES
    seed: int = 0


def checked_options(
    model: "TrainedModel",
    steps: int | None,
    target: str,
    k: int | None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ForecastOptions:
    """The options of a forecast; raises an InputError for those that do not fit.

    Args:
        steps: None: 5, or as many as the decoder was trained for.
        k: None: 10, or all nodes if there are fewer.
    """
    if steps is None:
        steps = min(DEFAULT_STEPS, decoder_of(model).steps)
    check_counts(steps=steps)
    decoder_of(model, steps)
    for name, value in {"samples": samples, "seed": seed}.items():
        if not is_whole(value) or not 0 <= value < LARGEST:
            raise InputError(f"{name}={value!r}: give a whole number of 0 or more")
    count = min(int(model.index.node_type(target).valid.sum()), CANDIDATES)
    limit = f"the {target}s that a forecast follows"
    return ForecastOptions(steps, target, list_length(k, count, limit), samples, seed)


def decoder_of(model: "TrainedModel", steps: int = 1) -> Decoder:
    """The decoder of a model; raises an InputError if it cannot forecast that many steps."""
    if model.decoder is None:
        raise InputError(
            "the run has no decoder for a forecast; add one: jaxrec add-forecast RUN --steps 10"
        )
    if not 1 <= steps <= (trained := model.decoder.steps):
        raise InputError(f"steps={steps}: the decoder was trained for 1 to {trained} steps")
    return model.decoder


def masks_further_events(model: "TrainedModel", mask: tuple[str, ...] = ()) -> bool:
    """Whether lists leave out the items of the events that a forecast reads.

    Args:
        mask: items of the history to leave out; empty: as in the run's evaluation.
    """
    names = model.encoder.event_type_names
    masked = masked_event_types(mask or model.config.evaluation.mask, names)
    return bool(masked[[model.encoder.is_predicted(name) for name in names]].all())


def forecast_weights(
    model: "TrainedModel",
    users: tuple[Sequence[str] | pl.Series, Float[np.ndarray, "U F"]],
    items: Candidates,
    options: ForecastOptions,
    nodes: tuple[str, Candidates] | None = None,
    mask: tuple[str, ...] = (),
) -> tuple[Weights, Weights | None]:
    """The weights of items and of nodes of another type, some users at a time.

    Args:
        users: ids and vectors.
        nodes: the name of a type, and candidates of it.
        mask: as in `masks_further_events`.
    """
    decoder, scale = decoder_of(model, options.steps), model.inverse_temperature
    followed = [(ITEM, items), *([] if nodes is None else [nodes])]
    tables = [model.index.host_vectors(name) for name, _ in followed]
    ids, vectors = users
    count = len(vectors)
    size = max(min(USERS, count), 1)
    keys = np.array([zlib.crc32(user.encode()) for user in ids], np.uint32)
    keys += np.uint32(options.seed)
    rolls = RollOuts(options.steps, options.samples, masks_further_events(model, mask))
    parts = []
    for start in range(0, max(count, 1), size):
        chosen = [candidates.part(start, size) for _, candidates in followed]
        given = [(c, table[c.rows]) for c, table in zip(chosen, tables, strict=True)]
        own, seeds = (padded(p[start : start + size], size) for p in (vectors, keys))
        parts.append(jax.tree.map(np.asarray, roll_out(decoder, own, scale, given, seeds, rolls)))
    weights = jax.tree.map(lambda *of: np.concatenate(of)[:count], *parts)
    return weights[0], weights[1] if nodes else None


def forecast_users(
    model: "TrainedModel", users: UserBatch, options: ForecastOptions, mask: tuple[str, ...] = ()
) -> pl.DataFrame:
    """`TrainedModel.forecast` for users whose vectors are known."""
    log, scale = users.log, model.inverse_temperature
    adjustments = model.ranker.adjustments(log, mask)(np.arange(log.num_users))
    items = find_candidates(model.index.items, scale, users.vectors, adjustments)
    nodes = None
    if options.target != ITEM:
        table = model.index.table(options.target)
        nodes = options.target, find_candidates(table, scale, users.vectors)
    own = log.user_ids, users.vectors
    item_weights, node_weights = forecast_weights(model, own, items, options, nodes, mask)
    if nodes is None or node_weights is None:
        return forecast_table(model, log.user_ids, options, items, item_weights)
    return forecast_table(model, log.user_ids, options, nodes[1], node_weights)


def forecast_table(
    model: "TrainedModel",
    user_ids: pl.Series,
    options: ForecastOptions,
    candidates: Candidates,
    weights: Weights,
) -> pl.DataFrame:
    """The k heaviest candidates of every step as rows; see `TrainedModel.forecast`."""
    mean = np.where(candidates.rows[:, None] > 0, weights.mean, -1)
    best = np.argsort(-mean, axis=2, kind="stable")[:, :, : options.k]
    rows = np.take_along_axis(candidates.rows[:, None], best, 2)
    users, steps, places = np.nonzero(rows > 0)
    own = users, steps, best[users, steps, places]
    names = model.index.names(options.target, rows[users, steps, places])
    identity, *title = names.iter_columns()
    return pl.DataFrame(
        {
            "user_id": user_ids.gather(users),
            "step": (steps + 1).astype(np.int32),
            "rank": (places + 1).astype(np.int32),
            identity.name: identity,
            "weight": weights.mean[own],
            "low": weights.low[own],
            "median": weights.median[own],
            "high": weights.high[own],
        }
    ).with_columns(*title)
