"""`jaxrec similar`: the nodes most similar to one."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.serving.options import SimilarOptions
from jaxrec.serving.reports import similar


def run(arguments: Sequence[str]) -> None:
    """Show similar nodes as the arguments say."""
    similar(parse_options(SimilarOptions, arguments, "jaxrec similar"))
