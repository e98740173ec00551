"""The seam of losses, and the mean over weighted positions."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MIN_WEIGHT = 1e-9  # divides a sum without any weight, which is 0


class LogitAdjustments(NamedTuple):
    """Amounts that are added to the logits: of some candidates at a position, and of all."""

    candidates: Int[Array, "B T X"]
    amounts: Float[Array, "B T X"] | None  # NEG_INF masks a candidate; None masks all of them
    bias: Float[Array, " K"] | None = None  # of every candidate, equal at all positions; constants


@runtime_checkable
class Loss(Protocol):
    """A ranking loss. It is a static part of a jitted step, so it must be hashable."""

    def __call__(
        self,
        queries: Float[Array, "B T D"],
        candidates: Float[Array, "K D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
        valid: Bool[Array, " K"],
        adjustments: LogitAdjustments | None = None,
    ) -> Float[Array, ""]:
        """The sum over all positions of weight * loss, in float32.

        Args:
            targets: positions in `candidates`.
            weights: 0 at a position without a target; weights get no gradient.
            valid: the candidates that can be predicted.
        """


def mean_of_sum(total: Float[Array, ""], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The weighted mean from the weighted sum; 0 if all weights are 0."""
    return total / jnp.maximum(weights.sum(), MIN_WEIGHT)
