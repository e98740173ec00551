"""A small training objective: model, arrays and batch."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx

from jaxrec.config import Config, ModelConfig, TextConfig, TrainConfig
from jaxrec.inference.encoding import CatalogArrays
from jaxrec.models.inputs import Nodes, NodeVectors, Sizes
from jaxrec.models.recommender import (
    cast_products,
)
from jaxrec.models.text.bert import Bert, BertConfig
from jaxrec.models.text.finetuned import FinetunedText, TextTower
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.objective import StepInputs, objective
from jaxrec.training.tasks.base import ExpertBatch, TrainArrays
from jaxrec.training.tasks.first_item import FirstItem
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.training.tasks.next_item import NextItem
from jaxrec.types import NO_GAP, Batch

# items 0-7: 0 is unknown and 7 is padding; nodes 8-11: brands, of which 9 and 10 exist
SIZES = Sizes(num_items=8, num_nodes=12, num_relations=1, num_event_types=2, text_width=3)
CONFIG = Config(
    model=ModelConfig(experts=("id+graph+text",), hidden_size=8, num_layers=1),
    text=TextConfig(finetune_items=4),
    train=TrainConfig(loss_logits=8),
)


CRITERION = FullSoftmax(CONFIG.train.loss_logits)
ITEM_TASKS = (NextItem(CRITERION), FirstItem(CONFIG.train.auxiliary_weight))
BRANDS = jnp.array([0, 1, 1, 1, 2, 2, 0, 0])
KEY = jax.random.key(0)
TEXT_SIZE, TOKENS = 4, 5


def make_arrays(finetuned_text: FinetunedText | None = None) -> TrainArrays:
    items = np.flatnonzero(BRANDS)
    brands = 8 + np.asarray(BRANDS)[items]
    by_receiver = np.argsort(np.concatenate([items, brands]), kind="stable")
    graph = jraph.GraphsTuple(
        nodes=None,
        edges=jnp.asarray(np.repeat([1, 0], len(items))[by_receiver]),
        senders=jnp.asarray(np.concatenate([brands, items])[by_receiver]),
        receivers=jnp.asarray(np.concatenate([items, brands])[by_receiver]),
        globals=None,
        n_node=jnp.array([12]),
        n_edge=jnp.array([2 * len(items)]),
    )
    text = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    valid = jnp.array([False, *[True] * 6, False])
    brand = NextEntity(
        name="next_brand",
        criterion=CRITERION,
        weight=CONFIG.train.auxiliary_weight,
        entity_of_item=BRANDS,
        nodes=jnp.arange(8, 12),
        valid=jnp.array([False, True, True, False]),
    )
    return TrainArrays(
        catalog=CatalogArrays(Nodes(jnp.arange(8), jnp.arange(4), jnp.asarray(text)), graph, valid),
        candidates=valid,
        tasks=(*ITEM_TASKS, brand),
        masked_event_types=jnp.array([False, False]),
        finetuned_text=finetuned_text,
        repeats=False,
    )


def make_batch() -> Batch:
    """Two rows of six steps: histories of 3 + 2 events and of 4; the other steps are padding."""
    used = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    return Batch(
        users=np.array([[0, 0, 0, 1, 1, 0], [2, 2, 2, 2, 0, 0]]),
        items=np.array([[1, 2, 3, 4, 5, 0], [6, 1, 5, 2, 0, 0]]),
        event_types=np.array([[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]),
        gaps=np.where(used, 60, NO_GAP),
        starts=np.array([[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool),
        first_weights=np.array([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], np.float32),
        targets=np.array([[2, 3, 6, 5, 1, 0], [1, 5, 2, 4, 0, 0]]),
        target_event_types=np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]),
        target_gaps=np.full((2, 6), 60),
        weights=np.array([[1, 1, 0, 1, 2, 0], [1, 0, 1, 1, 0, 0]], np.float32),
    )


def expert_batch(expert, arrays, batch, items=None, target_event_types=None) -> ExpertBatch:
    """Inputs of a task that reads no user vectors."""
    vectors = jnp.zeros((8, CONFIG.model.hidden_size)) if items is None else items
    users = jnp.zeros((*batch.items.shape, CONFIG.model.hidden_size))
    if target_event_types is None:
        target_event_types = jnp.asarray(batch.target_event_types)
    nodes = NodeVectors((vectors,), 8)
    return ExpertBatch(expert, arrays, batch, nodes, users, target_event_types, KEY)


def make_tower() -> TextTower:
    """The last of two layers of a text encoder."""
    config = BertConfig(
        vocab_size=10,
        hidden_size=TEXT_SIZE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=TOKENS,
    )
    return TextTower(Bert(config, rngs=nnx.Rngs(1)), 1)


def make_finetuned_text() -> FinetunedText:
    """What the layer reads of the eight items."""
    random = np.random.default_rng(3)
    return FinetunedText(
        hidden=jnp.asarray(random.normal(size=(8, TOKENS, TEXT_SIZE)), jnp.float16),
        mask=jnp.ones((8, TOKENS), bool),
        mean=jnp.zeros(TEXT_SIZE),
        projection=jnp.asarray(random.normal(size=(TEXT_SIZE, 3)), jnp.float32),
    )


@partial(jax.jit, static_argnums=0)
def jitted_objective(graphdef, params, arrays, batch):
    model = nnx.merge(graphdef, params)
    text = arrays.catalog.nodes.text
    inputs = StepInputs(arrays, text, batch, KEY, finetune_items=CONFIG.text.finetune_items)
    return objective(model, inputs)


@partial(jax.jit, static_argnums=(0, 4))
def loss_and_gradients(graphdef, params, arrays, batch, dtype=jnp.float32):
    def loss_of(params):
        return jitted_objective(graphdef, cast_products(params, dtype), arrays, batch)

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def parts_of(model, arrays, batch):
    loss, parts = jitted_objective(*nnx.split(model), arrays, batch)
    return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}
