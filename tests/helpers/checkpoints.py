"""Comparison of a text encoder with its golden files."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from helpers.paths import GOLDEN
from jaxrec.models.text.build import load_text_encoder

TINY = GOLDEN / "tiny_bert"
TINY_GPT = GOLDEN / "tiny_gpt"


def assert_parity(directory: Path, golden: Path) -> None:
    record = np.load(golden)
    ids, mask = jnp.asarray(record["ids"]), jnp.asarray(record["mask"])
    encoder = load_text_encoder(directory)
    layers = len(encoder.blocks)
    assert len(record["hidden"]) == layers + 1
    dimensions = record["hidden"].shape[-1]
    hidden = encoder.embed(ids)
    for layer, expected in enumerate(record["hidden"]):
        if layer > 0:
            stop = layer if layer < layers else None  # the last one is recorded behind its norm
            hidden = encoder.layers(hidden, mask, start=layer - 1, stop=stop)
        actual = np.asarray(hidden)[..., :dimensions]
        np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-5, err_msg=f"{layer=}")
    np.testing.assert_allclose(encoder.pool(hidden, mask), record["pooled"], atol=1e-5)
