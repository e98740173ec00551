import pytest

from jaxrec.config import DataConfig, parse
from jaxrec.errors import ConfigError


def test_an_event_type_is_weighted_or_negative_but_not_both():
    with pytest.raises(ConfigError, match="return is among negative_event_types"):
        DataConfig(event_weights={"return": 2.0})
    with pytest.raises(ConfigError, match="buy must be 0 or more"):
        DataConfig(event_weights={"buy": -1.0})
    assert DataConfig(event_weights={"return": 0.0}).event_weights == {"return": 0.0}


TRANSFORMER = {"model.sequence": "transformer"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train.sequence_length": 32},
            "window 64 is longer than train.sequence_length 32",
        ),
        ({"model.sequence_heads": 3}, "sequence_heads: hidden_size 64 cannot be divided among 3"),
        (
            {"model.hidden_size": 6},
            "6 cannot be divided among 2 heads of an even width",
        ),
    ],
)
def test_options_of_the_transformer_fit_together(options, message):
    parse(layers=[options])  # they mean nothing to the other encoders
    with pytest.raises(ConfigError, match=message):
        parse(layers=[TRANSFORMER, options])


def test_a_shorter_window_fits_shorter_rows():
    options = {"train.sequence_length": 32, "model.sequence_window": 32}
    assert parse(layers=[TRANSFORMER, options]).model.sequence_window == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.aggregate": "max"}, r"aggregate: max is for graph_layer sage, not gin"),
        ({"model.normalize_nodes": True}, r"normalize_nodes is for graph_layer sage, not gin"),
        (
            {"model.graph_layer": "transformer", "model.graph_heads": 5},
            r"graph_heads: hidden_size 64 cannot be divided among 5 heads",
        ),
        ({"model.context": "replace", "model.graph_heads": 5}, r"graph_heads: hidden_size 64"),
        ({"model.context": "after", "model.num_graph_layers": 0}, r"context: .* choose replace"),
        ({"model.context": "replace", "model.experts": ["id", "text"]}, r"context: no expert"),
        ({"model.context": "replace", "train.fan_out": 4}, r"fan_out: .* set train\.fan_out to 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_of_the_graph_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}"):
        parse(layers=[options])


def test_options_of_the_graph_that_fit_together():
    """A recipe's `aggregate: sum` does not stand in the way of another layer."""
    for options in (
        {"model.graph_layer": "sage", "model.aggregate": "max", "model.normalize_nodes": True},
        {"model.graph_layer": "transformer", "model.aggregate": "sum", "train.fan_out": 4},
        {"model.context": "replace", "model.num_graph_layers": 0},
        {"model.graph_heads": 5},
    ):
        parse(layers=[options])


def test_a_sampled_loss_is_for_one_shop():
    options = {"data.shops": {"a": "x", "b": "y"}, "model.experts": ["text"]}
    with pytest.raises(ConfigError, match=r"sampled_softmax is for one shop"):
        parse(layers=[options | {"train.loss": "sampled_softmax"}])


def test_the_list_of_forgotten_users_has_another_key_than_the_ids():
    with pytest.raises(ConfigError, match=r"forgotten: .* give the list another name"):
        parse(layers=[{"data.forgotten": "a/id.txt", "data.id_key": "a/id.key"}])
    parse(layers=[{"data.forgotten": "a/forgotten.txt", "data.id_key": "a/id.key"}])
