"""The commands that use a trained model: the options and the function of each."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxrec.config import parse_options
from jaxrec.config.renamed import refuse_old_flags
from jaxrec.serving import batch, comparison, forget, options, reports, server
from jaxrec.serving.console import silence

CALLS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "recommend": (options.RecommendOptions, batch.run),
    "compare": (comparison.CompareOptions, comparison.compare),
    "serve": (options.ServeOptions, server.serve),
    "explain": (options.ExplainOptions, reports.explain),
    "audience": (options.AudienceOptions, reports.audience),
    "profile": (options.ProfileOptions, batch.run),
    "similar": (options.SimilarOptions, reports.similar),
    "replay": (options.ReplayOptions, reports.replay),
    "plot": (options.PlotOptions, reports.plot),
    "forget": (forget.ForgetOptions, forget.forget_users),
    "export": (options.ExportOptions, reports.export),
}


def run(command: str, arguments: Sequence[str]) -> None:
    """Run a command with its arguments."""
    refuse_old_flags(command, arguments)
    options_type, call = CALLS[command]
    given: Any = parse_options(options_type, arguments, f"jaxrec {command}")
    with silence(getattr(given, "quiet", False)):
        call(given)
