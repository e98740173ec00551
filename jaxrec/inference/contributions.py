"""What each part of a model adds to the scores of items; the parts add up to the score.

The score is a sum over experts of <interest + memory readout, item vector>, plus biases. An item
vector is the sum of its sources and of what the graph adds to them, divided by the length of that
sum. With the length taken as given, the product with the interest is a sum over the sources.

A softmax ignores what all items share. So the parts are those of an item's lead over the average
item of training, and the score of the average item is a part of its own.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import item_labels
from jaxrec.inference.encoding import CatalogArrays, catalog_arrays
from jaxrec.models.items.build import source_order
from jaxrec.models.layers import inverse_length
from jaxrec.models.recommender import Model
from jaxrec.ranking.adjustments import amounts_of
from jaxrec.ranking.history_bias import HistoryBias, ItemNeighbours
from jaxrec.ranking.top_k import best_items
from jaxrec.types import EventLog, Queries

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore  # whose properties call this
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this

ITEM_MEMORY, REPEAT_BIAS, POPULARITY = "item_memory", "repeat_bias", "popularity"
AVERAGE = "average"  # the score of the average item
WHOLE_ITEM = "item"  # all sources of an item that has changed since training
ROUNDING = 1e-3  # of a product of unit vectors that another device has computed
CLOSED = -1e9  # of a memory gate: its exponential is 0

Parts = dict[tuple[str, str], Float[np.ndarray, " K"]]
"""(expert, `strategy` or empty; name of the part) -> what it adds to the scores of K items."""


class UserVectors(NamedTuple):
    """What a ranking multiplies with item vectors, for one user."""

    vector: Float[np.ndarray, " F"]
    interest: Float[np.ndarray, " F"]  # the same without the memory readout


class ItemParts(NamedTuple):
    """The vectors of the items of training as sums.

    Attributes:
        names: the number of the expert and the source of each part.
        vectors: of each part, divided by the length of the sum of an expert's parts.
        means: of each part over the items of training.
    """

    names: tuple[tuple[int, str], ...]
    vectors: Float[np.ndarray, "P I D"]
    means: Float[np.ndarray, "P D"]


def item_parts(model: "ModelCore") -> ItemParts | None:
    """`Explainer.item_parts`: of the catalogue of training; None for another catalogue."""
    trained = model.artifacts
    if model.catalog is not trained.catalog:
        return None
    columns = tuple(trained.features.vectors)
    names = tuple(
        (number, source)
        for number, expert in enumerate(model.config.model.experts)
        for source in sorted(source_order(expert, columns), key=lambda name: name == "graph")
    )

    def compute() -> Float[np.ndarray, "P I D"]:
        text = np.asarray(model.index.text)[: len(model.catalog.items)]
        arrays = catalog_arrays(model.catalog, text, trained.id_rows, features=model.features)
        return np.asarray(_part_vectors(model.model, arrays))

    vectors = model.index.derived("item_parts", compute)
    return ItemParts(names, vectors, vectors[:, model.index.items.valid].mean(1))


@jax.jit
def _part_vectors(model: Model, arrays: CatalogArrays) -> Float[Array, "P I D"]:
    """The sources of each expert in their order, then what the graph adds, if it has one."""
    parts = []
    for expert in model.merge().experts:
        encoder = expert.item_encoder
        sources = [source(arrays.nodes, None) for source in encoder.sources]
        features = encoder.features(arrays.nodes, arrays.graph)[: len(arrays.nodes.items)]
        if encoder.graph_encoder is not None or encoder.context is not None:
            sources.append(features - sum(sources, jnp.zeros_like(features)))
        parts += [source * inverse_length(features) for source in sources]
    return jnp.stack(parts)


def without_item_memory(model: Model) -> Model:
    """The model whose user vectors leave the memory readout out."""
    recommender = model.merge()
    for expert in recommender.experts:
        bias = expert.memory_gate.bias
        assert bias is not None
        bias[...] = jnp.full_like(bias[...], CLOSED)
    return replace(model, params=nnx.state(recommender))


def vector_parts(
    model: "ModelCore",
    user: UserVectors,
    items: Int[np.ndarray, " K"],
    vectors: Float[np.ndarray, "K F"],
) -> Parts:
    """The parts of <user vector, item vector> for some items.

    Args:
        model: that of training, whose items the sources are known of.
        items: rows of the items.
        vectors: their vectors now. If they are not those of training, the sources are one part.
    """
    experts = model.config.model.experts
    leads = (vectors - model.explainer.average_item).astype(np.float64)
    parts: Parts = defaultdict(lambda: np.zeros(len(items)))
    parts["", AVERAGE] += model.explainer.average_item.astype(np.float64) @ user.vector
    split = (np.split(whole, len(experts), -1) for whole in (user.interest, user.vector, leads))
    for number, (interest, both, lead) in enumerate(zip(*split, strict=True)):
        whole = lead @ interest
        sources = _source_parts(model.explainer.item_parts, number, items, interest)
        missing = whole - sum(sources.values())
        # a known item differs by rounding, which the last source takes; a changed one is a whole
        is_known = bool(sources) & (np.abs(missing) < ROUNDING * np.linalg.norm(interest))
        for source, amounts in sources.items():
            rest = missing if source == list(sources)[-1] else 0
            parts[experts[number], source] += np.where(is_known, amounts + rest, 0)
        parts[experts[number], WHOLE_ITEM] += np.where(is_known, 0, whole)
        if model.config.model.memory_decays:
            parts[experts[number], ITEM_MEMORY] += lead @ (both - interest)
    return parts


def _source_parts(
    known: ItemParts | None,
    number: int,
    items: Int[np.ndarray, " K"],
    interest: Float[np.ndarray, " D"],
) -> dict[str, Float[np.ndarray, " K"]]:
    """What each source of an expert adds to the leads of items as they were in training."""
    if known is None:
        return {}
    rows = np.array([expert == number for expert, _ in known.names])
    trained = known.vectors[rows][:, np.where(items < known.vectors.shape[1], items, 0)]
    amounts = (trained - known.means[rows][:, None]) @ interest.astype(np.float64)
    names = [source for expert, source in known.names if expert == number]
    return dict(zip(names, amounts, strict=True))


def history_amounts(
    model: "ModelCore", log: EventLog, items: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "U K"]:
    """What the history bias adds to the scores of some items for every user of a log."""
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    queries = Queries(np.arange(log.num_users), log.offsets[1:])
    return amounts_of(bias.adjustments(log, queries), log.num_users, items)


def history_parts(bias: HistoryBias, log: EventLog, items: Int[np.ndarray, " K"]) -> Parts:
    """What the history bias adds to the scores of some items for the only user of a log."""
    parts: dict[str, HistoryBias | ItemNeighbours] = {REPEAT_BIAS: HistoryBias(bias.repeats)}
    parts |= bias.neighbours
    return {("", name): part.of_events(log, items).sum(0) for name, part in parts.items()}


def score_parts(
    model: "TrainedModel", log: EventLog, user: UserVectors, items: Int[np.ndarray, " K"]
) -> Parts:
    """The parts of the scores of some items before a strategy, for the only user of a log."""
    vectors = np.asarray(model.index.items.vectors)[items]
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    popularity = model.index.items.biases[items].astype(np.float64)
    return {
        **vector_parts(model, user, items, vectors),
        ("", POPULARITY): popularity,
        **history_parts(bias, log, items),
    }


def contributions(model: "TrainedModel", log: EventLog, k: int) -> pl.DataFrame:
    """`TrainedModel.contributions` of the only user of a log.

    Raises:
        InputError: the model has items that training has not seen.
    """
    if model.catalog is not model.artifacts.catalog:
        raise InputError("contributions are those of the items of training; load the run anew")
    states = model.encoder.states(log)
    user = UserVectors(
        model.encoder.vectors(states)[0], model.explainer.memoryless.vectors(states)[0]
    )
    adjustments = model.ranker.adjustments(log)(np.arange(1))
    top = best_items(user.vector[None], model.index.items, k, adjustments)
    items = top.items[0][top.items[0] > 0]
    columns: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(items)))
    for (_, part), amounts in score_parts(model, log, user, items).items():
        columns[part] += amounts
    ranks = pl.Series("rank", np.arange(1, len(items) + 1, dtype=np.int32))
    scores = pl.Series("score", top.scores[0][: len(items)])
    return pl.DataFrame([ranks, *model.index.names(ITEM, items), scores]).with_columns(
        pl.Series(name, values)
        for name, values in columns.items()
        if name == AVERAGE or values.any()
    )


def plot_contributions_of(model: "TrainedModel", log: EventLog, path: Path, k: int) -> None:
    """`TrainedModel.plot_contributions` of the only user of a log."""
    from jaxrec.inference.plots import plot_contributions  # matplotlib is slow to import

    table = contributions(model, log, k)
    number = table.columns.index("score")
    parts = [part for part in table.columns[number + 1 :] if part != AVERAGE]
    plot_contributions(
        path,
        table.select(parts).to_numpy(),
        item_labels(table.select(table.columns[1:number])).to_list(),
        [part.replace("_", " ") for part in parts],
        f"What each part adds to the list of user {log.user_ids[0]}",
    )
