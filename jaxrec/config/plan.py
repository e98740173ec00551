"""The sizes that `jaxrec plan` assumes."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from jaxrec.config.ranges import Bounded, Count, NonNegative


@dataclass(frozen=True)
class PlanConfig(Bounded, section="plan"):
    """The sizes that `jaxrec plan` compiles for. Training does not read them. `--users N` is short
    for `--plan.users N`, and so on."""

    users: NonNegative = 0
    """Users to score."""
    items: NonNegative = 0
    """Items of the catalogue (0: count everything in the data)."""
    frequent_items: NonNegative = 0
    """Items with `model.min_events_for_id` training events or more, which have own ids (0: all)."""
    events: Annotated[int, Ge(0)] = 0
    """Events of an epoch."""
    entities: dict[str, Count] = field(default_factory=dict)
    """Nodes of every other type of the graph, such as `brand 50000 category 2000`."""
    edges: NonNegative = 0
    """Edges of the graph, each in one direction."""
    relations: NonNegative = 0
    """Relations of the graph, without their reverses."""
    event_types: tuple[str, ...] = ("view", "cart", "buy")
    """Event types of the log."""
    vectors: dict[str, Count] = field(default_factory=dict)
    """Columns of vectors that the experts read, and their widths."""
