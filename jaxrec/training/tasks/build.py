"""The tasks of a run: a new task is one file beside this one, and one line here."""

from collections.abc import Sequence

from jaxrec.config import TrainConfig
from jaxrec.data.graph_arrays import shop_starts
from jaxrec.errors import DataError
from jaxrec.models.forms import chosen_forms
from jaxrec.training.losses.base import Loss
from jaxrec.training.losses.by_shop import ShopLoss
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.tasks.base import Task
from jaxrec.training.tasks.first_item import FirstItem
from jaxrec.training.tasks.link_prediction import LinkPrediction
from jaxrec.training.tasks.masked_item import MaskedItem
from jaxrec.training.tasks.next_entity import NextEntity, next_entity
from jaxrec.training.tasks.next_item import NextItem
from jaxrec.types import KnowledgeGraph


def build_tasks(
    config: TrainConfig, graph: KnowledgeGraph, shops: Sequence[KnowledgeGraph] = ()
) -> tuple[Task, ...]:
    """All predictions that an expert learns.

    Those of weight 0, and of node types that the graph lacks, are left out.

    Args:
        shops: the graphs that `graph` joins; none: it is that of one shop.

    Raises:
        DataError: none is left, because the data have no graph.
    """
    known = {node_type.name for node_type in graph.types}
    entities = [
        next_entity(
            graph, name, criterion(config, shop_starts(shops, name)), config.auxiliary_weight
        )
        for name in config.auxiliary
        if name in known
    ]
    starts, has_edges = shop_starts(shops, graph.types[0].name), len(graph.heads) > 0
    return weighted_tasks(config, entities, starts, has_edges=has_edges)


def criterion(config: TrainConfig, starts: tuple[int, ...]) -> Loss:
    """The loss over candidates; with several shops, over those of the target's shop."""
    loss = full_softmax(config)
    return ShopLoss(loss, starts) if len(starts) > 1 else loss


def full_softmax(config: TrainConfig) -> FullSoftmax:
    """The loss with as many logits at a time as the options say, or as suit the platform."""
    return FullSoftmax(config.loss_logits or chosen_forms().loss_logits)


def weighted_tasks(
    config: TrainConfig,
    entities: Sequence[NextEntity],
    starts: tuple[int, ...] = (0,),
    *,
    has_edges: bool,
) -> tuple[Task, ...]:
    """The given tasks and those without arrays, but none of weight 0; see `build_tasks`.

    Args:
        starts: the first item of every shop; see `shop_starts`.
    """
    tasks: list[Task] = [
        NextItem(criterion(config, starts), config.next_item_weight),
        FirstItem(config.auxiliary_weight, starts),
        *entities,
    ]
    if has_edges:
        tasks.append(LinkPrediction(config.link_weight))
    tasks.append(MaskedItem(criterion(config, starts), config.masked_item_weight))
    weighted = tuple(task for task in tasks if task.weight)
    if not weighted:
        raise DataError(
            "train.link_weight: the data have no edges to predict; give items a brand or category, "
            "or raise train.next_item_weight"
        )
    return weighted
