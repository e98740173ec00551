"""The items whose texts are most alike."""

import numpy as np
from jaxtyping import Bool, Float

from jaxrec.evaluation.neighbours import MOST_NEIGHBOURS, NeighbourTable
from jaxrec.ranking.adjustments import as_blocks, exclude
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import best_items

MAX_ITEMS = 2**17  # the cost grows with their square; so many take minutes on two cores


def similar_texts(
    vectors: Float[np.ndarray, "n text"], valid: Bool[np.ndarray, " I"]
) -> NeighbourTable | None:
    """The items with the largest cosines of text vectors, related by the squares of these.

    The squares of a row are divided by their sum. So items with many variants, whose texts hardly
    differ, do not raise them more than other items raise their neighbours.

    Args:
        vectors: of the items by number, then perhaps of padding; zero for items without a text.
        valid: rows of the item block that are items.

    Returns:
        None if no two items have texts, or more than `MAX_ITEMS` have one.
    """
    units = np.zeros((len(valid), vectors.shape[1]), np.float32)
    units[: len(vectors)] = vectors[: len(valid)]
    lengths = np.linalg.norm(units, axis=1, keepdims=True)
    known = np.flatnonzero(valid & (lengths[:, 0] > 0))
    if not 1 < len(known) <= MAX_ITEMS:
        return None
    units /= np.maximum(lengths, np.finfo(np.float32).tiny)
    is_known = np.zeros(len(valid), bool)
    is_known[known] = True
    shape = (len(valid), min(MOST_NEIGHBOURS, len(known) - 1))
    items, cosines = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    themselves = as_blocks(exclude(np.arange(len(known)), known))
    top = best_items(units[known], ItemTable(units, is_known), shape[1], themselves)
    items[known], cosines[known] = top.items, top.scores
    squares = np.where(items > 0, np.maximum(cosines, 0), 0) ** 2
    sums = squares.sum(1, keepdims=True)
    shares = squares / np.where(sums > 0, sums, 1)
    return NeighbourTable(np.where(shares > 0, items, 0).astype(np.int32), shares)
