"""`jaxrec profile`: the interests of every user of an events file."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.serving.batch import profile
from jaxrec.serving.options import ProfileOptions


def run(arguments: Sequence[str]) -> None:
    """Write profiles as the arguments say."""
    profile(parse_options(ProfileOptions, arguments, "jaxrec profile"))
