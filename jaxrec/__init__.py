"""jaxrec: recommend from where a user's interest is now, by a graph, text and event sequences.

`fit` trains a recipe, `load` loads a run, `Config` holds every option. Parts to use alone:
`jaxrec.models`, `jaxrec.training.losses`, `jaxrec.evaluation.metrics` and `jaxrec.ranking.top_k`.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import Any

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

# On CPUs, jaxlib 0.10.2 compiles some sums of products to wrong values
# (https://github.com/jax-ml/jax/issues/39103). XLA reads the flag when JAX computes first. Products
# alone may stay with that library: without them a training step takes 1.4 times as long.
_FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_FLAGS = os.environ.get("XLA_FLAGS", "")
if version("jaxlib") == "0.10.2" and _FUSION_FLAG not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {_FUSION_FLAG}=individual_dot".strip()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
