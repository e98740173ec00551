"""A graph layer by name -> the graph encoder."""

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.graph.encoder import GraphEncoder, GraphLayer
from jaxrec.models.graph.gin import GINLayer
from jaxrec.models.graph.residual import ResidualLayer


def build_graph_encoder(config: ModelConfig, num_relations: int, rngs: nnx.Rngs) -> GraphEncoder:
    """The `model.num_graph_layers` layers that `model.graph_layer` names.

    Args:
        num_relations: R, without reverses.
    """
    both_directions = 2 * num_relations + 1  # the last one is the relation of padding edges
    return GraphEncoder(
        [build_layer(config, both_directions, rngs) for _ in range(config.num_graph_layers)]
    )


def build_layer(config: ModelConfig, num_relations: int, rngs: nnx.Rngs) -> GraphLayer:
    """One layer for a graph with `num_relations` relations."""
    match config.graph_layer:
        case "gin":
            return GINLayer(config.hidden_size, num_relations, config.aggregate, rngs)
        case "residual":
            return ResidualLayer(config.hidden_size, num_relations, config.aggregate)
