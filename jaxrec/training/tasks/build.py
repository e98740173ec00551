"""The tasks of a run: a new task is one file beside this one, and one line here."""

from collections.abc import Sequence

from jaxrec.config import TrainConfig
from jaxrec.errors import DataError
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.tasks.base import Task
from jaxrec.training.tasks.first_item import FirstItem
from jaxrec.training.tasks.link_prediction import LinkPrediction
from jaxrec.training.tasks.next_entity import NextEntity, next_entity
from jaxrec.training.tasks.next_item import NextItem
from jaxrec.types import KnowledgeGraph


def build_tasks(config: TrainConfig, graph: KnowledgeGraph) -> tuple[Task, ...]:
    """All predictions that an expert learns.

    Those of weight 0, and of node types that the graph lacks, are left out.

    Raises:
        DataError: none is left, because the data have no graph.
    """
    criterion, weight = FullSoftmax(config.loss_logits), config.auxiliary_weight
    known = {node_type.name for node_type in graph.types}
    names = [name for name in config.auxiliary if name in known]
    entities = [next_entity(graph, name, criterion, weight) for name in names]
    return weighted_tasks(config, entities, has_edges=len(graph.heads) > 0)


def weighted_tasks(
    config: TrainConfig, entities: Sequence[NextEntity], *, has_edges: bool
) -> tuple[Task, ...]:
    """The given tasks and those without arrays, but none of weight 0; see `build_tasks`."""
    criterion, weight = FullSoftmax(config.loss_logits), config.auxiliary_weight
    tasks: list[Task] = [NextItem(criterion, config.next_item_weight), FirstItem(weight), *entities]
    if has_edges:
        tasks.append(LinkPrediction(config.link_weight))
    weighted = tuple(task for task in tasks if task.weight)
    if not weighted:
        raise DataError(
            "train.link_weight: the data have no edges to predict; give items a brand or category, "
            "or raise train.next_item_weight"
        )
    return weighted
