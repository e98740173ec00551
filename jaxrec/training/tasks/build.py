"""The tasks of a run: a new task is one file beside this one, and one line here."""

from jaxrec.config import TrainConfig
from jaxrec.errors import DataError
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.tasks.base import Task
from jaxrec.training.tasks.first_item import FirstItem
from jaxrec.training.tasks.link_prediction import LinkPrediction
from jaxrec.training.tasks.next_entity import next_entity
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
    tasks: list[Task] = [NextItem(criterion, config.next_item_weight), FirstItem(weight)]
    tasks += [next_entity(graph, n, criterion, weight) for n in config.auxiliary if n in known]
    if len(graph.heads):
        tasks.append(LinkPrediction(config.link_weight))
    weighted = tuple(task for task in tasks if task.weight)
    if not weighted:
        raise DataError(
            "train.link_weight: the data have no edges to predict; give items a brand or category, "
            "or raise train.next_item_weight"
        )
    return weighted
