"""What some versions of XLA compile wrongly, and the options that keep them from it."""

import os

from jaxlib.version import __version__

# On CPUs, jaxlib 0.10.2 compiles some sums of products to wrong values
# (https://github.com/jax-ml/jax/issues/39103); 0.11 has such fusions too, 0.12 has right ones.
# Products alone may stay with the library behind them: without it a training step takes 1.4 times
# as long.
FUSION_OPTIONS = (
    # as a flag it may be shorter, as an option of one program not
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    if __version__ == "0.10.2" or __version__.startswith("0.11.")
    else {}
)


def set_xla_flags() -> None:
    """Add the options to XLA_FLAGS, which XLA reads when JAX computes first; given ones stay."""
    flags = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in FUSION_OPTIONS.items() if name not in flags]
    if added:
        os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()
