"""`jaxrec pretrain`: a text encoder trained further on a shop's own texts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from jaxrec import api
from jaxrec.config import Config, parse_options
from jaxrec.errors import ConfigError
from jaxrec.training.pretraining.options import PretrainOptions

SECTIONS = {section.name for section in fields(Config)}


@dataclass(frozen=True, kw_only=True)
class PretrainCommand(PretrainOptions):
    """Train a text encoder further on a shop's item texts and training histories, and write it as
    a checkpoint for `jaxrec train --text.pretrained DIR`. Give the `--config`, `--data.*`,
    `--split.*` and `--text.*` options of the training that follows: no event that it holds out is
    learned. A pre-training that was stopped continues with the same command."""

    out: str
    """Directory to write."""
    data: str | None = None
    """The data set, as in `jaxrec train`; short for --data.source."""
    config: str | None = None
    """A YAML recipe, or the name of a shipped one, as in `jaxrec train`."""


def run(arguments: Sequence[str]) -> None:
    """Pre-train as the arguments say."""
    own, overrides = _separated(arguments)
    if sum(argument.partition("=")[0] == "--data" for argument in own) > 1:
        raise ConfigError("a text encoder is pre-trained on one shop; give one --data")
    given = parse_options(PretrainCommand, own, "jaxrec pretrain")
    options = PretrainOptions(
        **{option.name: getattr(given, option.name) for option in fields(PretrainOptions)}
    )
    api.pretrain(given.out, options, recipe=given.config, data=given.data, arguments=overrides)


def _separated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of this command, and `--section.option VALUE ...` of `jaxrec train`."""
    own: list[str] = []
    overrides: list[str] = []
    group = own
    for argument in arguments:
        if argument.startswith("--"):
            section, dot, _ = argument[2:].partition(".")
            group = overrides if dot and section in SECTIONS else own
        group.append(argument)
    return own, overrides
