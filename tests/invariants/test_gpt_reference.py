"""GPT: every layer, the logits and the token ids equal the reference implementation.

The golden files are outputs of Hugging Face's PyTorch GPT-2; golden/make_gpt_golden.py makes them.
"""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import TINY_GPT, assert_parity
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from jaxrec.data.text import tokenize
from jaxrec.models.text.build import load_text_encoder

RECORD = np.load(TINY_GPT / "outputs.npz")
PREFIX = "transformer."


@pytest.fixture
def gpt_checkpoint(tmp_path) -> Path:
    """A copy, which a test may change."""
    return Path(shutil.copytree(TINY_GPT, tmp_path / "gpt"))


def test_every_layer_matches_the_reference():
    assert_parity(TINY_GPT, TINY_GPT / "outputs.npz")


def test_names_without_a_prefix_and_stored_masks_match_the_reference(gpt_checkpoint):
    """As the checkpoints of the first GPT-2 are: bare names, and causal masks among the weights."""
    path = gpt_checkpoint / "model.safetensors"
    weights = {name.removeprefix(PREFIX): weight for name, weight in load_file(path).items()}
    assert all(name.partition(".")[0] in ("wte", "wpe", "h", "ln_f") for name in weights)
    weights["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
    weights["h.0.attn.masked_bias"] = np.float32([-1e4])
    weights["lm_head.weight"] = weights["wte.weight"].copy()
    save_file(weights, path)
    assert_parity(gpt_checkpoint, TINY_GPT / "outputs.npz")


def test_the_logits_of_the_next_token_match_the_reference():
    gpt, mask = load_text_encoder(TINY_GPT), RECORD["mask"]
    logits = gpt.next_token_logits(gpt(jnp.asarray(RECORD["ids"]), jnp.asarray(mask)))
    assert logits.shape == (*mask.shape, 340)
    recorded = RECORD["logits"]
    np.testing.assert_allclose(logits[..., : recorded.shape[-1]][mask], recorded[mask], atol=1e-4)


@pytest.mark.parametrize("files", ["vocab.json and merges.txt", "tokenizer.json"])
def test_token_ids_match_the_reference(gpt_checkpoint, files):
    if files == "tokenizer.json":
        tokenizer = AutoTokenizer.from_pretrained(gpt_checkpoint).backend_tokenizer
        tokenizer.save(str(gpt_checkpoint / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt"):
            (gpt_checkpoint / name).unlink()
    tokens = tokenize(RECORD["texts"].tolist(), gpt_checkpoint, 64)
    length = RECORD["ids"].shape[1]
    np.testing.assert_array_equal(tokens.mask[:, :length], RECORD["mask"])
    np.testing.assert_array_equal(tokens.ids[:, :length], RECORD["ids"])
    assert not tokens.mask[:, length:].any()
