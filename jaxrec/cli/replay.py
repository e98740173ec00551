"""`jaxrec replay`: what live updates gain on held-out events."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.serving.options import ReplayOptions
from jaxrec.serving.reports import replay


def run(arguments: Sequence[str]) -> None:
    """Replay as the arguments say."""
    replay(parse_options(ReplayOptions, arguments, "jaxrec replay"))
