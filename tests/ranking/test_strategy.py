"""Strategies read from YAML, and rules given as options."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import tyro

from jaxrec.errors import ConfigError, InputError
from jaxrec.ranking.steps import (
    Boost,
    Caps,
    Diversity,
    Epsilon,
    Explore,
    Feedback,
    Only,
    Popularity,
    Session,
    Where,
)
from jaxrec.ranking.strategy import Rules, read_strategy, steps_of


def test_a_file_of_steps_is_read_in_its_order(tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text(
        """
        - feedback
        - session: {weight: 0.5}
        - where: price < 5
        - only: [i1, i2]
        - boost: {where: brand = 'b1', by: -1}
        - popularity: 0.5
        - caps: {brand: 2}
        - diversity: {strength: 0.3}
        - explore: {share: 0.1}
        - epsilon: {rate: 0.1}
        """
    )
    assert read_strategy(file) == (
        Feedback(),
        Session(0.5),
        Where("price < 5"),
        Only(["i1", "i2"]),
        Boost("brand = 'b1'", -1),
        Popularity(0.5),
        Caps({"brand": 2}),
        Diversity(0.3),
        Explore(0.1),
        Epsilon(0.1),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("caps: {brand: 2}", "write a list of steps"),
        ("- [", "not valid YAML"),
        ("- capss: {brand: 2}", "no step 'capss'; give one of where, only"),
        ("- {caps: {brand: 2}, where: x}", "write one `name: options`"),
        ("- caps: {brand: 0}", "lets no item pass"),
        ("- epsilon: {rate: 2}", "rate: 2 is not between 0 and 1"),
        ("- session: {weigth: 1}", "with the options weight, gap_minutes"),
        ("- feedback: {half_life_days: 0}", "half_life_days: 0 is not above 0"),
        ("- explore", "step 1"),
        ("- where: 5", "condition"),
        ("- boost: {where: price > 1, by: much}", "by"),
    ],
)
def test_an_invalid_strategy_file_names_the_place_and_the_reason(tmp_path, text, reason):
    file = tmp_path / "strategy.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"strategy\.yaml") as error:
        read_strategy(file)
    assert reason in str(error.value)


NUMBER = "is not a number from -1,000,000 to 1,000,000"


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (
            "boost: {where: price < 5, by: .nan}",
            f"(boost, with the options where, by): by: nan {NUMBER}",
        ),
        ("boost: {where: price < 5, by: .inf}", f"by: inf {NUMBER}"),
        ("boost: {where: price < 5, by: 1e3}", "by: '1e3' is not a number"),
        ("feedback: {event_weights: [a]}", "event_weights: ['a'] is not a mapping"),
        ("feedback: {event_weights: {like: x}}", f"event_weights: like: 'x' {NUMBER}"),
        ("feedback: {event_weights: {buy: null}}", f"event_weights: buy: None {NUMBER}"),
        ("feedback: {event_weights: {buy: .nan}}", f"event_weights: buy: nan {NUMBER}"),
        ("feedback: {event_weights: {1: 2}}", "event_weights, key: 1 is not text"),
        ("feedback: {event_weights: null}", "event_weights: None is not a mapping"),
        ("feedback: {event_weights: 5}", "event_weights: 5 is not a mapping"),
        ("feedback: {item: .inf}", f"item: inf {NUMBER}"),
        ("feedback:", "None is no mapping"),
        ("caps: {brand: 1.5}", "limits: brand: 1.5 is not a whole number"),
        ("caps: {brand: 99999999999999999999}", "is not a whole number of 32 bits"),
        ("caps: {brand: true}", "limits: brand: True is not a whole number"),
        ("caps: {brand: x}", "limits: brand: 'x' is not a whole number"),
        ("caps: [1, 2]", "limits: [1, 2] is not a mapping"),
        ("caps: 5", "limits: 5 is not a mapping"),
        ("caps:", "limits: None is not a mapping"),
        ("caps", "limits is missing"),
        ("only: {a: b}", "only: {'a': 'b'} is neither a file nor a list of ids"),
        ("only: 5", "only: 5 is neither"),
        ("only:", "only: None is neither"),
        ("only: [1, [a]]", "only: ['1', ['a']]: give ids as text"),
        ("only: [a, null]", "null or empty"),
        ("without: true", "without: True is neither"),
        ("popularity: 1e300", "strength: '1e300' is not a number"),
        ("popularity: 1.0e+300", f"strength: 1e+300 {NUMBER}"),
        ("session: {weight: '1'}", "it is read as text, so write it plainly"),
        ("session: {gap_minutes: .inf}", f"gap_minutes: inf {NUMBER}"),
        ("diversity: 0.5", "0.5 is no mapping; write {option: value}"),
        ("epsilon: {rate: 0.1, pool: 2.5}", "pool: 2.5 is not a whole number"),
        ("explore", "share is missing"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(unchecked, tmp_path, step, reason):
    file = tmp_path / "strategy.yaml"
    file.write_text(f"- feedback\n- {step}")
    with pytest.raises(ConfigError, match=r"strategy\.yaml, step 2 \(") as error:
        read_strategy(file)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_of_a_file_may_be_numbers(tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text("- only: [1, a]\n- without: [2, 3]")
    only, without = read_strategy(file)
    assert only.ids().to_list() == ["1", "a"]
    assert without.ids().to_list() == ["2", "3"]


def test_a_step_made_in_python_is_checked_too(unchecked):
    for make in (
        lambda: Boost("price < 5", float("nan")),
        lambda: Caps({"brand": 1.5}),
        lambda: Feedback(event_weights={1: 2}),
        lambda: Where(5),
        lambda: Only(5),
    ):
        with pytest.raises(InputError):
            make()


def test_rules_become_steps_in_the_order_of_batch_scoring():
    rules = Rules(where="price < 9", caps={"brand": 1}, diversity=0.5, pool=7, explore=0.2)
    assert steps_of(rules) == (
        Where("price < 9"),
        Caps({"brand": 1}),
        Diversity(0.5, 7),
        Explore(0.2),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "seen"}, "mask: 'seen' is one text"),
        ({"caps": {"brand": 2, "category": 0}}, "caps: category 0"),
        ({"diversity": 1.1}, "diversity: 1.1"),
        ({"diversity": float("nan")}, "diversity: nan"),
        ({"explore": -0.1}, "explore: -0.1"),
        ({"pool": 0}, "pool: 0"),
        ({"popularity": -1.0}, "popularity: -1.0"),
        ({"popularity": float("inf")}, "popularity: inf"),
        ({"explore_events": -1}, "explore_events: -1"),
    ],
)
def test_options_out_of_range_are_refused(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        Rules(**options)


def test_options_at_the_ends_of_their_ranges_are_valid():
    low = Rules(caps={"brand": 1}, diversity=0, explore=0, pool=1, popularity=0, explore_events=0)

    assert replace(low, diversity=1, explore=1).caps == {"brand": 1}


@dataclass(frozen=True)
class Command:
    """A command with options of its own beside the rules."""

    k: int = 10
    rules: tyro.conf.OmitArgPrefixes[Rules] = field(default_factory=Rules)


def from_flags(*flags):
    return tyro.cli(
        Command, args=flags, config=(tyro.conf.FlagConversionOff,), use_underscores=True
    )


def test_rules_are_flags_of_a_command():
    command = from_flags(
        *("--mask", "buy", "cart", "--where", "price < 50 AND brand = 'A'", "--only", "ids.csv"),
        *("--without", "a", "b", "--caps", "brand", "2", "category", "3", "--diversity", "0.3"),
        *("--pool", "50", "--popularity", "0.5", "--explore", "0.1", "--explore_events", "2"),
    )

    assert command.rules == Rules(
        mask=("buy", "cart"),
        where="price < 50 AND brand = 'A'",
        only=Path("ids.csv"),
        without=("a", "b"),
        caps={"brand": 2, "category": 3},
        diversity=0.3,
        pool=50,
        popularity=0.5,
        explore=0.1,
        explore_events=2,
    )
    assert from_flags().rules == Rules()


def test_flags_out_of_range_stop_the_command_with_the_reason(capsys):
    with pytest.raises(SystemExit):
        from_flags("--diversity", "2")

    assert "diversity: 2.0 is not between 0 and 1" in " ".join(capsys.readouterr().err.split())


def test_the_old_name_of_an_option_is_refused_with_the_new_name(tmp_path):
    file = tmp_path / "strategy.yaml"
    file.write_text("- feedback: {kinds: {dislike: -1}}")

    with pytest.raises(ValueError, match=r"feedback\.kinds is now feedback\.event_weights"):
        read_strategy(file)
