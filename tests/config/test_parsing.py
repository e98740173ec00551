import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tyro
import yaml

from jaxrec.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PrivacyConfig,
    TrainConfig,
    parse,
    parse_options,
    read_recipe,
    recipes,
    to_yaml,
)
from jaxrec.errors import ConfigError, Interrupted

SHIPPED = sorted(path.stem for path in recipes().glob("*.yaml"))


def test_no_layers_and_no_arguments_give_the_defaults():
    assert parse() == Config()


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            data=DataConfig(
                event_weights={"buy": 2.5, "view": 0.0}, text_columns=(), drop_repeats=True
            ),
            model=ModelConfig(experts=("id",), time_gaps=False, graph_layer="residual"),
            train=TrainConfig(learning_rate=1e-5, auxiliary=(), bf16=True),
            evaluation=EvaluationConfig(mask=("buy", "cart")),
        ),
    ],
    ids=["defaults", "changed"],
)
def test_yaml_reads_back_to_the_same_configuration(config):
    assert parse(layers=[yaml.safe_load(to_yaml(config))]) == config


def test_arguments_override_later_layers_and_those_override_earlier_ones():
    layers: list[dict] = [
        {"model": {"hidden_size": 8, "num_layers": 3}, "train": {"batch_size": 1}},
        {"model.hidden_size": 16, "train": {"batch_size": 2}},
    ]
    config = parse(["--model.hidden_size", "32"], layers)
    assert (config.model.hidden_size, config.train.batch_size, config.model.num_layers) == (
        32,
        2,
        3,
    )


def test_an_override_replaces_a_whole_list():
    config = parse(["--model.experts", "text"], [{"model": {"experts": ["id", "text+graph"]}}])
    assert config.model.experts == ("text",)


def test_options_in_a_group_are_given_like_others():
    config = parse(["--train.privacy.clip", "0.5"], [{"train": {"privacy": {"delta": 1e-6}}}])
    assert config.train.privacy == PrivacyConfig(delta=1e-6, clip=0.5)
    assert parse(layers=[yaml.safe_load(to_yaml(config))]) == config
    with pytest.raises(ConfigError, match=r"no option train\.privacy; .*--train\.privacy\.clip"):
        parse(layers=[{"train": {"privacy": 8}}])
    with pytest.raises(ConfigError, match=r"^train\.privacy\.clip must be above 0, not -1"):
        parse(layers=[{"train.privacy.clip": -1}])


@pytest.mark.parametrize("name", ["train.learning_rate", "forecast.learning_rate"])
def test_a_value_out_of_bounds_is_told_with_its_section(name):
    with pytest.raises(ConfigError, match=rf"^{name} must be above 0, not 0\.0"):
        parse([f"--{name}", "0"])


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [(["--model.hiden_size", "8"], []), ([], [{"model": {"hiden_size": 8}}])],
    ids=["argument", "recipe"],
)
def test_an_unknown_option_suggests_the_nearest(arguments: list[str], layers: list[dict]):
    with pytest.raises(ConfigError, match=r"(?s)hiden_size.*--model\.hidden_size"):
        parse(arguments, layers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.hidden_size", "wide"),
        ("train.bf16", "perhaps"),
        ("split.scheme", "random"),
        ("train.epochs", 1.5),
    ],
)
def test_a_value_of_the_wrong_type_names_the_option_and_the_value(name, value):
    with pytest.raises(ConfigError) as error:
        parse(layers=[{name: value}])
    assert name in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipes_parse(recipe):
    entries = read_recipe(recipe)
    config = parse(layers=[entries])
    assert config != Config()
    assert yaml.safe_load(to_yaml(config))["data"]["source"] == entries["data.source"]


def test_a_recipe_holds_only_what_differs_from_its_base(tmp_path):
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("model: {hidden_size: 8, num_layers: 3}\ndata: {source: shop}\n")
    child.write_text(f"base: {base}\nmodel: {{hidden_size: 16}}\n")
    assert read_recipe(child) == {
        "model.hidden_size": 16,
        "model.num_layers": 3,
        "data.source": "shop",
    }


def test_a_recipe_may_start_from_a_shipped_one(tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("base: ml100k\ntrain: {seed: 7}\n")
    expected = parse(layers=[read_recipe("ml100k")])
    expected = replace(expected, train=replace(expected.train, seed=7))
    assert parse(layers=[read_recipe(child)]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {hidden_size: 8", "not valid YAML"),
        ("- model\n- train\n", "must hold"),
        ("", "must hold"),
    ],
)
def test_a_broken_recipe_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"broken\.yaml.*{message}"):
        read_recipe(path)


def test_a_missing_recipe_lists_the_available_ones():
    with pytest.raises(ConfigError, match=r"'ml100'.*ml100k"):
        read_recipe("ml100")


def test_a_recipe_that_is_its_own_base_is_named(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"base: {first}\n")
    with pytest.raises(ConfigError, match=r"first\.yaml is its own base"):
        read_recipe(first)
    first.write_text(f"base: {second}\n")
    second.write_text(f"base: {first}\n")
    with pytest.raises(ConfigError, match=r"own base: .*first.* -> .*second.* -> .*first"):
        read_recipe(first)


def test_a_recipe_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"shop\.yaml is not UTF-8 text"):
        read_recipe(path)


@pytest.mark.parametrize(
    "base",
    ["5", "[a]", "{a: b}", "true", "2024-01-01", "", "null"],
    ids=lambda base: base or "none",
)
def test_a_base_that_is_no_name_is_refused(tmp_path, base):
    path = tmp_path / "shop.yaml"
    path.write_text(f"base: {base}\ntrain: {{seed: 1}}\n")
    with pytest.raises(ConfigError, match=r"shop\.yaml: base must be a YAML file or the name"):
        read_recipe(path)


@pytest.mark.parametrize(
    "text",
    [
        "x: 2024-99-99",
        f"x: {'9' * 5000}",
        "x: " + "[" * 3000 + "]" * 3000,
        "x: !!timestamp noon",
        "x: !!int ''",
        "x: !!bool perhaps",
        "x: !!python/object:os.system a",
    ],
    ids=["date", "number", "depth", "timestamp", "int", "bool", "object"],
)
def test_values_that_yaml_cannot_build_are_not_valid(tmp_path, text):
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"shop\.yaml is not valid YAML: ."):
        read_recipe(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"help": 1}, "there is no option help"),
        ({1: 2}, "there is no option 1;"),
        ({"": 1}, "there is no option ;"),
        ({"model": None}, r"there is no option model; did you mean --model\.experts"),
        ({"data": "shop"}, r"there is no option data; did you mean --data\.source"),
        ({"hidden_size": 8}, r"did you mean --model\.hidden_size\?"),
        ({"model": {"-x": 8}}, r"there is no option model\.-x"),
        ({"data.source": ["a", "b"]}, r"data\.source must be one value, not \['a', 'b'\]"),
        ({"data.source": None}, r"data\.source must be one value"),
        ({"model.hidden_size": {"a": 1}}, r"model\.hidden_size must be one value"),
        ({"model.experts": [["id"]]}, r"model\.experts must be a list of values"),
        ({"data.event_weights": ["buy", 2]}, r"data\.event_weights must be NAME: VALUE"),
        ({"data.event_weights": {"buy": [2]}}, r"data\.event_weights must be NAME: VALUE"),
    ],
    ids=str,
)
def test_an_entry_that_is_no_option_is_refused(unchecked, tmp_path, entries, message):
    with pytest.raises(ConfigError, match=message):
        parse(layers=[entries])
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ConfigError, match=rf"shop\.yaml: .*{message}"):
        read_recipe(path)


def test_values_may_begin_with_a_hyphen_as_they_may_with_a_backslash():
    values = ("-x", "--train.epochs", "-", "--", "\\-x", "\\shop", "-1", "--help")
    for config in [
        Config(data=DataConfig(negative_event_types=values, source="-shop")),
        Config(data=DataConfig(event_weights={"-x": 0.5, "--y": 1.0})),
    ]:
        assert parse(layers=[yaml.safe_load(to_yaml(config))]) == config
    assert parse(["--data.source", r"\-shop"]).data.source == "-shop"


@pytest.mark.parametrize("arguments", [["--data.event_weights", "view"], ["--dat", "shop"]])
def test_an_argument_that_does_not_fit_is_answered_in_one_line(arguments):
    with pytest.raises(ConfigError) as error:
        parse(arguments)
    assert str(error.value) in (
        "Error parsing --data.event_weights: write NAME NUMBER, such as view 0.5",
        "there is no option dat; did you mean --data?",
    )


@dataclass(frozen=True)
class Options:
    """Options of a command."""

    name: Path | None = None
    """First line
    `second` line."""
    pairs: dict[str, int] = field(default_factory=dict)
    """Pairs."""
    names: tuple[str, ...] = ()
    """Names."""
    count: int = 3
    """A count."""


def test_help_is_a_paragraph_without_empty_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_options(Options, ["--help"], "jaxrec test")
    shown = capsys.readouterr().out
    assert "First line `second` line. " in shown
    assert "{None}" not in shown
    assert "default: None" not in shown
    assert "default: )" not in shown
    assert "A count. (default: 3)" in shown


@dataclass(frozen=True)
class Required:
    """Options of a command."""

    first: str
    """Some help."""
    second: Path
    """Some help."""


@pytest.mark.parametrize("boxes", [True, False])
def test_missing_options_are_listed_line_by_line(monkeypatch, boxes):
    monkeypatch.setitem(tyro._experimental_options, "utf8_boxes", boxes)
    with pytest.raises(ConfigError) as error:
        parse_options(Required, [], "jaxrec test")
    assert str(error.value) == "Missing from jaxrec test:\n  --first STR\n  --second PATH"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_options_are_read_is_no_bad_input(monkeypatch, number):
    def stopped(*_, **__):
        raise Interrupted(128 + number)

    monkeypatch.setattr(tyro, "cli", stopped)
    with pytest.raises(Interrupted):
        parse_options(Options, [], "jaxrec test")


def test_true_and_false_are_read_as_in_yaml():
    assert parse(["--train.bf16", "true"]).train.bf16 is True
    assert parse(["--train.bf16", "False"], [{"train.bf16": True}]).train.bf16 is False
    with pytest.raises(ConfigError, match="maybe is neither true nor false"):
        parse(["--train.bf16", "maybe"])


def test_a_recipe_may_give_a_value_that_an_option_had_before():
    values = {False: "none", True: "all", "validation": "validation"}
    for before, now in values.items():
        assert parse([], [{"train.refit": before}]).train.refit == now


def test_threads_read_options_at_once():
    recipe = read_recipe("shopping")
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda _: parse(layers=[recipe]), range(8)))
    assert read == [parse(layers=[recipe])] * 8
