"""What each part of a model adds to a list: the scores with that part taken away.

A part is a source of the item vectors (ids, texts, the graph, a column of vectors, numbers), the
item memory, the repeat bias or the popularity bias. The parts act together, so what they add does
not sum to the score.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Float, Int

from jaxrec.config.options import SOURCES
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import item_labels
from jaxrec.inference.encoding import catalog_arrays, encode_catalog
from jaxrec.inference.item_features import no_features
from jaxrec.models.items.build import expert_sources
from jaxrec.models.recommender import Model
from jaxrec.ranking.adjustments import AdjustmentBlocks
from jaxrec.ranking.top_k import best_items, log_probabilities
from jaxrec.types import EventLog

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this

ITEM_MEMORY, REPEAT_BIAS, POPULARITY = "item_memory", "repeat_bias", "popularity"
CLOSED = -1e9  # of a memory gate: its exponential is 0


def parts_of(model: "TrainedModel") -> tuple[str, ...]:
    """The parts that a model has, sources of the item vectors first."""
    columns = tuple(model.artifacts.features.vectors)
    experts = model.config.model.experts
    used = {source for name in experts for source in expert_sources(name, columns)}
    bias = model.ranker.repeat_bias[model.encoder.target_event_type]
    present = {
        ITEM_MEMORY: model.config.model.memory_decays > 0,
        REPEAT_BIAS: bool(bias.any()),
        POPULARITY: bool(np.any(model.index.bias)),
    }
    sources = ("id", "text", "graph", *columns, "numbers")
    return *(source for source in sources if source in used), *(
        part for part, is_used in present.items() if is_used
    )


def without(model: "TrainedModel", part: str) -> "TrainedModel":
    """The model without a part, not trained again.

    The repeat bias is no part of the vectors: `contributions` leaves it out of the adjustments.
    """
    if part in (*SOURCES, *model.artifacts.features.vectors):
        return without_source(model, part)
    if part == ITEM_MEMORY:
        return replace(model, model=without_item_memory(model.model))
    if part == POPULARITY:
        return replace(model, index=replace(model.index, bias=np.zeros_like(model.index.bias)))
    return model


def without_source(model: "TrainedModel", source: str) -> "TrainedModel":
    """The model whose items, in histories and lists, have no ids, no texts, no graph and so on.

    Each item has the unknown id then, the mean text, no edge, no vector or no numbers.
    """
    catalog, trained = model.catalog, model.artifacts
    text = np.array(model.index.text)[: len(catalog.items)]
    has_id, features = trained.has_trained_id, dict(model.features)
    missing = no_features(trained.features, len(catalog.items))
    match source:
        case "id":
            has_id = np.zeros_like(has_id)
        case "text":
            text = np.zeros_like(text)  # whitened vectors have the mean 0
        case "graph":
            none = np.zeros(0, np.int32)
            graph = replace(catalog.graph, heads=none, edge_relations=none, tails=none)
            catalog = replace(catalog, graph=graph)
        case "numbers":
            features |= {name: missing[name] for name in trained.features.numbers}
        case _:
            features[source] = missing[source]
    arrays = catalog_arrays(catalog, text, has_id, features=features)
    vectors = encode_catalog(model.model, arrays)
    return replace(model, index=replace(model.index, vectors=vectors, mapped=None))


def without_item_memory(model: Model) -> Model:
    """The model whose user vectors leave the memory readout out."""
    recommender = model.merge()
    for expert in recommender.experts:
        bias = expert.memory_gate.bias
        assert bias is not None
        bias[...] = jnp.full_like(bias[...], CLOSED)
    return replace(model, params=nnx.state(recommender))


def contributions(model: "TrainedModel", log: EventLog, k: int) -> pl.DataFrame:
    """`TrainedModel.contributions` of the only user of a log.

    Raises:
        InputError: the model has items that training has not seen.
    """
    if model.catalog is not model.artifacts.catalog:
        raise InputError("contributions are those of the items of training; load the run anew")
    adjustments = model.ranker.adjustments(log)(np.arange(1))
    vectors = model.user_batch(log).vectors
    items = best_items(vectors, model.index.items, k, adjustments).items[0]
    items = items[items > 0]
    whole = item_log_probabilities(model, vectors, items, adjustments)

    def added(part: str) -> Float[np.ndarray, " K"]:
        bare = without(model, part)
        changes = model.ranker.mask(log) if part == REPEAT_BIAS else adjustments
        return whole - item_log_probabilities(bare, bare.user_batch(log).vectors, items, changes)

    columns = {part: added(part) for part in parts_of(model)}
    ranks = pl.Series("rank", np.arange(1, len(items) + 1, dtype=np.int32))
    names = model.index.names(ITEM, items)
    return pl.DataFrame([ranks, *names, pl.Series("log_probability", whole)]).with_columns(
        pl.Series(name, values) for name, values in columns.items()
    )


def plot_contributions_of(model: "TrainedModel", log: EventLog, path: Path, k: int) -> None:
    """`TrainedModel.plot_contributions` of the only user of a log."""
    from jaxrec.inference.plots import plot_contributions  # matplotlib is slow to import

    table = contributions(model, log, k)
    number = table.columns.index("log_probability")
    identity, parts = table.columns[1:number], table.columns[number + 1 :]
    plot_contributions(
        path,
        table.select(parts).to_numpy(),
        item_labels(table.select(identity)).to_list(),
        [part.replace("_", " ") for part in parts],
        f"What each part adds to the list of user {log.user_ids[0]}",
    )


def item_log_probabilities(
    model: "TrainedModel",
    vectors: Float[np.ndarray, "1 F"],
    items: Int[np.ndarray, " K"],
    adjustments: AdjustmentBlocks,
) -> Float[np.ndarray, " K"]:
    """Log of the probability that one user chooses each item next."""
    return log_probabilities(
        vectors,
        model.index.items,
        items[None],
        adjustments,
        inverse_temperature=model.inverse_temperature,
    )[0]
