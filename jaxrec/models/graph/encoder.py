"""The seam of graph layers, and the stack of them that encodes a graph."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float


@runtime_checkable
class GraphLayer(Protocol):
    """One layer of a graph network.

    To add a layer, write an `nnx.Module` with this method in a file beside this one, then name it
    in `jaxrec/models/graph/build.py` and in `graph_layer` of `ModelConfig`. Most layers are a
    `message` along an edge and an `update` of a node, and return
    `message_passing(nodes, graph, message=..., update=..., aggregate=...)`; see `gin.py`. A layer
    whose neighbours differ in weight gathers by `attend`; see `transformer.py`.
    """

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes, in the dtype of the old ones.

        A permuted graph gives permuted vectors. A node depends on its incoming edges only, so that
        the padding edges of the last node reach no other node. Vectors lie by column before and
        after the layer, and what reads whole vectors turns them `to_rows` (`jaxrec.partitioning`).

        Args:
            graph: edges sorted by receiver; `graph.edges` holds relation numbers, `WeightedEdges`
                if the edges are a sample, or `DividedEdges` if no device has all of them.
        """
        ...


class GraphEncoder(nnx.Module):
    """h_1 = Layer_1(h_0), h_2 = Layer_2(h_1), ...; the result is the sum h_1 + h_2 + ...

    The sum is the jumping-knowledge read-out of GIN (arXiv:1810.00826, section 4.2), so a later
    layer does not hide the vectors of earlier ones.
    """

    def __init__(self, layers: Sequence[GraphLayer]):
        self.layers = nnx.List(layers)

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """Vectors of all nodes from their features."""
        total = jnp.zeros_like(nodes)
        for layer in self.layers:
            nodes = layer(nodes, graph)
            total = total + nodes
        return total
