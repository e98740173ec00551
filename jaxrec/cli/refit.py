"""`jaxrec refit`: a finished run trained again on more of its events."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxrec import api
from jaxrec.config import parse_options
from jaxrec.config.train import RefitEvents


@dataclass(frozen=True, kw_only=True)
class RefitOptions:
    """Train a finished run again on more events, for as many epochs as the selected model had. All
    commands use that model from then on; `metrics.json` keeps the figures of the selected one. A
    refit that was stopped continues."""

    run: tyro.conf.Positional[Path]
    """A run directory of `jaxrec train`."""
    events: RefitEvents | None = None
    """`validation`: train on the validation events too, and test the model. `all`: on the test
    events too. By default what `train.refit` of the run says, or else `all`."""
    data: str | None = None
    """Where the data are now, if they have moved or grown."""


def run(arguments: Sequence[str]) -> None:
    """Fit as the arguments say."""
    options = parse_options(RefitOptions, arguments, "jaxrec refit")
    api.refit(options.run, events=options.events, data=options.data)
