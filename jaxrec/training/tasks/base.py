"""The seam of tasks, and their inputs."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxrec.inference.encoding import CatalogArrays
from jaxrec.models.graph.link_sampling import Links, LinkSampler
from jaxrec.models.graph.neighbourhoods import NeighbourhoodSampler
from jaxrec.models.graph.sampling import EdgeSampler
from jaxrec.models.inputs import NodeVectors
from jaxrec.models.recommender import Expert
from jaxrec.models.text.finetuned import FinetunedText
from jaxrec.training.item_sampling import ItemSampler
from jaxrec.training.losses.base import MIN_WEIGHT, LogitAdjustments, mean_of_sum
from jaxrec.training.losses.sampled_softmax import corrected
from jaxrec.training.micro_batches import WHOLE_BATCH, MicroBatch
from jaxrec.training.step_items import StepItems
from jaxrec.types import STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainArrays:
    """The arrays that a training step reads and does not change."""

    catalog: CatalogArrays
    candidates: Bool[Array, " I"]  # items that occur in training
    tasks: tuple["Task", ...]
    masked_event_types: Bool[Array, " types"]  # a ranking masks the items of these events
    finetuned_text: FinetunedText | None
    repeats: bool = field(metadata=STATIC)  # whether a ranking keeps some items of the history
    edge_sampler: EdgeSampler | None = None  # None: every step reads all edges
    link_sampler: LinkSampler | None = None  # None: no edges are predicted
    item_sampler: ItemSampler | None = None  # None: every step scores all items
    neighbourhoods: NeighbourhoodSampler | None = None  # of the items of a step
    noise_key: UInt32[Array, " 2"] | None = None  # of a private training


@dataclass(frozen=True)
class ExpertBatch:
    """A batch as one expert encodes it; all tasks share it.

    K candidates are scored: all items, or the sample of the step.
    """

    expert: Expert
    arrays: TrainArrays
    batch: Batch
    vectors: NodeVectors  # of the nodes that the step encodes
    user_vectors: Float[Array, "B T D"]  # after every event
    target_event_types: Int[Array, "B T"]  # ANY_EVENT_TYPE where the user vector has no target type
    key: Array  # of the task `first_item`; another random task must fold in its own number
    links: Links | None = None  # edges to predict, which `vectors` do not know of
    step_items: StepItems | None = None  # None: all
    part: MicroBatch = WHOLE_BATCH  # of the batch of the step
    totals: dict[str, Float[Array, ""]] | None = None  # see `mean`

    @property
    def item_vectors(self) -> Float[Array, "K D"]:
        """Vectors of the candidates, by row."""
        if self.step_items is None:
            return self.vectors.items
        return self.vectors.of_items(self.node_places(self.step_items.sample.rows))

    @property
    def valid(self) -> Bool[Array, " K"]:
        """The candidates that can be predicted."""
        return self.arrays.candidates if self.step_items is None else self.step_items.sample.valid

    @property
    def items(self) -> Int[Array, "B T"]:
        """Where the items of the events stand among the candidates."""
        return self._places(self.batch.items)

    @property
    def targets(self) -> Int[Array, "B T"]:
        """Where the targets stand among the candidates."""
        return self._places(self.batch.targets)

    def corrected(self, adjustments: LogitAdjustments) -> LogitAdjustments:
        """The adjustments, with the correction for a sample of candidates if they are one."""
        if self.step_items is None:
            return adjustments
        starts = jnp.asarray(self.batch.starts)
        log_p = self.step_items.sample.log_p
        return corrected(adjustments, log_p, self.items, self.targets, starts)

    def weights(self, task: "Task") -> Float[Array, "*shape"]:
        """The weights of a task here."""
        return task.weights(self.batch, self.key, self.part)

    def mean(
        self, task: "Task", total: Float[Array, ""], weights: Float[Array, "*shape"]
    ) -> Float[Array, ""]:
        """The weighted mean from a sum; of a part of a batch, what it adds to that of the batch."""
        if self.totals is None:
            return mean_of_sum(total, weights)
        return total / jnp.maximum(self.totals[task.name], MIN_WEIGHT)

    def node_places(self, nodes: Int[Array, " K"]) -> Int[Array, " K"]:
        """Where nodes, by their ids, stand among `vectors`."""
        return nodes if self.step_items is None else self.step_items.places(nodes)

    def _places(self, items: Int[Array | np.ndarray, "B T"]) -> Int[Array, "B T"]:
        if self.step_items is None:
            return jnp.asarray(items)
        return self.step_items.sample.places(items)


@runtime_checkable
class Task(Protocol):
    """A prediction that an expert learns. A task is a pytree that holds its own arrays."""

    @property
    def name(self) -> str:
        """The name of the loss in the log, before `/` and the number of the expert."""

    @property
    def weight(self) -> float:
        """The factor of the loss in the training objective."""

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "*shape"]:
        """The weights of what is predicted in a batch; 0 where there is nothing.

        Args:
            key: that of `ExpertBatch`.
            part: what the batch is of that of the step; its weights sum up to those of the whole.
        """

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean loss of a batch, by these weights; see `ExpertBatch.mean`."""
