"""Parts of a batch that are read one after another, so that a step needs the memory of one."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped

from jaxrec.partitioning import devices_that_share_rows, drawn_rows, shards
from jaxrec.sharding import USERS
from jaxrec.types import STATIC


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """One of `count` equal parts of the rows of a batch; each device has the same part of its own.

    What is drawn for single events is drawn for the whole batch, so that it does not depend on the
    number of parts. Only dropout does.
    """

    number: Int[Array, ""] | int = 0
    count: int = field(default=1, metadata=STATIC)

    def of(
        self, x: Shaped[Array | np.ndarray, "B *shape"]
    ) -> Shaped[Array | np.ndarray, "b *shape"]:
        """The rows of this part."""
        if self.count == 1:
            return x
        parts = x.reshape(shards(USERS), self.count, -1, *x.shape[1:])
        rows = lax.dynamic_index_in_dim(parts, self.number, axis=1, keepdims=False)
        return rows.reshape(-1, *x.shape[1:])

    def bernoulli(self, key: Array, share: float, shape: tuple[int, ...]) -> Bool[Array, "b T"]:
        """True for a share of the events, at random, where the part has this shape [b, T]."""
        rows, length = shape
        drawn = drawn_rows(partial(jax.random.bernoulli, key, share), (rows * self.count, length))
        return jnp.asarray(self.of(drawn))

    @property
    def share(self) -> float:
        """The share of the batch that the part is."""
        return 1 / (self.count * devices_that_share_rows())

    def key(self, key: Array) -> Array:
        """The key of dropout, which is drawn for each part."""
        return key if self.count == 1 else jax.random.fold_in(key, self.number)


WHOLE_BATCH = MicroBatch()


def half_hidden(
    key: Array, values: Int[Array, "b T"], hidden: int, part: MicroBatch = WHOLE_BATCH
) -> Int[Array, "b T"]:
    """The values, half of them replaced by `hidden` at random."""
    return jnp.where(part.bernoulli(key, 0.5, values.shape), values, hidden)
