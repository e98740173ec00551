"""Rough memory and time of a training, before it begins."""

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrec.config import Config, ModelConfig
from jaxrec.types import padded_size

BASE_BYTES = 1.2e9  # the process with jax and its compiler
COPIES = 4  # of every parameter: itself, its gradient and two moments of AdamW
BYTES_PER_EVENT = 13 + 8  # item, type and time; the order of an epoch
# A block with an LSTM multiplies with 17 D^2 numbers, the others with up to as many, and the
# backward pass costs twice the forward pass.
BLOCK_FLOPS = 2 * 17 * 3
# Of the rate of a matrix product: .25 with hidden size 64, .45 with 128 (two CPU cores)
EFFICIENCY = 0.4
SIZE = 1024  # of the matrices that measure this machine


def train_bytes(
    config: Config, num_items: int, num_events: int, vector_widths: Mapping[str, int] | None = None
) -> float:
    """Bytes of memory that training needs, without the tables while they are read.

    Args:
        vector_widths: numbers of the vectors of each column that the model reads.
    """
    model = config.model
    width = model.hidden_size * len(model.experts)
    texts = config.text.whiten * ("text" in model.sources)
    widths = (vector_widths or {}).values()
    # in the table, as an array while they are whitened, and whitened
    vectors = sum(2 * given + min(given, config.text.whiten) + 1 for given in widths)
    copies = COPIES - config.train.sparse_rows  # the gradient then has the rows of a step
    rows = padded_size(num_items) * (copies * width + texts + vectors) * 4
    return BASE_BYTES + rows + BYTES_PER_EVENT * num_events


def train_seconds(config: Config, num_items: int, num_events: int) -> float:
    """Seconds of all epochs on this machine, after the compilation."""
    model = config.model
    size = model.hidden_size
    softmax = 6 * scored_items(config, num_items) * size
    flops: float = len(model.experts) * (softmax + model.num_layers * BLOCK_FLOPS * size**2)
    # every step encodes the catalogue: forward, again for the gradient, and twice backward
    catalogue = padded_size(num_items) * graph_products(model) * 2 * size**2 * 4
    with_graph = sum("graph" in expert.split("+") for expert in model.experts)
    flops += with_graph * catalogue / (config.train.batch_size * config.train.sequence_length)
    return config.train.epochs * num_events * flops / (EFFICIENCY * matrix_rate())


def scored_items(config: Config, num_items: int) -> int:
    """The most items that a step scores."""
    train, rows = config.train, padded_size(num_items)
    if train.loss == "full_softmax":
        return rows
    return min(rows, train.batch_size * (train.sequence_length + 1) + train.negatives)


def graph_products(model: ModelConfig) -> int:
    """Products of a vector with a matrix of D x D entries that a node needs to read the graph."""
    layer = {"gin": 2, "residual": 0, "sage": 2, "transformer": 8}[model.graph_layer]
    layer += model.aggregate == "max"
    layers = 0 if model.context == "replace" else layer * model.num_graph_layers
    if model.context == "off":
        return layers
    # keys and values of every token; in all blocks but the last, every token also gets an output
    tokens = 2 + model.context_neighbours
    return layers + 8 * tokens * (model.context_layers - 1) + 2 * tokens + 7


def matrix_rate() -> float:
    """Floating-point operations per second of a matrix product on the default device."""
    matrix = jnp.ones((SIZE, SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / min(seconds)
