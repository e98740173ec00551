"""`jaxrec audience`: the users most likely to choose an item next."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.serving.options import AudienceOptions
from jaxrec.serving.reports import audience


def run(arguments: Sequence[str]) -> None:
    """Find an audience as the arguments say."""
    audience(parse_options(AudienceOptions, arguments, "jaxrec audience"))
