"""The first tensor that is not finite is named, parameters before gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.errors import Diverged
from jaxrec.training.finite import first_not_finite, refuse_divergence, refuse_not_finite

PARAMS = {
    "experts": [{"table": np.ones((3, 2), np.float32), "weight": np.ones(4, np.float32)}],
    "scale": np.ones(1, np.float32),
}
NAMES = ["experts.0.table", "experts.0.weight", "scale"]


def with_bad(name, value=np.inf):
    """The parameters, with a value in one of them that is not finite."""
    leaves, structure = jax.tree.flatten(PARAMS)
    place = NAMES.index(name)
    leaves[place] = leaves[place].copy()
    leaves[place].flat[-1] = value
    return jax.tree.unflatten(structure, leaves)


@pytest.fixture(autouse=True)
def _nan_passes():
    with jax.debug_nans(False):
        yield


@pytest.mark.parametrize(
    ("loss", "params", "gradients", "message"),
    [
        (np.nan, with_bad("scale"), with_bad("experts.0.table"), "is the parameter scale"),
        (np.inf, PARAMS, with_bad("experts.0.weight"), "is the gradient of experts.0.weight"),
        (1.0, PARAMS, with_bad("scale", np.nan), "is the gradient of scale"),
        (np.nan, PARAMS, PARAMS, "all parameters and gradients are finite"),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named(loss, params, gradients, message):
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients)))
    place = int(jax.jit(first_not_finite)(jnp.float32(loss), norm, params, gradients))
    with pytest.raises(Diverged, match=message) as error:
        refuse_divergence(loss, place, 7, PARAMS)
    text = str(error.value)
    assert f"the loss is {loss} at step 7" in text and "train.learning_rate" in text


def test_a_finite_step_passes():
    """Also one whose gradients are finite, though their norm is not."""
    for norm in (3.0, np.inf):
        place = int(first_not_finite(jnp.float32(1), jnp.float32(norm), PARAMS, PARAMS))
        refuse_divergence(1.0, place, 7, PARAMS)
    refuse_not_finite(PARAMS, 7)


def test_a_parameter_that_is_not_finite_is_named():
    with pytest.raises(Diverged, match=r"parameter experts\.0\.weight is not finite after step 7"):
        refuse_not_finite(with_bad("experts.0.weight"), 7)
