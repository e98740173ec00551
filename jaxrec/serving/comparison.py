"""`jaxrec compare`: the gate before a new run is served."""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from jaxrec.config.ranges import Amount, Bounded
from jaxrec.data.dataset import filtered
from jaxrec.data.events import seconds_of
from jaxrec.errors import Refused
from jaxrec.inference.comparison import compare_models, load_unseen, seconds_seen
from jaxrec.serving.console import console


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Bounded):
    """Compare a new run with the last one on the newest events, which neither has learned from, and
    exit with 3 if the new one is worse."""

    new: tyro.conf.Positional[Path]
    """The new run."""
    last: tyro.conf.Positional[Path]
    """The run that is served now."""
    data: str | None = None
    """Where the events are (by default the data of the new run)."""
    since: str = ""
    """Rank events after this time: ISO 8601 text, or seconds since 1970 (by default the newest
    event that the selected model of one of the runs has learned from)."""
    tolerance: Amount = 0.0
    """Largest loss of NDCG@10 to accept."""


def compare(options: CompareOptions) -> None:
    """Print NDCG@10 of both runs and the interval of their difference.

    Raises:
        Refused: the whole interval lies below minus the tolerance.
        RunError, DataError: a run or the events cannot be used.
        InputError: no event that neither run has seen is left.
    """
    runs = (options.new, options.last)
    since = seconds_of(options.since, "--since") if options.since else seconds_seen(runs)
    new, last = (load_unseen(run, since) for run in runs)
    config = new.config
    if options.data is not None:
        config = replace(config, data=replace(config.data, source=options.data))
    compared = compare_models(new, last, filtered(config).events, since)
    low, high = compared.interval
    scores = "{:.4f} against {:.4f}".format(*compared.ndcg)
    result = (
        f"NDCG@10 {scores} on {len(compared.new):,} events, difference {low:+.4f} to {high:+.4f}"
    )
    if high < -options.tolerance:
        raise Refused(f"{options.new} is worse than {options.last}: {result}")
    console.print(f"{options.new} is not worse than {options.last}: {result}")
