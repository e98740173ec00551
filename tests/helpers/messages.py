"""Messages between nodes, computed edge by edge."""

import numpy as np

from helpers.graph import EDGES, NODES


def gather(nodes: np.ndarray, message, aggregate: str) -> np.ndarray:
    """Sum or mean of the messages to every node, one edge after another."""
    scale, shift = np.asarray(message.scale[...]), np.asarray(message.shift[...])
    total, count = np.zeros_like(nodes), np.zeros((NODES, 1))
    for sender, relation, receiver in EDGES:
        total[receiver] += scale[relation] * nodes[sender] + shift[relation]
        count[receiver] += 1
    return total if aggregate == "sum" else total / np.maximum(count, 1)
