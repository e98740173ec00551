"""jaxrec: recommend from where a user's interest is now, by a graph, text and event sequences.

`fit` trains a recipe, `load` loads a run, `Config` holds every option. Parts to use alone:
`jaxrec.models`, `jaxrec.training.losses`, `jaxrec.evaluation.metrics` and `jaxrec.ranking.top_k`.
"""

from importlib import import_module
from typing import Any

from jaxrec.compiler import set_xla_flags

# imported when first used (PEP 562): `import jaxrec` is quick, and serving never loads training
_HOMES = {
    "fit": "jaxrec.api",
    "refit": "jaxrec.api",
    "add_forecast": "jaxrec.api",
    "configure": "jaxrec.api",
    "load": "jaxrec.inference.loading",
    "pseudonym": "jaxrec.data.pseudonyms",
    "Config": "jaxrec.config",
    "Tables": "jaxrec.data.tables",
}
__all__ = sorted(_HOMES)

set_xla_flags()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
