"""BERT: every layer equals the reference implementation on the real weights.

The golden files are outputs of Hugging Face's PyTorch BERT; golden/make_bert_golden.py makes them.
"""

from pathlib import Path

import numpy as np
import pytest
from helpers.checkpoints import assert_parity
from helpers.paths import GOLDEN

from jaxrec.data.text import MINILM, resolve_pretrained, tokenize
from jaxrec.errors import FetchError
from jaxrec.inference.text_features import (
    encode_texts,
)
from jaxrec.models.text.build import load_text_encoder


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return resolve_pretrained(MINILM)
    except FetchError as error:
        pytest.skip(f"no access to the real weights: {error}")


def test_real_weights_match_the_reference_layer_by_layer(minilm):
    assert_parity(minilm, GOLDEN / "bert_minilm.npz")


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_bert_legacy"])
def test_either_naming_of_weights_matches_the_reference(name):
    assert_parity(GOLDEN / name, GOLDEN / name / "outputs.npz")


def test_real_texts_get_the_reference_vectors():
    try:
        directory = resolve_pretrained(MINILM)
    except FetchError as error:
        pytest.skip(f"the real weights are not here: {error}")
    record = np.load(GOLDEN / "bert_minilm.npz")
    tokens = tokenize(record["texts"].tolist(), directory, 64)
    vectors = encode_texts(load_text_encoder(directory), tokens, batch_size=2)
    np.testing.assert_allclose(vectors, record["pooled"], atol=1e-5)
