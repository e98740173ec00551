from dataclasses import dataclass

import pytest

from jaxrec.config import (
    parse,
)
from jaxrec.config.ranges import Amount, Bounded
from jaxrec.errors import ConfigError


@dataclass(frozen=True)
class Optional(Bounded):
    bid: Amount | None = None


@pytest.mark.parametrize("bid", [-1.0, float("nan"), float("inf")])
def test_an_option_that_may_be_left_out_has_bounds_too(bid):
    assert Optional().bid is None
    assert Optional(0.5).bid == 0.5
    with pytest.raises(ConfigError, match=r"bid must be (0 or more)?( and )?(finite)?, not"):
        Optional(bid)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.min_user_events", -1),
        ("split.test_quantile", 1.0),
        ("model.experts", []),
        ("model.num_layers", 0),
        ("model.dropout", 1.0),
        ("model.temperature", 0.0),
        ("text.max_tokens", 0),
        ("train.epochs", 0),
        ("train.patience", 0),
        ("train.batch_size", 0),
        ("train.learning_rate", float("nan")),
        ("train.auxiliary", ["brand", "item"]),
        ("evaluation.history", -1),
        ("evaluation.history", 2**70),
        ("train.sequence_length", 2**40),
        ("train.seed", -1),
        ("train.seed", 2**70),
        ("train.learning_rate", float("inf")),
        ("model.temperature", float("inf")),
        ("data.source", ""),
        ("text.pretrained", " "),
        ("evaluation.k", 0),
    ],
)
def test_a_value_out_of_range_names_the_option(name, value):
    section, option = name.split(".")
    with pytest.raises(ConfigError, match=rf"^({section}\.)?{option}\b.*[^.]$"):
        parse(layers=[{name: value}])
