import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.checkpoints import TINY, TINY_GPT
from safetensors.numpy import load_file, save_file

from jaxrec.config import Config, ModelConfig, TextConfig
from jaxrec.data.text import Tokens, tokenize
from jaxrec.errors import RunError
from jaxrec.inference import text_features
from jaxrec.inference.text_features import (
    encode_finetuned_text,
    encode_texts,
    hidden_states,
    item_text,
    text_vectors,
    trained_encoder,
)
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.layers import mean_pool

TEXTS = ["red nails", "", "blue soap", "red nails", "tool", "a b c d e f g h i j k l m n o p q r"]


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_encoding(monkeypatch):
    """A function that makes every later encoding fail."""

    def forbidden(*arguments):
        raise AssertionError("encoded again")

    def forbid():
        monkeypatch.setattr(text_features, "load_text_encoder", forbidden)
        monkeypatch.setattr(text_features, "_hidden", forbidden)

    return forbid


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Vectors of TEXTS, each encoded alone and without padding."""
    bert = load_text_encoder(TINY)
    pooled = jax.jit(lambda ids: mean_pool(bert(ids, ids >= 0), ids >= 0)[0])
    rows = []
    for text in TEXTS:
        tokens = tokenize([text], TINY, 40)
        rows.append(pooled(tokens.ids[:, : tokens.lengths[0]]))
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_vectors_do_not_depend_on_the_batch_size(expected, batch_size):
    vectors = encode_texts(load_text_encoder(TINY), tokenize(TEXTS, TINY, 40), batch_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_gpt_reads_each_text_as_if_it_were_alone(pooling):
    encoder, texts = load_text_encoder(TINY_GPT, pooling), ["red nail", "", "a blue tool; soap" * 3]
    vectors = encode_texts(encoder, tokenize(texts, TINY_GPT, 64), 4)
    assert not vectors[1].any()
    for row in (0, 2):
        tokens = tokenize([texts[row]], TINY_GPT, 64)
        ids = jnp.asarray(tokens.ids[:, : tokens.lengths[0]])
        hidden = jax.jit(encoder)(ids, ids >= 0)[0]
        alone = hidden[-1] if pooling == "last" else hidden.mean(0)
        np.testing.assert_allclose(vectors[row], alone, atol=1e-5)


def test_text_vectors_keep_their_order_and_are_cached(expected, cache, no_encoding):
    first = text_vectors(TEXTS, str(TINY), 40)
    np.testing.assert_allclose(first, expected, atol=1e-5)
    np.testing.assert_array_equal(first[0], first[3])
    no_encoding()
    np.testing.assert_array_equal(text_vectors(TEXTS, str(TINY), 40), first)


def test_equal_texts_are_encoded_once(cache, monkeypatch):
    encoded = []

    def encode(encoder, tokens):
        encoded.append(len(tokens.ids))
        return encode_texts(encoder, tokens)

    monkeypatch.setattr(text_features, "encode_texts", encode)
    text_vectors(["red", "blue", "red", "red"], str(TINY), 8)
    assert encoded == [2]


def test_a_new_text_causes_only_its_file_to_be_encoded_again(cache, monkeypatch):
    monkeypatch.setattr(text_features, "TEXTS_PER_FILE", 4)
    texts = [f"soap {number}" for number in range(28)]
    first = text_vectors(texts, str(TINY), 8)
    encoded = []

    def encode(encoder, tokens):
        encoded.append(len(tokens.ids))
        return encode_texts(encoder, tokens)

    monkeypatch.setattr(text_features, "encode_texts", encode)
    second = text_vectors(["tool", *texts[::-1]], str(TINY), 8)
    np.testing.assert_allclose(second[1:], first[::-1], atol=1e-6)
    assert len(encoded) == 1 and encoded[0] < len(texts) / 2


@pytest.mark.parametrize("changed", ["texts", "max_tokens", "weights", "vocabulary", "pooling"])
def test_every_input_of_the_vectors_is_part_of_the_cache_key(cache, no_encoding, tmp_path, changed):
    directory = Path(shutil.copytree(TINY, tmp_path / "checkpoint"))
    text_vectors(TEXTS, str(directory), 40)
    texts = [*TEXTS, "another"] if changed == "texts" else TEXTS
    if changed == "weights":
        weights = load_file(directory / "model.safetensors")
        weights["embeddings.LayerNorm.bias"] += 1
        save_file(weights, directory / "model.safetensors")
    if changed == "vocabulary":
        (directory / "vocab.txt").write_text((TINY / "vocab.txt").read_text() + "extra\n")
    no_encoding()
    with pytest.raises(AssertionError, match="encoded again"):
        pooling = "last" if changed == "pooling" else "auto"
        text_vectors(texts, str(directory), 7 if changed == "max_tokens" else 40, pooling)


def test_the_cache_key_is_the_content_of_a_checkpoint(cache, no_encoding, tmp_path):
    first = text_vectors(TEXTS, str(TINY), 40)
    no_encoding()
    moved = shutil.copytree(TINY, tmp_path / "moved")
    np.testing.assert_array_equal(text_vectors(TEXTS, str(moved), 40), first)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_the_files_of_a_byte_level_tokenizer_are_part_of_the_encoder(tmp_path, file):
    directory = Path(shutil.copytree(TINY_GPT, tmp_path / "checkpoint"))
    digest = item_text(*items_and_config("frozen", directory)).encoder
    assert trained_encoder(str(directory), digest) == directory
    (directory / file).write_text((directory / file).read_text() + "\n")
    with pytest.raises(RunError, match="not the one"):
        trained_encoder(str(directory), digest)


def test_a_failure_leaves_no_file_in_the_cache(cache, monkeypatch):
    def fail_halfway(file, array):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        text_vectors(TEXTS, str(TINY), 40)
    assert list((cache / "text").iterdir()) == []


@pytest.mark.parametrize("stop", [0, 1])
def test_upper_layers_continue_from_hidden_states(expected, cache, stop):
    bert, tokens = load_text_encoder(TINY), tokenize(TEXTS, TINY, 40)
    hidden = hidden_states(bert, tokens, stop, batch_size=4)
    assert hidden.shape == (*tokens.ids.shape, 32)
    assert hidden.dtype == np.float16
    assert not hidden[~tokens.mask].any()
    mask = jnp.asarray(tokens.mask)
    vectors = mean_pool(bert.layers(jnp.asarray(hidden, jnp.float32), mask, start=stop), mask)
    np.testing.assert_allclose(vectors, expected, atol=5e-3)


def test_hidden_states_depend_on_the_lower_weights_alone(cache, no_encoding):
    bert, tokens = load_text_encoder(TINY), tokenize(TEXTS, TINY, 40)
    first = np.array(hidden_states(bert, tokens, 1))
    no_encoding()
    bert.blocks[1].mlp.up.bias = nnx.Param(jnp.ones(48))
    np.testing.assert_array_equal(hidden_states(bert, tokens, 1), first)
    with pytest.raises(AssertionError, match="encoded again"):
        hidden_states(bert, Tokens(tokens.ids + 1, tokens.mask), 1)
    bert.blocks[0].mlp.up.bias = nnx.Param(jnp.ones(48))
    with pytest.raises(AssertionError, match="encoded again"):
        hidden_states(bert, tokens, 1)


def items_and_config(mode: str, encoder: Path = TINY) -> tuple[pl.DataFrame, Config]:
    titles = [None, "red nails", "blue soap", None, "tool", "red soap"]
    items = pl.DataFrame({"item_id": [None, *"abcde"], "title": titles})
    text = TextConfig(pretrained=str(encoder), mode=mode, max_tokens=16, whiten=2)  # type: ignore[arg-type]
    return items, Config(model=ModelConfig(experts=("text",)), text=text)


def test_item_text_is_zero_where_nothing_is_known(cache):
    vectors = item_text(*items_and_config("frozen")).vectors
    assert vectors.shape == (6, 2)
    np.testing.assert_array_equal(vectors.any(axis=1), [False, True, True, False, True, True])


def test_texts_with_equal_tokens_count_as_no_text(cache):
    """The vocabulary has no capital letters."""
    items, config = items_and_config("frozen")
    same = items.with_columns(title=pl.Series([None, "Soap", "soap", "SOAP", None, "soap"]))
    text = item_text(same, config)
    assert text.whitening is None and text.vectors.shape == (6, 1)


@pytest.mark.parametrize("encoder", [TINY, TINY_GPT], ids=["bert", "gpt"])
def test_untrained_finetuned_text_equals_frozen_text(cache, encoder):
    text = item_text(*items_and_config("finetune", encoder))
    assert text.tower is not None and text.finetuned is not None
    np.testing.assert_allclose(
        encode_finetuned_text(text.tower, text.finetuned), text.vectors, atol=0.02
    )
