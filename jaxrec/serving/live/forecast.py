"""The history of a live user's interest, and its forecast, from the state that the store holds."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.inference.forecast import (
    ForecastOptions,
    checked_options,
    decoder_of,
    forecast_table,
    forecast_weights,
)
from jaxrec.inference.forecast_candidates import CANDIDATES, find_candidates, with_nodes
from jaxrec.inference.profiles import interest_over_time
from jaxrec.inference.roll_out import Weights
from jaxrec.ranking.adjustments import AdjustmentBlocks
from jaxrec.serving.live.recommendation_builder import ADJUSTMENTS, padded_blocks, void_adjustments
from jaxrec.serving.live.state_updater import StateUpdater, Update
from jaxrec.serving.stores.base import UserDocument

if TYPE_CHECKING:
    from jaxrec.serving.live.engine import LiveEngine  # whose warm-up calls this

HISTORY_EVENTS, HISTORY_NODES = 20, 5  # of a history of interest


class LiveForecast(NamedTuple):
    """The next events of a user."""

    items: pl.DataFrame  # as in batch scoring
    type: str  # of the nodes whose interest the history of interest shows
    names: list[str]
    weights: Weights  # [steps, names]


def forecast(
    engine: "LiveEngine", document: UserDocument, steps: int | None = None, k: int = 10
) -> LiveForecast:
    """The likeliest items of each of the next events, and the movement of interest.

    The movement is of the nodes that `LiveEngine.interest_history` shows, so that it goes on from
    there: the first step is the interest after the last event.

    Args:
        document: what `LiveEngine.document` returns.
        steps: by default 5, or as many as the decoder was trained for.

    Raises:
        InputError: the run has no decoder, or an option does not fit.
    """
    model = engine.model
    options = checked_options(model, steps, ITEM, min(k, engine.num_items, CANDIDATES))
    adjustments = engine.builder.adjustments([document], model.config.evaluation.mask)
    return _forecast(engine, document, padded_blocks(adjustments), options)


def interest_history(
    updater: StateUpdater, document: UserDocument
) -> tuple[str, Int[np.ndarray, " K"], Float[np.ndarray, "T K"]]:
    """`LiveEngine.interest_history` with the numbers of the nodes in place of their names."""
    model = updater.model
    state, last_time, events = updater.earlier_state(document, HISTORY_EVENTS)
    if not events:
        return (*model.profiled_types, ITEM)[0], np.zeros(0, np.int64), np.zeros((0, 0))
    updates = [Update(state, last_time, events[: n + 1]) for n in range(len(events))]
    vectors = updater.user_vectors(updater.stack(updater.apply(updates)))[: len(events)]
    return interest_over_time(model, vectors, HISTORY_NODES)


def warm_up(engine: "LiveEngine", document: UserDocument) -> None:
    """Compile what `forecast` runs, if the run has a decoder."""
    if engine.model.decoder is None:
        return
    for count in ADJUSTMENTS:
        options = checked_options(engine.model, 1, ITEM, 1)
        _forecast(engine, document, void_adjustments(count), options)


def _forecast(
    engine: "LiveEngine",
    document: UserDocument,
    adjustments: AdjustmentBlocks,
    options: ForecastOptions,
) -> LiveForecast:
    model, scale = engine.model, engine.model.inverse_temperature
    vectors = engine.builder.user_vectors([document])[:1]
    items = find_candidates(engine.builder.items, scale, vectors, adjustments)
    name, rows, _ = interest_history(engine.updater, document)
    table = model.index.table(name)
    nodes = find_candidates(engine.builder.items if name == ITEM else table, scale, vectors)
    nodes = with_nodes(nodes, table, scale, vectors[0], rows)
    # one program for any number of steps
    every = ForecastOptions(decoder_of(model).steps, seed=options.seed)
    user = [document.user_id], vectors
    weights, moved = forecast_weights(model, user, items, every, (name, nodes))
    assert moved is not None
    first = slice(options.steps)
    own = Weights(*(part[:, first] for part in weights))
    lists = forecast_table(model, pl.Series([document.user_id]), options, items, own)
    names = model.index.names(name, rows).to_series(-1).to_list()
    # the rows of the history come first among the candidates
    shown = Weights(*(part[0, first, : len(rows)] for part in moved))
    return LiveForecast(lists, name, names, shown)
