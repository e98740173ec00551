"""A small typed graph, and modules whose parameters are all random."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx

NODES, WIDTH = 7, 4
RELATIONS = 3  # one relation, its reverse, and that of padding edges
# (sender, relation, receiver); node 5 has no edges, node 6 is for padding edges
EDGES = [(0, 0, 3), (1, 0, 3), (1, 1, 4), (3, 1, 0), (3, 1, 1), (4, 0, 1), (2, 0, 3), (0, 1, 4)]


def make_graph(edges: list[tuple[int, int, int]], padding: int = 0) -> jraph.GraphsTuple:
    by_receiver = sorted(edges, key=lambda edge: edge[2])
    last = NODES - 1
    senders, relations, receivers = np.array(
        by_receiver + [(last, RELATIONS - 1, last)] * padding, np.int32
    ).T
    return jraph.GraphsTuple(
        nodes=None,
        edges=jnp.asarray(relations),
        senders=jnp.asarray(senders),
        receivers=jnp.asarray(receivers),
        globals=None,
        n_node=jnp.array([last, 1]),
        n_edge=jnp.array([len(edges), padding]),
    )


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NODES, WIDTH)).astype(np.float32)


def randomised(module):
    """The module with random parameters, also where the initial value is a constant."""
    random = np.random.default_rng(1)
    params = nnx.state(module)
    nnx.update(
        module, jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), p.dtype), params)
    )
    return module
