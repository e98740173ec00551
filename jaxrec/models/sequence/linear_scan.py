"""A linear recurrence over time, computed for all steps at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def linear_scan(
    decay: Float[Array, "B T #D"], inputs: Float[Array, "B T D"], before: Float[Array, "B D"]
) -> Float[Array, "B T D"]:
    """h_t = decay_t h_{t-1} + inputs_t for all t, from h_0 = `before`.

    The steps are joined in pairs, then in fours and so on (Blelloch 1990; Martin & Cundy 2018,
    arXiv:1709.04057), so T steps take about 2 log2(T) operations one after another. The gradient is
    the same recurrence backwards in time; the automatic one would keep every level of the tree.
    """
    first = inputs[:, 0] + decay[:, 0] * before
    return _scan(decay, inputs.at[:, 0].set(first))


def _scan(decay: Array, inputs: Array, *, reverse: bool = False) -> Array:
    def join(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
        return early[0] * late[0], early[1] * late[0] + late[1]

    return jax.lax.associative_scan(join, (decay, inputs), reverse=reverse, axis=1)[1]


def _forward(decay, inputs, before):
    states = linear_scan(decay, inputs, before)
    return states, (decay, states, before)


def _backward(saved, grad_states):
    decay, states, before = saved
    next_decay = jnp.concatenate([decay[:, 1:], jnp.zeros_like(decay[:, :1])], 1)
    grad_inputs = _scan(next_decay, grad_states, reverse=True)
    earlier = jnp.concatenate([before[:, None], states[:, :-1]], 1)
    grad_decay = grad_inputs * earlier
    if decay.shape[-1] < grad_decay.shape[-1]:  # one decay for all D
        grad_decay = grad_decay.sum(-1, keepdims=True)
    return grad_decay, grad_inputs, decay[:, 0] * grad_inputs[:, 0]


linear_scan.defvjp(_forward, _backward)
