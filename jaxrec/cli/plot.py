"""`jaxrec plot`: how a user's interest changed, as a picture."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.serving.options import PlotOptions
from jaxrec.serving.reports import plot


def run(arguments: Sequence[str]) -> None:
    """Draw as the arguments say."""
    plot(parse_options(PlotOptions, arguments, "jaxrec plot"))
