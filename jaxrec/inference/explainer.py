"""What explanations of a model read, computed when it is first needed."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxrec.inference.contributions import ItemParts, item_parts, without_item_memory
from jaxrec.inference.graph_paths import Neighbours
from jaxrec.inference.user_encoder import UserEncoder
from jaxrec.inference.word_influence import WordInfluence

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore  # which holds this


@dataclass(frozen=True)
class Explainer:
    """Parts of the scores of a model, paths in its graph, and the influence of words."""

    model: "ModelCore"

    @cached_property
    def item_parts(self) -> ItemParts | None:
        """The item vectors of training as sums over their sources; None over today's items.

        They take as much memory as the item table for every source.
        """
        return item_parts(self.model)

    @cached_property
    def average_item(self) -> Float[np.ndarray, " F"]:
        """The mean of the item vectors."""
        items = self.model.index.items
        return np.asarray(items.vectors)[items.valid].mean(0)

    @cached_property
    def memoryless(self) -> UserEncoder:
        """The user encoder whose user vectors leave the memory readout out."""
        encoder = self.model.encoder
        return replace(encoder, model=without_item_memory(encoder.model))

    @cached_property
    def neighbours(self) -> Neighbours:
        """The edges of the graph by node."""
        return Neighbours(self.model.catalog.graph)

    @cached_property
    def word_influence(self) -> WordInfluence:
        """Finds the words that tell most about an item."""
        return WordInfluence(self.model)
