import pytest

from jaxrec.config import (
    Config,
    parse,
    read_recipe,
)
from jaxrec.config.renamed import OPTIONS
from jaxrec.errors import ConfigError
from jaxrec.ranking.strategy import read_strategy


@pytest.mark.parametrize(("old", "new"), [item for item in OPTIONS.items() if item[0][0] != "f"])
def test_an_old_option_name_is_refused_with_the_new_one(tmp_path, old, new):
    section, option = new.split(".")
    assert hasattr(getattr(Config(), section), option)
    message = f"{old} is now {new}"
    for arguments in [f"--{old}", "3"], [f"--{old}=3"], [f"--{old.replace('_', '-')}", "3"]:
        with pytest.raises(ConfigError, match=f"^{message}$"):
            parse(arguments)
    recipe = tmp_path / "config.yaml"
    section, option = old.split(".")
    recipe.write_text(f"{section}: {{{option}: 3}}\n")
    with pytest.raises(ConfigError, match=rf"config\.yaml: {message}$"):
        read_recipe(recipe)


def test_an_old_option_name_of_a_step_is_refused_with_the_new_one(tmp_path):
    strategy = tmp_path / "strategy.yaml"
    strategy.write_text("- feedback: {kinds: {like: 1}}\n")
    with pytest.raises(ConfigError, match=r"feedback\.kinds is now feedback\.event_weights"):
        read_strategy(strategy)
