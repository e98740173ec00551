"""Sources by name -> the item encoder of an expert."""

from collections.abc import Sequence

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.config.options import SOURCES
from jaxrec.errors import ConfigError
from jaxrec.models.graph.build import build_context_encoder, build_graph_encoder
from jaxrec.models.inputs import Sizes
from jaxrec.models.items.encoder import ItemEncoder, ItemSource
from jaxrec.models.items.id import IdSource
from jaxrec.models.items.numbers import NumberSource
from jaxrec.models.items.text import TextSource
from jaxrec.models.items.vectors import VectorSource
from jaxrec.models.layers import normal_table


def expert_sources(name: str, vectors: Sequence[str] = ()) -> tuple[str, ...]:
    """The sources of an expert, such as ("id", "graph") of `id+graph`; `vectors` as its columns.

    Args:
        vectors: the columns of vectors.

    Raises:
        ConfigError: the name holds an unknown source.
    """
    sources = name.split("+")
    known = (*SOURCES, *vectors)
    unknown = [source for source in sources if source not in known]
    if unknown:
        raise ConfigError(f"expert {name!r} names {unknown}; the sources are {', '.join(known)}")
    named = [part for s in sources for part in (vectors if s == "vectors" else (s,))]
    return tuple(dict.fromkeys(named))


def source_order(expert: str, vectors: Sequence[str]) -> tuple[str, ...]:
    """The sources of an expert in the order in which parameters are drawn; a new one comes last."""
    names = expert_sources(expert, vectors)
    return tuple(s for s in ("id", "text", "graph", *vectors, "numbers") if s in names)


def build_item_encoder(
    expert: str, config: ModelConfig, sizes: Sizes, rngs: nnx.Rngs
) -> ItemEncoder:
    """The item encoder of an expert such as `id+graph`.

    Raises:
        ConfigError: the expert names an unknown source.
    """
    widths = dict(sizes.vectors)
    width = config.hidden_size
    num_ids = sizes.num_ids or sizes.num_items
    num_entities = sizes.num_nodes - sizes.num_items
    entity_table = normal_table(num_entities, width, rngs) if num_entities else None
    sources: list[ItemSource] = []
    graph_encoder = context = None
    for name in source_order(expert, tuple(widths)):
        match name:
            case "id":
                sources.append(IdSource(num_ids, width, config.id_dropout, rngs))
            case "text":
                sources.append(TextSource(sizes.text_width, width, rngs))
            case "graph":  # not an ItemSource: it takes the features of all nodes
                if config.context != "replace":
                    graph_encoder = build_graph_encoder(config, sizes.num_relations, rngs)
                if config.context != "off":
                    context = build_context_encoder(config, sizes.num_relations, rngs)
            case "numbers":
                sources.append(NumberSource(sizes.numbers, width, config.id_dropout, rngs))
            case _:
                sources.append(VectorSource(name, widths[name], width, config.id_dropout, rngs))
    return ItemEncoder(width, entity_table, sources, graph_encoder, context)
