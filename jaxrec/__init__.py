"""jaxrec: dynamic user-interest evolution with a graph, text and event sequences, in JAX.

`fit` trains a recipe, `load` brings a run back, `Config` holds every option; the parts stand in
`jaxrec.models`, `jaxrec.training.losses`, `jaxrec.evaluation.metrics` and `jaxrec.ranking.top_k`.
"""

from importlib import import_module
from typing import Any

# loaded when first used (PEP 562): `import jaxrec` is quick, and serving never loads training
_HOMES = {
    "fit": "jaxrec.api",
    "configure": "jaxrec.api",
    "load": "jaxrec.inference.loading",
    "Config": "jaxrec.config",
    "Tables": "jaxrec.data.tables",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
