"""A graph layer by name -> the graph encoder."""

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.graph.encoder import GraphEncoder, GraphLayer
from jaxrec.models.graph.gin import GINLayer
from jaxrec.models.graph.residual import ResidualLayer


def build_graph_encoder(config: ModelConfig, num_relations: int, rngs: nnx.Rngs) -> GraphEncoder:
    """The encoder of `model.num_graph_layers` layers for R relations, without their reverses."""
    both_directions = 2 * num_relations + 1  # the last one is the relation of padding edges
    layers = [build_layer(config, both_directions, rngs) for _ in range(config.num_graph_layers)]
    return GraphEncoder(layers)


def build_layer(config: ModelConfig, num_relations: int, rngs: nnx.Rngs) -> GraphLayer:
    """The layer that `model.graph_layer` names."""
    match config.graph_layer:
        case "gin":
            return GINLayer(config.hidden_size, num_relations, config.aggregate, rngs)
        case "residual":
            return ResidualLayer(config.hidden_size, num_relations, config.aggregate)
