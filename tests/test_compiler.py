import os

import jax
import numpy as np

from jaxrec import compiler


def test_sums_of_products_are_compiled_to_right_values():
    """One version of jaxlib does not, unless a flag is set."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 8)).astype(np.float32)
    weights = random.normal(size=(48, 256, 8)).astype(np.float32)

    def scaled(x, weights):
        return (x[None] * weights).sum(-1)[..., None] * x[None]

    np.testing.assert_allclose(jax.jit(scaled)(x, weights), scaled(x, weights), atol=1e-3)


def test_options_are_added_to_flags_and_given_ones_stay(monkeypatch):
    monkeypatch.setattr(compiler, "FUSION_OPTIONS", {"xla_a": "1", "xla_b": "2"})
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=3")
    compiler.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_b=3 --xla_a=1"
    monkeypatch.delenv("XLA_FLAGS")
    compiler.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_b=2"
