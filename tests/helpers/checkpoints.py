"""Comparison of a text encoder with its golden files."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from helpers.paths import GOLDEN
from jaxrec.models.text.bert import load_bert, mean_pool

TINY = GOLDEN / "tiny_bert"


def assert_parity(directory: Path, golden: Path) -> None:
    record = np.load(golden)
    ids, mask = jnp.asarray(record["ids"]), jnp.asarray(record["mask"])
    bert = load_bert(directory)
    assert len(record["hidden"]) == len(bert.blocks) + 1
    dimensions = record["hidden"].shape[-1]
    hidden = bert.embed(ids)
    for layer, expected in enumerate(record["hidden"]):
        if layer > 0:
            hidden = bert.layers(hidden, mask, start=layer - 1, stop=layer)
        actual = np.asarray(hidden)[..., :dimensions]
        np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-5, err_msg=f"{layer=}")
    np.testing.assert_allclose(mean_pool(hidden, mask), record["pooled"], atol=1e-5)
