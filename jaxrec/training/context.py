"""What stays constant while a model trains."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxrec.artifacts.catalog_files import NEVER
from jaxrec.artifacts.run_directory import COOCCURRENCE, SIMILAR_TEXT, RunArtifacts
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, event_weight
from jaxrec.data.features import feature_arrays, missing_notes, missing_shares, unused_notes
from jaxrec.data.packing import Packing
from jaxrec.errors import DataError
from jaxrec.evaluation.calibration import Correction
from jaxrec.evaluation.cooccurrence import GRID
from jaxrec.evaluation.neighbours import NeighbourFit, NeighbourTable
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.similar_text import similar_texts
from jaxrec.inference.text_features import ItemText, item_text
from jaxrec.models.build import model_layout
from jaxrec.models.inputs import Sizes
from jaxrec.models.items.build import expert_sources
from jaxrec.models.items.features import FeatureMaps, fit_features
from jaxrec.models.items.id import rows_of_ids
from jaxrec.models.recommender import ModelDef
from jaxrec.models.text.finetuned import TextTower
from jaxrec.processes import refuse_unequal
from jaxrec.ranking.history_bias import ItemNeighbours
from jaxrec.sharding import (
    USERS,
    make_mesh,
    process_copy,
    process_mesh,
    put,
    shardings,
    without_rows_by_item,
)
from jaxrec.training.arrays import train_arrays
from jaxrec.training.batches import make_packing
from jaxrec.training.item_shards import Held, fitting_mesh
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.privacy.budget import Budget, make_budget
from jaxrec.training.privacy.sampling import UserSampling
from jaxrec.training.samplers import sampling_notes
from jaxrec.training.tasks.base import TrainArrays


@dataclass(frozen=True)
class StepContext:
    """What decides a training step. The arrays may be shapes only, to compile without data."""

    config: Config  # `model.experts` holds only the experts that the data have a source for
    sizes: Sizes
    tower: TextTower | None  # the layers of the text encoder that train
    mesh: Mesh
    definition: ModelDef
    optimizer: optax.GradientTransformation
    arrays: TrainArrays  # on the devices, an argument of every step
    budget: Budget | None = field(default=None, kw_only=True)  # of a private training


@dataclass(frozen=True)
class TrainContext(StepContext):
    """Everything that training does not change."""

    dataset: Dataset
    text: ItemText  # item texts as the pretrained encoder sees them
    features: FeatureMaps  # what vector columns and numbers go through
    packing: Packing | UserSampling  # the batches of an epoch
    epochs: int  # most epochs to train
    notes: tuple[str, ...]  # to print, such as an expert that is left out
    shops: dict[str, "TrainContext"] = field(default_factory=dict)  # see `shop_contexts`

    @property
    def valid(self) -> Bool[np.ndarray, " I"]:
        """Rows of the item block that are items, not padding."""
        return np.asarray(self.arrays.catalog.valid)

    @property
    def padded_text(self) -> Float[np.ndarray, "I text"]:
        """The whitened text vectors of all rows, before any training."""
        missing = self.sizes.num_items - len(self.text.vectors)
        return np.pad(self.text.vectors, ((0, missing), (0, 0)))

    @cached_property
    def counts(self) -> Float[np.ndarray, " I"]:
        """Positive training events of every row of the item block."""
        numbers = self.dataset.counts.positive
        return np.pad(numbers, (0, len(self.valid) - len(numbers))).astype(np.float32)

    @cached_property
    def protocol(self) -> Protocol:
        """What baselines learn from, and how they are ranked."""
        dataset, config = self.dataset, self.config.evaluation
        return Protocol(dataset.split, config, self.valid, dataset.positives, self.counts)

    def neighbours(self, correction: Correction) -> dict[str, ItemNeighbours]:
        """The item neighbours that a correction adds to scores, by name."""
        names = self.dataset.split.log.event_type_names
        counted = np.array([event_weight(self.config, name) > 0 for name in names])
        tables = {name: self._table(name, fit) for name, fit in correction.neighbours.items()}
        return {
            name: table.fitted(correction.neighbours[name], counted)
            for name, table in tables.items()
            if table is not None
        }

    def _table(self, name: str, fit: NeighbourFit) -> NeighbourTable | None:
        if name == COOCCURRENCE:
            return self.protocol.cooccurrence.strongest(
                fit.popularity_exponent, self.config.model.cooccurrence_users
            )
        return self.similar_texts

    @property
    def neighbour_exponents(self) -> dict[str, tuple[float, ...]]:
        """The item neighbours that the options ask for, and their exponents of popularity."""
        options, exponents = self.config.model, {}
        if options.cooccurrence:
            exponents[COOCCURRENCE] = GRID["popularity_exponent"]
        if options.similar_text and self.similar_texts is not None:
            exponents[SIMILAR_TEXT] = (0.0,)
        return exponents

    @cached_property
    def similar_texts(self) -> NeighbourTable | None:
        """The items with the most similar texts, as the pretrained encoder sees them."""
        return similar_texts(self.text.vectors, self.valid)

    @cached_property
    def id_rows(self) -> Int[np.ndarray, " n"]:
        """The row of every item in the id tables."""
        return np.asarray(self.arrays.catalog.nodes.items)[: self.dataset.catalog.num_items]

    @cached_property
    def on_process(self) -> "TrainContext":
        """The same context on this process's devices alone; see `process_local`.

        What lies along `items` has no rows then, unless there are several shops.
        """
        if self.shops:
            shops = {name: shop._copy(shop.arrays) for name, shop in self.shops.items()}
            return replace(self._copy(self.arrays), shops=shops)
        return self._copy(without_rows_by_item(self.arrays))

    def _copy(self, arrays: TrainArrays) -> "TrainContext":
        own = process_copy(arrays, self.mesh)
        return replace(self, mesh=process_mesh(self.mesh), arrays=own)


def make_context(
    config: Config,
    dataset: Dataset,
    trained: RunArtifacts | None = None,
    text_of: RunArtifacts | None = None,
) -> TrainContext:
    """The context of a configuration and its data.

    Args:
        trained: of a run to resume or to go on from, whose text vectors stay comparable.
        text_of: of a run to take parameters from, whose text vectors alone stay comparable.

    Raises:
        RunError: the text encoder is not that of the earlier run.
        DataError: the data have no source for any expert, or a warm start would lose one.
    """
    mesh = make_mesh(config.train.item_shards or 1)
    earlier = trained or text_of
    encoder, whitening = (earlier.text_encoder, earlier.whitening) if earlier else ("", None)
    text = item_text(dataset.catalog.items, config, encoder, whitening)
    features, notes = _features(config, dataset, trained)
    config, without = _with_usable_experts(config, dataset, text, features)
    users = dataset.split.log.num_users
    budget = make_budget(config.train, users) if dataset.is_private else None
    packing = make_packing(config, dataset, budget, mesh.shape[USERS])
    epochs, rate = schedule(config)
    train = replace(config.train, learning_rate=rate)
    sizes = model_sizes(config, dataset, text, features)
    definition, params = model_layout(config, sizes, text.tower)
    optimizer = make_optimizer(train, epochs * packing.steps_per_epoch)
    arrays = train_arrays(config, dataset, text, features, packing)
    refuse_unequal((arrays, text.vectors, dataset.split.log.offsets))
    if not config.train.item_shards and budget is None:  # the batches of a budget know the mesh
        vectors = jax.ShapeDtypeStruct((sizes.num_items, sizes.text_width), jnp.float32)
        opt_state = jax.eval_shape(optimizer.init, params)
        mesh, chosen = fitting_mesh(mesh, Held(params, opt_state, vectors, arrays))
        notes += chosen
    return TrainContext(
        config=config,
        sizes=sizes,
        tower=text.tower,
        dataset=dataset,
        text=text,
        features=features,
        mesh=mesh,
        packing=packing,
        definition=definition,
        optimizer=optimizer,
        arrays=put(arrays, shardings(arrays, mesh)),
        epochs=epochs if packing.num_rows else 0,
        budget=budget,
        notes=(
            *notes,
            *without,
            *_no_links(config, dataset),
            *_first_training(config),
            *sampling_notes(config),
        ),
    )


def _with_usable_experts(
    config: Config, dataset: Dataset, text: ItemText, features: FeatureMaps
) -> tuple[Config, list[str]]:
    """The options without experts that lack a source, and a note on each of these."""
    experts = usable_experts(config, dataset, text, features)
    missing = [name for name in config.model.experts if name not in experts]
    if missing and dataset.carried is not None:
        raise DataError(
            f"the data have no source for {', '.join(missing)} of model.experts, which the base of "
            "the warm start has; give the columns that it had, or train without --from"
        )
    notes = [f"the data have no source for the expert {n}, so it is left out" for n in missing]
    return replace(config, model=replace(config.model, experts=experts)), notes


def _no_links(config: Config, dataset: Dataset) -> list[str]:
    off = config.train.link_weight and not len(dataset.catalog.graph.heads)
    return ["the data have no graph, so train.link_weight has no effect"] if off else []


def _features(
    config: Config, dataset: Dataset, trained: RunArtifacts | None
) -> tuple[FeatureMaps, list[str]]:
    """What vector columns and numbers go through, and notes on them."""
    items, columns = dataset.catalog.items, dataset.features
    earlier = None if trained is None else trained.features
    widths = None if earlier is None else earlier.raw_widths
    arrays = feature_arrays(items[1:], columns, widths)
    shares = missing_shares(arrays)
    notes = unused_notes(items, columns, config.data.numeric_columns) + missing_notes(shares)
    if earlier is not None:
        names = (*earlier.vectors, *earlier.numbers)
        if lost := [name for name in names if shares.get(name, 1.0) == 1]:
            raise DataError(
                f"items: the run reads {', '.join(lost)}, but no item has a value there; give the "
                "column that it had"
            )
        return earlier, notes
    maps = fit_features(arrays, dataset.trained[1:], config.text.whiten)
    if constant := [name for name in columns.vectors if name not in maps.vectors]:
        raise DataError(
            f"items, column {constant[0]!r}: it holds no two different vectors; take it out of "
            "the items, or out of model.experts"
        )
    return maps, notes


def usable_experts(
    config: Config, dataset: Dataset, text: ItemText, features: FeatureMaps
) -> tuple[str, ...]:
    """The experts with a source in the data; any other would give all items the same score."""
    sources = {"id"}
    if len(dataset.catalog.graph.heads):
        sources.add("graph")
    if text.whitening is not None:
        sources.add("text")
    sources |= {*features.vectors, *(("numbers",) if features.numbers else ())}
    return experts_with_source(config.model.experts, sources, dataset.features.vectors)


def experts_with_source(
    experts: Sequence[str], sources: Collection[str], columns: Sequence[str]
) -> tuple[str, ...]:
    """The experts that read one of the sources; `columns` are those of vectors."""
    usable = tuple(n for n in experts if not set(sources).isdisjoint(expert_sources(n, columns)))
    if not usable:
        raise DataError(
            f"the data have no source for the experts {', '.join(experts)}; give items a text or "
            "graph columns, or add id to model.experts"
        )
    return usable


def schedule(config: Config) -> tuple[int, float]:
    """The number of epochs and the peak learning rate."""
    start, train = config.warm_start, config.train
    if start.base and not _is_first(config):
        return start.epochs, start.learning_rate
    return train.epochs, train.learning_rate


def _is_first(config: Config) -> bool:
    """Whether a warm start is the first training of its base on the events of its shop."""
    return bool(config.warm_start.base) and config.warm_start.since == str(NEVER)


def _first_training(config: Config) -> list[str]:
    if not _is_first(config):
        return []
    return [
        "the base has seen no event of this shop, so train.epochs and train.learning_rate hold "
        "here, and not those of warm_start"
    ]


def model_sizes(config: Config, dataset: Dataset, text: ItemText, features: FeatureMaps) -> Sizes:
    """The shapes of the model that depend on the data."""
    graph, least = dataset.catalog.graph, config.model.min_events_for_id
    return Sizes(
        num_items=graph.types[0].padded_size,
        num_nodes=graph.num_nodes,
        num_relations=len(graph.relations),
        num_event_types=len(dataset.split.log.event_type_names),
        text_width=text.vectors.shape[1],
        vectors=features.widths,
        numbers=tuple(features.numbers),
        num_ids=rows_of_ids(dataset.with_own_id(least)) if least else 0,
    )
