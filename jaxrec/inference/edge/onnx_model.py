"""The model with the LSTM as two ONNX graphs: one event into the state, and a list of a state.

The equations are those of `jaxrec.models`; a test holds the graphs against them. A converter from
JAX (jax2onnx 0.17) does not install beside the version of Orbax that jaxrec needs.
"""

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.config import ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.inference.edge.directory import VectorFile
from jaxrec.inference.edge.onnx_graph import Graph
from jaxrec.models.layers import Linear
from jaxrec.models.recommender import GAP_BUCKETS, Expert, Recommender
from jaxrec.models.sequence.blocks import StackedEncoder
from jaxrec.models.sequence.item_memory import ItemMemory
from jaxrec.models.sequence.lstm import LSTMBlock
from jaxrec.ranking.codes import encode_rows
from jaxrec.types import ANY_EVENT_TYPE

POOL = 4  # times as many items as the list holds are scored exactly after a search by codes


def check_supported(config: ModelConfig) -> None:
    """Raise a ConfigError for a sequence encoder that has no ONNX graph."""
    if config.sequence != "lstm":
        raise ConfigError(
            f"ONNX export knows the sequence encoder lstm, not {config.sequence}; "
            "export with --formats jax"
        )


def update_model(recommender: Recommender, config: ModelConfig, width: int) -> bytes:
    """(state [B, S], item_vector [B, F], event_type [B], gap [B]) -> new_state [B, S]."""
    graph = Graph()
    sizes = _state_sizes(config)
    experts = len(recommender.experts)
    state = graph.input("state", np.float32, ("users", experts * sum(sizes)))
    vector = graph.input("item_vector", np.float32, ("users", width))
    event_type = graph.input("event_type", np.int64, ("users",))
    gap = graph.input("gap", np.int64, ("users",))
    vectors = graph.split(vector, *[config.hidden_size] * experts)
    parts = graph.split(state, *sizes * experts)
    after = []
    for number, expert in enumerate(recommender.experts):
        x = graph.op("Mul", vectors[number], graph.constant(config.hidden_size**0.5))
        x = _plus_row(graph, x, expert.event_type_table[...], event_type)
        if config.time_gaps:
            x = _plus_row(graph, x, expert.gap_table[...], _gap_bucket(graph, gap))
        own = parts[number * len(sizes) : (number + 1) * len(sizes)]
        after += _expert_update(graph, expert, config, x, own)
    graph.op("Concat", *after, axis=1, name="new_state")
    return graph.model({"new_state": (np.float32, ("users", experts * sum(sizes)))})


def recommend_model(
    recommender: Recommender,
    config: ModelConfig,
    file: VectorFile,
    bias: Float[np.ndarray, " I"],
    *,
    search_codes: bool,
) -> bytes:
    """The k best items of one state.

    Inputs: state [1, S], target_event_type [1] (-1: any), time_since_last [1] (s; -1: unknown),
    adjusted_items [X], adjustments [X] (added to the scores of these items), k [1]. Outputs:
    items [k] (rows of the vectors), scores [k].

    Args:
        bias: added to the scores of every state.
        search_codes: search by 8-bit codes, then score `POOL` times k items exactly.
    """
    graph = Graph()
    sizes = _state_sizes(config)
    experts = len(recommender.experts)
    state = graph.input("state", np.float32, (1, experts * sum(sizes)))
    target = graph.input("target_event_type", np.int64, (1,))
    seconds = graph.input("time_since_last", np.int64, (1,))
    items = graph.input("adjusted_items", np.int64, ("adjusted",))
    adjustments = graph.input("adjustments", np.float32, ("adjusted",))
    k = graph.input("k", np.int64, (1,))
    row = graph.op("Sub", target, graph.integers(ANY_EVENT_TYPE))
    bucket = _gap_bucket(graph, seconds)
    parts = graph.split(state, *sizes * experts)
    users = []
    for number, expert in enumerate(recommender.experts):
        output = parts[(number + 1) * len(sizes) - 1]
        users.append(_user_vector(graph, expert, config, output, row, bucket))
    user = graph.op("Concat", *users, axis=1)
    user = graph.op("Mul", user, graph.constant(file.unit))
    places = graph.op("Unsqueeze", items, graph.integers(1))
    biases = graph.op("ScatterND", graph.constant(bias), places, adjustments, reduction="add")
    vectors = graph.external(file.vectors, file.name, file.offset)
    if search_codes:
        _top_k_of_codes(graph, user, biases, vectors, file.vectors.astype(np.float32), k)
    else:
        _top_k(graph, _scores(graph, user, vectors, biases), k, "items")
    return graph.model({"items": (np.int64, ("k",)), "scores": (np.float32, ("k",))})


def _state_sizes(config: ModelConfig) -> list[int]:
    """Sizes of the leaves of one expert's state: hidden, cell, memory, output."""
    layers, width = config.num_layers * config.hidden_size, config.hidden_size
    return [layers, layers, config.memory_decays * width, 2 * width]


def _expert_update(
    graph: Graph, expert: Expert, config: ModelConfig, events: str, state: list[str]
) -> list[str]:
    """The leaves of the state after an event; see `StackedEncoder.scan`."""
    encoder, width = expert.sequence, config.hidden_size
    assert isinstance(encoder, StackedEncoder)
    hidden, cell, memory, _ = state
    before = [graph.split(part, *[width] * config.num_layers) for part in (hidden, cell)]
    x, hiddens, cells = events, [], []
    for layer, *own in zip(encoder.layers, *before, strict=True):
        assert isinstance(layer, LSTMBlock)
        hidden, cell = _lstm(graph, layer, _norm(graph, layer.lstm_norm, x), *own)
        hiddens.append(hidden)
        cells.append(cell)
        x = graph.op("Add", x, _linear(graph, layer.output, hidden))
        inner = _linear(graph, layer.mlp.up, _norm(graph, layer.mlp_norm, x))
        x = graph.op("Add", x, _linear(graph, layer.mlp.down, _gelu(graph, inner)))
    if encoder.memory is None:
        readout = graph.op("Mul", x, graph.constant(0.0))
    else:
        memory, readout = _remember(graph, encoder.memory, events, memory)
    output = graph.op("Concat", x, readout, axis=1)
    layers = [graph.op("Concat", *part, axis=1) for part in (hiddens, cells)]
    return [*layers, memory, output]


def _lstm(graph: Graph, layer: LSTMBlock, x: str, hidden: str, cell: str) -> tuple[str, str]:
    """Hidden and cell state after a step; see `step_lstm`."""
    recurrent = graph.op("MatMul", hidden, graph.constant(layer.lstm.recurrent[...]))
    products = graph.op("Add", _linear(graph, layer.lstm.input, x), recurrent)
    width = layer.lstm.recurrent[...].shape[0]
    gates = graph.split(products, *[width] * 4)
    update, forget, shown = (graph.op("Sigmoid", gates[n]) for n in (0, 1, 3))
    candidate = graph.op("Mul", update, graph.op("Tanh", gates[2]))
    cell = graph.op("Add", graph.op("Mul", forget, cell), candidate)
    return graph.op("Mul", shown, graph.op("Tanh", cell)), cell


def _remember(graph: Graph, module: ItemMemory, x: str, memory: str) -> tuple[str, str]:
    """The item memory after an event, flat, and its readout; see `ItemMemory`."""
    weights = np.asarray(module.weights[...])
    num_decays, width = weights.shape
    memory = graph.op("Reshape", memory, graph.integers(-1, num_decays, width))
    gates = graph.op("Sigmoid", _linear(graph, module.gates, x))
    gates = graph.op("Mul", gates, graph.constant(2.0))
    gates = graph.op("Unsqueeze", gates, graph.integers(2))
    added = graph.op("Mul", gates, graph.op("Unsqueeze", x, graph.integers(1)))
    decay = 1 / (1 + np.exp(-np.asarray(module.decay_logits[...], np.float64)))
    kept = graph.op("Mul", memory, graph.constant(decay[:, None]))
    memory = graph.op("Add", kept, added)
    weighted = graph.op("Mul", memory, graph.constant(weights))
    readout = graph.op("ReduceSum", weighted, graph.integers(1), keepdims=0)
    return graph.op("Reshape", memory, graph.integers(-1, num_decays * width)), readout


def _user_vector(
    graph: Graph, expert: Expert, config: ModelConfig, output: str, target: str, bucket: str
) -> str:
    """The user vector of an output; see `Expert.user_vectors`."""
    interest, readout = graph.split(output, *[config.hidden_size] * 2)
    hidden = _norm(graph, expert.user_norm, interest)
    hidden = _plus_row(graph, hidden, expert.target_type_table[...], target)
    if config.time_since_last:
        hidden = _plus_row(graph, hidden, expert.time_since_last_table[...], bucket)
    vector = _linear(graph, expert.user_output, hidden)
    squares = graph.op("ReduceSumSquare", vector, graph.integers(1))
    length = graph.op("Sqrt", graph.op("Max", squares, graph.constant(1e-4)))
    gate = graph.op("Exp", _linear(graph, expert.memory_gate, hidden))
    readout = graph.op("Mul", gate, readout)
    readout = graph.op("Div", readout, graph.constant(config.hidden_size**0.5))
    vector = graph.op("Add", graph.op("Div", vector, length), readout)
    return graph.op("Mul", vector, graph.constant(np.exp(np.asarray(expert.log_scale[...]))))


def _scores(graph: Graph, user: str, vectors: str, biases: str) -> str:
    """Products of a user vector [1, F] with vectors [n, F], plus biases [n]."""
    exact = graph.op("Cast", vectors, to=1)  # float32
    products = graph.op("Gemm", user, exact, transB=1)
    return graph.op("Add", graph.op("Squeeze", products, graph.integers(0)), biases)


def _top_k(graph: Graph, scores: str, k: str, items: str) -> list[str]:
    return graph.ops("TopK", scores, k, names=["scores", items], axis=0)


def _top_k_of_codes(
    graph: Graph, user: str, biases: str, vectors: str, table: Float[np.ndarray, "I F"], k: str
) -> None:
    """Exact scores of the items that a search by 8-bit codes finds."""
    codes, scales = encode_rows(table)
    names = ["user_codes", "user_scale", "user_zero"]
    rounded, scale, zero = graph.ops("DynamicQuantizeLinear", user, names=names)
    products = graph.op("MatMulInteger", rounded, graph.constant(codes.T, None), zero)
    products = graph.op("Squeeze", graph.op("Cast", products, to=1), graph.integers(0))
    products = graph.op("Mul", products, graph.op("Mul", graph.constant(scales), scale))
    size = graph.op("Min", graph.op("Mul", k, graph.integers(POOL)), graph.integers(len(table)))
    approximate = graph.op("Add", products, biases)
    _, pool = graph.ops("TopK", approximate, size, names=["pool_scores", "pool"], axis=0)
    own, own_biases = (graph.op("Gather", part, pool) for part in (vectors, biases))
    _, places = _top_k(graph, _scores(graph, user, own, own_biases), k, "places")
    graph.op("Gather", pool, places, name="items")


def _plus_row(graph: Graph, x: str, table: Float[Array, "rows D"], row: str) -> str:
    return graph.op("Add", x, graph.op("Gather", graph.constant(table), row))


def _gap_bucket(graph: Graph, seconds: str) -> str:
    """The row of a table of gaps; see `gap_buckets`."""
    bounds = graph.integers(0, *(2**n for n in range(GAP_BUCKETS - 3)))
    reached = graph.op("GreaterOrEqual", graph.op("Unsqueeze", seconds, graph.integers(1)), bounds)
    number = graph.op("Cast", reached, to=7)  # int64
    return graph.op("ReduceSum", number, graph.integers(1), keepdims=0)


def _linear(graph: Graph, layer: Linear, x: str) -> str:
    assert layer.bias is not None
    return graph.op("Gemm", x, graph.constant(layer.kernel[...]), graph.constant(layer.bias[...]))


def _norm(graph: Graph, layer: nnx.LayerNorm, x: str) -> str:
    assert layer.scale is not None and layer.bias is not None
    scale, bias = graph.constant(layer.scale[...]), graph.constant(layer.bias[...])
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=layer.epsilon)


def _gelu(graph: Graph, x: str) -> str:
    erf = graph.op("Erf", graph.op("Mul", x, graph.constant(0.5**0.5)))
    half = graph.op("Mul", x, graph.constant(0.5))
    return graph.op("Mul", half, graph.op("Add", erf, graph.constant(1.0)))
