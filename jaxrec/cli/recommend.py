"""`jaxrec recommend`: a list for every user of an events file."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.config.renamed import COMMANDS, refuse_old_flags
from jaxrec.serving.batch import recommend
from jaxrec.serving.options import RecommendOptions


def run(arguments: Sequence[str]) -> None:
    """Recommend as the arguments say."""
    refuse_old_flags(arguments, set(COMMANDS) - {"--out"})
    recommend(parse_options(RecommendOptions, arguments, "jaxrec recommend"))
