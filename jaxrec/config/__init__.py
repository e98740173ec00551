"""Options, recipes and the command line that overrides them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxrec.config.options import (
    Config,
    DataConfig,
    EvaluationConfig,
    ForecastConfig,
    ModelConfig,
    SplitConfig,
    TextConfig,
    WarmStartConfig,
)
from jaxrec.config.plan import PlanConfig
from jaxrec.config.privacy import PrivacyConfig
from jaxrec.config.train import TrainConfig

if TYPE_CHECKING:
    from jaxrec.config.parsing import (
        parse,
        parse_options,
        read_recipe,
        read_yaml,
        recipes,
        to_yaml,
    )

__all__ = [
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ForecastConfig",
    "ModelConfig",
    "PlanConfig",
    "PrivacyConfig",
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


def __getattr__(name: str) -> Any:
    # imported when first used: a machine that only computes need not have tyro
    if name not in __all__:
        raise AttributeError(f"module 'jaxrec.config' has no attribute {name!r}")
    return getattr(import_module("jaxrec.config.parsing"), name)
