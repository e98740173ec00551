"""Time and memory of each graph layer and of the context encoder, with their gradients.

    python benchmarks/speed/graph_layers.py [--items 12288] [--edges 60000] [--hidden-size 128]

The graph is random: a quarter as many other nodes as items, few of which have most of the edges.
`--edges` is their number without the reverse ones. Printed are the median time of the vectors of
all nodes and their gradients over `--repeats` interleaved repetitions, the time of the vectors
alone, and the memory of temporary arrays.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.graph.build import build_context_encoder, build_graph_encoder

VARIANTS = {
    "gin": {},
    "residual": {"graph_layer": "residual"},
    "sage": {"graph_layer": "sage"},
    "sage, max": {"graph_layer": "sage", "aggregate": "max"},
    "transformer": {"graph_layer": "transformer"},
    "context, 8 neighbours": {"context": "replace"},
    "context, 16 neighbours": {"context": "replace", "context_neighbours": 16},
}


def main() -> None:
    """Measure all variants and print a line for each."""
    parser = argparse.ArgumentParser()
    sizes = {"items": 12288, "edges": 60000, "hidden-size": 128, "repeats": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    graph, num_nodes = random_graph(options.items, options.edges)
    nodes = jax.random.normal(jax.random.key(0), (num_nodes, options.hidden_size))
    programs = {
        name: compiled(ModelConfig(hidden_size=options.hidden_size, **changes), nodes, graph)
        for name, changes in VARIANTS.items()
    }
    times: dict[str, list[list[float]]] = {name: [] for name in programs}
    for _ in range(options.repeats):
        for name, (forward, both, _) in programs.items():
            times[name].append([seconds(both), seconds(forward)])
    print(f"{num_nodes:,} nodes, {len(graph.senders):,} edges, {jax.devices()[0].device_kind}")
    for name, (*_, temporary) in programs.items():
        both, forward = np.median(times[name], axis=0) * 1e3
        print(f"{name:24} {both:7.0f} ms, forward {forward:6.0f} ms, {temporary / 2**20:5.0f} MiB")


def random_graph(num_items: int, num_edges: int) -> tuple[jraph.GraphsTuple, int]:
    """A graph of one relation between items and other nodes, and its number of nodes."""
    random, others = np.random.default_rng(0), num_items // 4
    items = random.integers(1, num_items, num_edges)
    ends = num_items + random.zipf(1.3, num_edges) % others
    receivers = np.concatenate([ends, items])
    order = np.argsort(receivers, kind="stable")
    columns = (np.repeat([0, 1], num_edges), receivers, np.concatenate([items, ends]))
    relations, receivers, senders = (jnp.asarray(column[order], jnp.int32) for column in columns)
    sizes = jnp.array([num_items + others]), jnp.array([2 * num_edges])
    graph = jraph.GraphsTuple(None, relations, receivers, senders, None, *sizes)
    return graph, num_items + others


def compiled(
    config: ModelConfig, nodes: jax.Array, graph: jraph.GraphsTuple
) -> tuple[Callable, Callable, int]:
    """Calls without and with the gradient, and the temporary memory of the latter in bytes."""
    build = build_graph_encoder if config.context == "off" else build_context_encoder
    definition, params = nnx.split(build(config, 1, nnx.Rngs(0)))

    def encode(params, nodes, graph):
        return nnx.merge(definition, params)(nodes, graph)

    def loss(params, nodes, graph):
        return jnp.square(encode(params, nodes, graph)).sum()

    arguments = (params, nodes, graph)
    forward = jax.jit(encode).lower(*arguments).compile()
    both = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
    memory = both.memory_analysis().temp_size_in_bytes
    return lambda: forward(*arguments), lambda: both(*arguments), memory


def seconds(call: Callable) -> float:
    """The time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
