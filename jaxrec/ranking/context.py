"""Data that the steps of a strategy share, and the protocols of steps.

Letters: Q queries, P places of a list before a step, K places after it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from scipy.sparse import csr_array

from jaxrec.data.graph_arrays import first_neighbours, neighbourhoods
from jaxrec.types import Catalog, KnowledgeGraph

Best = Callable[
    [Int[np.ndarray, " Q"], int, Float[np.ndarray, " I"]],
    tuple[Int[np.ndarray, "Q P"], Float[np.ndarray, "Q P"]],
]
"""(numbers of queries, P, bias of every item's score) -> the P best items and their scores."""


class ItemLinks(NamedTuple):
    """How items hang together in a graph."""

    first: Callable[[str], Int[np.ndarray, " n"]]  # node type -> each item's node, 0: none
    neighbourhoods: Callable[[], csr_array]  # see `jaxrec.data.graph_arrays.neighbourhoods`


def links_of(graph: KnowledgeGraph) -> ItemLinks:
    """The links of the items of a graph."""
    return ItemLinks(partial(first_neighbours, graph), partial(neighbourhoods, graph))


@dataclass(frozen=True)
class ItemContext:
    """Data about the items that steps may use."""

    catalog: Catalog
    counts: Float[np.ndarray, " I"]  # how often an item was chosen in training
    valid: Bool[np.ndarray, " I"]  # rows that are items
    groups: Mapping[str, Int[np.ndarray, " n"]]  # node type -> each item's node, 0: none
    links: ItemLinks
    mean_count: float  # over the catalogue, of counts + 1

    @cached_property
    def neighbourhoods(self) -> csr_array:
        """The neighbours of every item; see `jaxrec.data.graph_arrays.neighbourhoods`."""
        return self.links.neighbourhoods()

    def padded(self, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " I"]:
        """Values of the catalogue's items, then zeros for the unused rows of the item block."""
        return np.pad(values, (0, len(self.valid) - self.catalog.num_items))


class RankedLists(NamedTuple):
    """Ranked lists between two steps, best first."""

    items: Int[np.ndarray, "Q P"]  # 0 where no item is left
    scores: Float[np.ndarray, "Q P"]  # -inf where no item is left
    touched: Bool[np.ndarray, "Q P steps"]  # whether a step changed the item's score or place
    propensity: Float[np.ndarray, "Q P"]  # probability of the item, given those before


class ReorderedLists(NamedTuple):
    """Ranked lists after a step."""

    items: Int[np.ndarray, "Q K"]
    scores: Float[np.ndarray, "Q K"]
    passed: Int[np.ndarray, " Q"]  # number of entries that the step passed over
    propensity: Float[np.ndarray, "Q K"] | None = None  # of a step that draws at random


@dataclass(frozen=True)
class RerankContext:
    """Data about the queries whose lists a step reorders."""

    items: ItemContext
    best: Best
    vectors: Float[Array | np.ndarray, "I F"]  # of the items
    bias: Float[np.ndarray, " I"]  # of all scoring steps; -inf keeps an item out
    random: np.random.Generator
    rows: Int[np.ndarray, " Q"]  # numbers of the queries


@runtime_checkable
class Step(Protocol):
    """A step of a strategy: a frozen dataclass whose fields are the options of the step."""

    name: ClassVar[str]


@runtime_checkable
class Scoring(Step, Protocol):
    """A step that changes the scores of items, equally for all users.

    The bias of an item depends on its own row, so that a change of some items costs no more.
    """

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """Addition to every item's score; -inf keeps an item out of all lists."""


@runtime_checkable
class Reordering(Step, Protocol):
    """A step that chooses and orders items of ranked lists."""

    def reorder(self, ranked: RankedLists, context: RerankContext, length: int) -> ReorderedLists:
        """Lists of `length` places."""
