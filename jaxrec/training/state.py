"""What training changes, and what it does not: made from a configuration and its data."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.config import Config, TrainConfig
from jaxrec.data.dataset import Dataset
from jaxrec.data.graph import first_neighbours
from jaxrec.data.packing import Packing
from jaxrec.errors import DataError
from jaxrec.evaluation.protocol import item_counts, masked_event_types
from jaxrec.inference.encoding import catalog_arrays, encode_catalog
from jaxrec.inference.text_features import ItemText, item_text
from jaxrec.models.recommender import ModelDef, Recommender, Sizes, expert_sources
from jaxrec.sharding import make_mesh, replicated, state_shardings
from jaxrec.training import logging as report
from jaxrec.training.objective import Auxiliary, TrainArrays
from jaxrec.types import Catalog


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState
    text: Float[Array, "I Dt"]  # whitened vectors of the items


@dataclass(frozen=True)
class TrainContext:
    """Everything that training does not change."""

    config: Config
    dataset: Dataset
    text: ItemText
    mesh: Mesh
    packing: Packing
    definition: ModelDef
    optimizer: optax.GradientTransformation
    arrays: TrainArrays

    @property
    def valid(self) -> Bool[np.ndarray, " I"]:
        """Rows of the item block that are items."""
        return np.asarray(self.arrays.catalog.valid)

    @cached_property
    def counts(self) -> Float[np.ndarray, " I"]:
        """How often the rows of the item block were chosen in training."""
        split = self.dataset.split
        return item_counts(split.log, split.in_training & self.dataset.positives, len(self.valid))


def make_context(config: Config, dataset: Dataset) -> TrainContext:
    """Everything that follows from the configuration and the data."""
    train = config.train
    mesh = make_mesh(train.item_shards)
    text = item_text(dataset.catalog.items, config)
    experts = live_experts(config, dataset, text)
    config = replace(config, model=replace(config.model, experts=experts))
    packing = make_packing(config, dataset)
    model = nnx.eval_shape(lambda: build_model(config, dataset, text))
    arrays = jax.device_put(train_arrays(config, dataset, text), replicated(mesh))
    optimizer = make_optimizer(train, packing.steps_per_epoch)
    return TrainContext(
        config, dataset, text, mesh, packing, ModelDef(nnx.graphdef(model)), optimizer, arrays
    )


def live_experts(config: Config, dataset: Dataset, text: ItemText) -> tuple[str, ...]:
    """The experts that the data have a source for; others would give every item the same score.

    Raises:
        DataError: there are none.
    """
    known = {"id"}
    if len(dataset.catalog.graph.heads):
        known.add("graph")
    if text.whitening is not None:
        known.add("text")
    experts = config.model.experts
    live = tuple(name for name in experts if known & set(expert_sources(name)))
    if not live:
        raise DataError(
            f"the data hold nothing for the experts {', '.join(experts)}; give items a text or "
            "columns for the graph, or add id to model.experts"
        )
    for name in experts:
        if name not in live:
            report.note(f"the data hold nothing for the expert {name}, so it is left out")
    return live


def make_packing(config: Config, dataset: Dataset) -> Packing:
    """The batches of the training events."""
    split, train = dataset.split, config.train
    return Packing(
        split.log,
        split.train_lengths,
        dataset.target_weights,
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        burn_in=train.burn_in,
        seed=train.seed,
    )


def model_sizes(dataset: Dataset, text: ItemText) -> Sizes:
    """What the data decide of the model's shapes."""
    graph = dataset.catalog.graph
    return Sizes(
        num_items=graph.types[0].padded_size,
        num_nodes=graph.num_nodes,
        num_relations=len(graph.relations),
        num_event_types=len(dataset.split.log.event_type_names),
        text_width=text.vectors.shape[1],
    )


def run_artifacts(context: TrainContext) -> RunArtifacts:
    """What a run keeps beside its parameters."""
    dataset = context.dataset
    return RunArtifacts(
        catalog=dataset.catalog,
        counts=context.counts[: dataset.catalog.num_items],
        with_ids=np.asarray(context.arrays.candidates)[: dataset.catalog.num_items],
        event_type_names=dataset.split.log.event_type_names,
        sizes=model_sizes(dataset, context.text),
        whitening=context.text.whitening,
    )


def build_model(config: Config, dataset: Dataset, text: ItemText) -> Recommender:
    """A recommender with initial parameters."""
    rngs = nnx.Rngs(config.train.seed)
    return Recommender(config.model, model_sizes(dataset, text), rngs, text.tower)


def make_optimizer(config: TrainConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and cosine decay to the last epoch."""
    total = config.epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, total // 2),
        decay_steps=total,
        end_value=config.learning_rate * config.final_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )


def train_arrays(config: Config, dataset: Dataset, text: ItemText) -> TrainArrays:
    """What a training step reads and does not change."""
    catalog, split = dataset.catalog, dataset.split
    trained = item_counts(split.log, split.in_training, catalog.num_items) > 0
    trained[0] = False
    arrays = catalog_arrays(catalog, text.vectors, trained)
    padding = catalog.graph.types[0].padded_size - len(trained)
    present = {node_type.name for node_type in catalog.graph.types}
    masked = masked_event_types(config.evaluation.mask, dataset.split.log.event_type_names)
    return TrainArrays(
        catalog=arrays,
        candidates=jnp.asarray(np.pad(trained, (0, padding))),
        auxiliary={
            name: _auxiliary(catalog, name, padding)
            for name in config.train.auxiliary
            if name in present
        },
        masked_event_types=jnp.asarray(masked),
        finetuned_text=text.live,
        repeats=not masked.all(),
    )


def initial_state(context: TrainContext) -> TrainState:
    """A new state, laid out on the mesh."""
    return jax.jit(lambda: _new_state(context), out_shardings=state_layout(context)[1])()


def state_layout(context: TrainContext) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of a train state."""
    shapes = jax.eval_shape(lambda: _new_state(context))
    return shapes, state_shardings(shapes, context.mesh)


def _new_state(context: TrainContext) -> TrainState:
    params = nnx.state(build_model(context.config, context.dataset, context.text))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=context.optimizer.init(params),
        text=context.arrays.catalog.nodes.text,
    )


def catalog_vectors(context: TrainContext, state: TrainState) -> Float[Array, "N 1+ED"]:
    """Vectors of all nodes under a state."""
    nodes = replace(context.arrays.catalog.nodes, text=state.text)
    return encode_catalog(
        context.definition, state.params, replace(context.arrays.catalog, nodes=nodes)
    )


def _auxiliary(catalog: Catalog, name: str, padding: int) -> Auxiliary:
    node_type = catalog.graph.type(name)
    return Auxiliary(
        of_item=jnp.asarray(np.pad(first_neighbours(catalog.graph, name), (0, padding))),
        nodes=jnp.asarray(node_type.offset + np.arange(node_type.padded_size)),
        valid=jnp.asarray(node_type.valid),
    )
