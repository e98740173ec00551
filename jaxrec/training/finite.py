"""Which tensor of a training is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.errors import Diverged

NOT_FINITE = "not_finite"  # the metric of a step that holds what `first_not_finite` returns


def first_not_finite(
    loss: Float[Array, ""], norm: Float[Array, ""], params: Any, gradients: Any
) -> Int[Array, ""]:
    """The place of the first tensor that is not finite, all parameters before all gradients.

    It is the number of these tensors if all are finite. They are read only where the loss or the
    norm is not finite, so a sound step does no more work.

    Args:
        norm: of the gradients.
    """
    trees = (params, gradients)
    count = len(jax.tree.leaves(trees))

    def search() -> Int[Array, ""]:
        return jnp.argmin(jnp.append(_finite(trees), False)).astype(jnp.int32)

    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    return jax.lax.cond(sound, lambda: jnp.int32(count), search)


def refuse_divergence(loss: float, place: int, step: int, params: Any) -> None:
    """Raise a Diverged that names the first tensor that is not finite in a step.

    Args:
        place: from `first_not_finite`.
        params: of the model, for their names.
    """
    names = _names(params)
    if np.isfinite(loss) and place == 2 * len(names):
        return
    first = "all parameters and gradients are finite"
    if place < 2 * len(names):
        kind = "parameter" if place < len(names) else "gradient of"
        first = f"the first tensor that is not finite is the {kind} {names[place % len(names)]}"
    raise _diverged(f"the loss is {loss} at step {step}; {first}")


def refuse_not_finite(params: Any, step: int) -> None:
    """Raise a Diverged that names the first parameter that is not finite, if there is one."""
    finite = np.asarray(_all_finite(params))
    if not finite.all():
        name = _names(params)[int(np.argmin(finite))]
        raise _diverged(f"the parameter {name} is not finite after step {step}")


def _diverged(what: str) -> Diverged:
    return Diverged(f"{what}; the last checkpoint is kept. Lower train.learning_rate")


def _finite(tree: Any) -> Bool[Array, " leaves"]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


_all_finite = jax.jit(_finite)


def _names(params: Any) -> list[str]:
    """Names such as `experts.0.item_encoder.sources.0.item_table`."""
    paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path in paths)
    return [name.removesuffix(".value") for name in names]  # that of an `nnx.Variable`
