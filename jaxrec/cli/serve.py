"""`jaxrec serve`: recommendations over HTTP."""

from collections.abc import Sequence

from jaxrec.config import parse_options
from jaxrec.config.renamed import refuse_old_flags
from jaxrec.serving.options import ServeOptions
from jaxrec.serving.server import serve


def run(arguments: Sequence[str]) -> None:
    """Serve as the arguments say."""
    refuse_old_flags(arguments)
    serve(parse_options(ServeOptions, arguments, "jaxrec serve"))
