import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.encoders import LAYERS, make_graph_encoder
from helpers.graph import EDGES, NODES, features, make_graph

from jaxrec.models.graph.message_passing import message_passing
from jaxrec.models.graph.sampling import edge_sampler

# node 5 has seven edges of relation 0 and one of relation 1
HUB = [*EDGES, *[(s, 0, 5) for s in (0, 1, 2, 3, 4, 6, 5)], (0, 1, 5)]
KEYS = jax.random.split(jax.random.key(0), 200)


def samples(fan_out: int):
    graph = make_graph(HUB, 4)
    sampler = edge_sampler(graph, fan_out, seed=0)
    return graph, jax.vmap(lambda key: sampler.sample(graph, key))(KEYS)


def test_a_node_reads_at_most_the_fan_out_of_each_relation():
    graph, drawn = samples(3)
    parts = (graph.senders, graph.edges, graph.receivers)
    given = set(zip(*(part.tolist() for part in parts), strict=True))
    for number in range(20):
        parts = (drawn.senders[number], drawn.edges.relations[number], drawn.receivers[number])
        edges = list(zip(*(part.tolist() for part in parts), strict=True))
        real = [edge for edge in edges if edge[1] < 2]
        assert len(set(real)) == len(real) and set(real) <= given
        assert sum(edge[1:] == (0, 5) for edge in real) == 3
        assert sum(edge[1:] == (0, 3) for edge in real) == 3  # all there are
        assert (np.diff(parts[2]) >= 0).all()


def test_all_edges_of_a_group_are_drawn_equally_often():
    _, drawn = samples(3)
    of_hub = (drawn.receivers == 5) & (drawn.edges.relations == 0)
    counts = np.bincount(np.asarray(drawn.senders)[np.asarray(of_hub)], minlength=NODES)
    np.testing.assert_allclose(counts / len(KEYS), 3 / 7, atol=0.12)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_sums_and_means_over_a_sample_are_right_on_average(aggregate):
    graph, drawn = samples(2)
    nodes = jnp.asarray(features())

    def gather(graph):
        return message_passing(
            nodes,
            graph,
            message=lambda _, senders: senders,
            update=lambda _, gathered: gathered,
            aggregate=aggregate,
        )

    whole, each = gather(graph), jax.vmap(gather)(drawn)
    error = np.asarray(each.std(0)) / len(KEYS) ** 0.5
    assert (np.abs(each.mean(0) - whole)[:-1] <= 4 * error[:-1] + 1e-5).all()
    assert error[5].max() > 0  # the hub is sampled


@pytest.mark.parametrize("name", LAYERS)
def test_a_sample_of_all_edges_gives_the_vectors_of_the_graph(name):
    graph, nodes, encoder = make_graph(HUB), jnp.asarray(features()), make_graph_encoder(name)
    sampler = edge_sampler(graph, 7, seed=0)
    sampled = encoder(nodes, sampler.sample(graph, KEYS[0]))
    np.testing.assert_allclose(sampled, encoder(nodes, graph), rtol=1e-3, atol=1e-3)
