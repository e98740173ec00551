"""A graph layer by name -> the graph encoder; what else depends on the name is here too."""

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.graph.context import ContextEncoder
from jaxrec.models.graph.encoder import GraphEncoder, GraphLayer
from jaxrec.models.graph.gin import GINLayer
from jaxrec.models.graph.residual import ResidualLayer
from jaxrec.models.graph.sage import SAGELayer
from jaxrec.models.graph.transformer import GraphTransformerLayer


def build_graph_encoder(config: ModelConfig, num_relations: int, rngs: nnx.Rngs) -> GraphEncoder:
    """The encoder of `model.num_graph_layers` layers for R relations, without their reverses."""
    last = config.num_graph_layers - 1
    layers = [
        build_layer(config, both_directions(num_relations), rngs, is_last=number == last)
        for number in range(config.num_graph_layers)
    ]
    return GraphEncoder(layers)


def build_layer(
    config: ModelConfig, num_relations: int, rngs: nnx.Rngs, *, is_last: bool = True
) -> GraphLayer:
    """The layer that `model.graph_layer` names."""
    width, aggregate = config.hidden_size, config.aggregate
    match config.graph_layer:
        case "gin":
            return GINLayer(width, num_relations, aggregate, rngs)
        case "residual":
            return ResidualLayer(width, num_relations, aggregate)
        case "sage":
            normalize, activate = config.normalize_nodes, not is_last
            return SAGELayer(
                width, num_relations, aggregate, rngs, normalize=normalize, activate=activate
            )
        case "transformer":
            return GraphTransformerLayer(width, num_relations, config.graph_heads, rngs)


def build_context_encoder(
    config: ModelConfig, num_relations: int, rngs: nnx.Rngs
) -> ContextEncoder:
    """The context encoder for R relations, without their reverses."""
    return ContextEncoder(config, both_directions(num_relations), rngs)


def both_directions(num_relations: int) -> int:
    """The number of relations with their reverses and that of padding edges."""
    return 2 * num_relations + 1


def reach(config: ModelConfig) -> int:
    """How many edges away from a node its vector reads."""
    per_layer = 2 if config.graph_layer == "residual" else 1
    layers = 0 if config.context == "replace" else per_layer * config.num_graph_layers
    return layers + (config.context != "off")
