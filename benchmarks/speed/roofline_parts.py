"""The parts of a training step, each as a compiled function that runs alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxrec.models.inputs import Events, Nodes
from jaxrec.models.items.encoder import ItemEncoder
from jaxrec.models.items.text import TextSource
from jaxrec.models.recommender import Expert, cast_products
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm import LSTM
from jaxrec.training.context import TrainContext
from jaxrec.training.losses.base import mean_of_sum
from jaxrec.training.prefetch import prefetch
from jaxrec.training.step import TrainState
from jaxrec.training.tasks.build import full_softmax
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.types import Batch

ENCODING, GRAPH, EVENTS = "item encoding", "graph", "event vectors"
RECURRENCE, LAYERS = "LSTM", "rest of the layers"
LOSS, AUXILIARY, OPTIMIZER = "loss", "auxiliary losses", "optimizer"
INPUT = "input, beside the step"


@dataclass(frozen=True)
class Work:
    """A function to time, and its cost."""

    part: str
    run: Callable[[], object]
    flops: float = 0
    moved: float = 0  # bytes


@dataclass(frozen=True)
class Call:
    """`function(module, *inputs, *constants)`, to be run forward and backward.

    Attributes:
        trained: attributes of the module that get a gradient.
        inputs: arrays that get a gradient.
        constants: arrays that get none.
    """

    function: Callable
    module: nnx.Module
    trained: tuple[str, ...] = ()
    inputs: tuple = ()
    constants: tuple = ()


class NoLSTM(nnx.Module):
    """Replaces the LSTM of a layer, so that the rest of the layer can be timed."""

    def scan(self, x, masks, state):
        """The inputs and the state as they are."""
        return x, state


def step_work(context: TrainContext, state: TrainState) -> list[Work]:
    """All parts of a step; parts of several experts and layers have the same names."""
    batch, _ = next(prefetch(context, 0, range(1)))
    dtype = jnp.bfloat16 if context.config.train.bf16 else jnp.float32
    params = cast_products(state.params, dtype)
    nodes = replace(context.arrays.catalog.nodes, text=state.text)
    works = []
    for expert in context.definition.merge(params).experts:
        key = jax.random.key(0)
        vectors = expert.encode_nodes(nodes, context.arrays.catalog.graph, key)
        items = vectors[: len(nodes.items)]
        events = expert.event_vectors(items, events_of(batch), key)
        before = expert.sequence.initial_state(len(events))
        outputs, _ = expert.sequence.scan(before, events, starts=batch.starts, key=key)
        users = expert.user_vectors(outputs, batch.target_event_types)
        works += [
            *node_work(context, expert, nodes, vectors, key),
            *event_work(expert, items, batch, key),
            *sequence_work(expert, events, batch, key),
            *loss_work(context, expert, users, vectors, batch),
        ]
    make_input = Work(INPUT, lambda: list(prefetch(context, 0, range(1))))
    return [*works, optimizer_work(context, state), make_input]


def gradient_work(
    part: str, call: Call, *, rows: int = 0, flops: float = 0, unread: float = 0
) -> Work:
    """A call and its gradient. All gradients are dense.

    Args:
        rows: number of rows that every trained matrix multiplies, in three products.
        flops: added to those of these products.
        unread: bytes of the inputs that the forward pass does not read.
    """
    graphdef, params, rest = nnx.split(call.module, lambda path, _: path[0] in call.trained, ...)

    def forward(trained, constants):
        params, inputs = trained
        return call.function(nnx.merge(graphdef, params, rest), *inputs, *constants)

    @jax.jit
    def forward_and_backward(trained, constants, cotangents):
        outputs, pullback = jax.vjp(lambda t: forward(t, constants), trained)
        return outputs, pullback(cotangents)

    trained = (params, call.inputs)
    outputs = jax.eval_shape(forward, trained, call.constants)
    cotangents = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), outputs)
    moved = 2 * num_bytes(trained) + num_bytes(call.constants) + 2 * num_bytes(outputs) - unread
    flops += 6 * rows * matrix_entries(params)
    run = partial(forward_and_backward, trained, call.constants, cotangents)
    return Work(part, run, flops, moved)


def node_work(
    context: TrainContext, expert: Expert, nodes: Nodes, vectors: Array, key: Array
) -> Iterator[Work]:
    """Item encoding without the graph, and the graph."""
    rows, graph = len(nodes.items), context.arrays.catalog.graph
    encoder = expert.item_encoder
    without_graph = nnx.clone(encoder)
    without_graph.graph_encoder = without_graph.context = None
    # text vectors get no gradient, so the first matrix of their source has two products, not three
    texts = [source for source in encoder.sources if isinstance(source, TextSource)]
    saved = sum(2 * rows * source.hidden.kernel[...].size for source in texts)
    read_nodes = nodes if texts else replace(nodes, text=nodes.text[:, :0])

    def encode(encoder: ItemEncoder, nodes: Nodes, key: Array) -> Array:
        return encoder(nodes, graph, key)

    def pass_messages(encoder: ItemEncoder, features: Array, graph) -> Array:
        return encoder.graph_encoder(features, graph)

    trained = ("sources", "entity_table")
    call = Call(encode, without_graph, trained, constants=(read_nodes, key))
    yield gradient_work(ENCODING, call, rows=rows, flops=-saved)
    if encoder.graph_encoder is not None:
        call = Call(pass_messages, encoder, ("graph_encoder",), (vectors,), (graph,))
        yield gradient_work(GRAPH, call, rows=len(vectors))


def event_work(expert: Expert, items: Array, batch: Batch, key: Array) -> Iterator[Work]:
    """Event vectors."""
    unread = (len(items) - len(np.unique(batch.items))) * items[0].nbytes
    trained, constants = ("event_type_table", "gap_table"), (events_of(batch), key)
    call = Call(Expert.event_vectors, expert, trained, (items,), constants)
    yield gradient_work(EVENTS, call, unread=unread)


def sequence_work(expert: Expert, events: Array, batch: Batch, key: Array) -> Iterator[Work]:
    """The LSTMs, and the layers without them up to the user vectors."""
    rows = batch.items.size

    def scan(lstm: LSTM, x: Array, starts: Array) -> Array:
        zeros = jnp.zeros_like(x[:, 0])
        return lstm.scan(x, Masks(starts.T, None), (zeros, zeros))[0]

    def encode_users(expert: Expert, events: Array, starts: Array, targets: Array, key: Array):
        before = expert.sequence.initial_state(len(events))
        outputs, _ = expert.sequence.scan(before, events, starts=starts, key=key)
        return expert.user_vectors(outputs, targets)

    for layer in expert.sequence.layers:
        inputs = (layer.lstm_norm(events),)
        call = Call(scan, layer.lstm, ("input", "recurrent"), inputs, (batch.starts,))
        yield gradient_work(RECURRENCE, call, rows=rows)
    without_lstm = nnx.clone(expert)
    for layer in without_lstm.sequence.layers:
        layer.lstm = NoLSTM()
    trained = ("sequence", "target_type_table", "user_norm", "user_output", "log_scale")
    constants = (batch.starts, batch.target_event_types, key)
    call = Call(encode_users, without_lstm, trained, (events,), constants)
    yield gradient_work(LAYERS, call, rows=rows)


def loss_work(
    context: TrainContext, expert: Expert, users: Array, vectors: Array, batch: Batch
) -> Iterator[Work]:
    """The losses of next items and of their entities."""
    arrays, criterion = context.arrays, full_softmax(context.config.train)

    def item_loss(_, users, items, targets, weights, valid):
        return mean_of_sum(criterion(users, items, targets, weights, valid), weights)

    def entity_loss(_, users, vectors, targets, weights, task):
        entities = task.entity_of_item[targets]
        weights = weights * (entities > 0)
        return item_loss(None, users, vectors[task.nodes], entities, weights, task.valid)

    def work(part: str, function: Callable, vectors: Array, constant, candidates: int) -> Work:
        constants = (batch.targets, batch.weights, constant)
        call = Call(function, expert, (), (users, vectors), constants)
        unread = (len(vectors) - candidates) * vectors[0].nbytes
        return gradient_work(part, call, flops=6 * users.size * candidates, unread=unread)

    count = len(arrays.candidates)
    yield work(LOSS, item_loss, vectors[:count], arrays.candidates, count)
    for task in arrays.tasks:
        if isinstance(task, NextEntity):
            yield work(AUXILIARY, entity_loss, vectors, task, len(task.nodes))


def optimizer_work(context: TrainContext, state: TrainState) -> Work:
    """The update of all parameters."""
    changed = jax.tree.map(jnp.copy, (state.params, state.opt_state))

    @partial(jax.jit, donate_argnums=0)
    def update(changed, gradients):
        params, opt_state = changed
        updates, opt_state = context.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    moved = 2 * num_bytes(changed) + num_bytes(state.params)
    return Work(OPTIMIZER, in_place(update, changed, state.params), moved=moved)


def in_place(update: Callable, changed, constant) -> Callable[[], object]:
    """Runs `changed = update(changed, constant)`, as a training step that donates its state."""

    def run() -> object:
        nonlocal changed
        changed = update(changed, constant)
        return changed

    return run


def events_of(batch: Batch) -> Events:
    """The events of a batch without their targets."""
    return Events(batch.items, batch.event_types, batch.gaps)


def matrix_entries(params: nnx.State) -> int:
    """Entries of all matrices that positions or nodes are multiplied with."""
    matrices = ("kernel", "recurrent")
    return sum(leaf[...].size for path, leaf in nnx.to_flat_state(params) if path[-1] in matrices)


def num_bytes(tree) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
