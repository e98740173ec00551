"""The model of a configuration."""

from flax import nnx

from jaxrec.config.options import Config
from jaxrec.models.inputs import Sizes
from jaxrec.models.recommender import ModelDef, Recommender, split
from jaxrec.models.text.finetuned import TextTower


def build_model(config: Config, sizes: Sizes, tower: TextTower | None) -> Recommender:
    """A recommender with initial parameters; `tower` as in `Recommender`."""
    return Recommender(
        config.model,
        sizes,
        nnx.Rngs(config.train.seed),
        tower,
        links=config.train.link_weight > 0,
        masked_items=config.train.masked_item_weight > 0,
    )


def model_layout(
    config: Config, sizes: Sizes, tower: TextTower | None
) -> tuple[ModelDef, nnx.State]:
    """The definition of a model, and the shapes of its parameters."""
    return split(nnx.eval_shape(lambda: build_model(config, sizes, tower)))
