"""The sequence encoders of several experts, which read the same events."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.models.forms import chosen_forms
from jaxrec.models.sequence.encoder import SequenceEncoder, State

Scan = tuple[Float[Array, "B T out"], State]  # outputs after every event, state after the last


def scan_experts(
    encoders: Sequence[SequenceEncoder],
    states: Sequence[State],
    events: Sequence[Float[Array, "B T D"]],
    starts: Bool[Array, "B T"] | None = None,
    valid: Bool[Array, "B T"] | None = None,
    keys: Sequence[Array] | None = None,
) -> list[Scan]:
    """What `SequenceEncoder.scan` gives for every expert.

    Scans are sequential, so accelerators spend their time on starting small kernels. There, the
    parameters of the experts are stacked, and one scan reads the events of all.

    Args:
        encoders: of one class and with parameters of the same shapes.
        keys: for dropout, one an expert.
    """
    keys_or_none: Sequence[Array | None] = keys or [None] * len(encoders)
    by_expert = list(zip(encoders, states, events, keys_or_none, strict=True))
    if len(encoders) > 1 and chosen_forms().experts_as_one:
        return _scan_as_one(by_expert, starts, valid)
    return [
        encoder.scan(state, vectors, starts, valid, key)
        for encoder, state, vectors, key in by_expert
    ]


def _scan_as_one(by_expert: list[tuple], starts: Array | None, valid: Array | None) -> list[Scan]:
    definition = nnx.graphdef(by_expert[0][0])

    def scan(params: Any, state: State, events: Array, key: Array | None) -> Scan:
        return nnx.merge(definition, params).scan(state, events, starts, valid, key)

    inputs = [(nnx.to_pure_dict(nnx.state(encoder)), *rest) for encoder, *rest in by_expert]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *inputs)
    scans = jax.vmap(scan)(*stacked)
    return [jax.tree.map(lambda part, n=n: part[n], scans) for n in range(len(by_expert))]
