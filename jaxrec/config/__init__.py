"""Options, recipes and the command line that overrides them."""

from jaxrec.config.options import (
    Config,
    DataConfig,
    EvaluationConfig,
    ForecastConfig,
    ModelConfig,
    SplitConfig,
    TextConfig,
    TrainConfig,
    WarmStartConfig,
)
from jaxrec.config.parsing import parse, parse_options, read_recipe, read_yaml, recipes, to_yaml

__all__ = [
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ForecastConfig",
    "ModelConfig",
    "SplitConfig",
    "TextConfig",
    "TrainConfig",
    "WarmStartConfig",
    "parse",
    "parse_options",
    "read_recipe",
    "read_yaml",
    "recipes",
    "to_yaml",
]
