import jax
import pytest
from flax import nnx
from helpers.encoders import GRAPH_ENCODERS

from jaxrec.config import ModelConfig
from jaxrec.models.inputs import Sizes
from jaxrec.models.recommender import Recommender
from jaxrec.training.growth import AXES


def shapes(config: ModelConfig, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    params = nnx.state(nnx.eval_shape(lambda: Recommender(config, sizes, nnx.Rngs(0))))
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("name", GRAPH_ENCODERS)
def test_every_axis_that_grows_with_the_data_is_known(name):
    options = {"experts": ("id+graph+text",), "hidden_size": 4, "graph_heads": 2}
    config = ModelConfig(**options | GRAPH_ENCODERS[name])
    small, large = (Sizes(10 * n, 14 * n, n, n, 3) for n in (1, 2))
    before, after = shapes(config, small), shapes(config, large)
    for path, shape in before.items():
        grown = sum(old != new for old, new in zip(shape, after[path], strict=True))
        axes = next((axes for pattern, axes in AXES if pattern.search(path)), ())
        assert len(axes) == grown, path
