"""A loss over the candidates of several shops that lie side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.partitioning import divisible_rows, to_columns, to_rows
from jaxrec.training.losses.base import LogitAdjustments, Loss


@dataclass(frozen=True)
class ShopLoss:
    """The loss of every target among the candidates of its own shop alone.

    It costs as much as the loss over all candidates, because each shop has only a part of them.
    """

    criterion: Loss
    starts: tuple[int, ...]  # the first candidate of each shop; row 0 is the unknown one of all

    def __call__(
        self,
        queries: Float[Array, "B T D"],
        candidates: Float[Array, "K D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
        valid: Bool[Array, " K"],
        adjustments: LogitAdjustments | None = None,
    ) -> Float[Array, ""]:
        """The sum over all positions and shops; see `Loss`."""
        total = jnp.zeros(())
        candidates = to_columns(candidates)  # whose rows are cut and joined
        for first, end in shop_ranges(self.starts, len(candidates)):

            def own(rows: Int[Array, "*shape"], first=first, end=end) -> Int[Array, "*shape"]:
                return jnp.where((rows >= first) & (rows < end), rows - first + 1, 0)

            total += self.criterion(
                queries,
                to_rows(divisible_rows(jnp.concatenate([candidates[:1], candidates[first:end]]))),
                own(targets),
                jnp.where((targets >= first) & (targets < end), weights, 0),
                divisible_rows(jnp.concatenate([valid[:1], valid[first:end]]), fill=False),
                adjustments and adjustments._replace(candidates=own(adjustments.candidates)),
            )
        return total


def shop_ranges(starts: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """The first row of every shop and the one behind its last row."""
    return list(zip(starts, (*starts[1:], rows), strict=True))
