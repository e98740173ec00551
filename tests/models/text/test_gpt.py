"""GPT: what it reads, what it refuses, and pooling."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.checkpoints import TINY, TINY_GPT

from jaxrec.errors import CheckpointError
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.checkpoint import read_config
from jaxrec.models.text.finetuned import TextTower
from jaxrec.models.text.gpt import GPTConfig
from jaxrec.models.text.layers import last_pool


def test_a_later_token_never_changes_an_earlier_one():
    gpt = load_text_encoder(TINY_GPT)
    ids, mask = jnp.arange(20)[None] + 5, jnp.ones((1, 20), bool)
    changed = gpt(ids.at[0, 12:].set(9), mask)
    np.testing.assert_allclose(changed[:, :12], gpt(ids, mask)[:, :12], atol=1e-5)
    assert (jnp.abs(changed - gpt(ids, mask))[0, 12:].max(1) > 1e-3).all()


@pytest.mark.parametrize(("directory", "default"), [(TINY, "mean"), (TINY_GPT, "last")])
def test_pooling_is_that_of_the_architecture_unless_it_is_chosen(directory, default):
    assert load_text_encoder(directory).pooling == default
    for chosen in ("mean", "last"):
        assert load_text_encoder(directory, chosen).pooling == chosen


def test_last_pool_by_hand():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(last_pool(hidden, mask), [[3.0, 6.0], [0.0, 0.0]])


def test_a_tower_ends_as_the_encoder_does_and_all_its_weights_train():
    gpt, record = load_text_encoder(TINY_GPT), np.load(TINY_GPT / "outputs.npz")
    mask = jnp.asarray(record["mask"])
    graphdef, params = nnx.split(TextTower(gpt, 1))

    def vectors(params):
        return nnx.merge(graphdef, params)(jnp.asarray(record["hidden"][1]), mask)

    np.testing.assert_allclose(jax.jit(vectors)(params), record["pooled"], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(vectors(params)[:, :3] ** 2)))(params)
    for path, leaf in nnx.to_flat_state(gradient):
        unused = path[-2:] == ("key", "bias")  # a softmax does not change by a constant
        assert unused or jnp.abs(leaf[...]).max() > 0, path


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match=r"65 tokens .* 64 positions.*max_tokens"):
        load_text_encoder(TINY_GPT).embed(jnp.zeros((1, 65), int))


def test_config_defaults_are_those_of_gpt2_small(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 6}')
    assert read_config(GPTConfig, tmp_path) == GPTConfig(n_layer=6, n_embd=768, n_positions=1024)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
    ],
)
def test_another_architecture_is_refused_by_field(gpt_checkpoint, field, value):
    config = json.loads((gpt_checkpoint / "config.json").read_text())
    (gpt_checkpoint / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(CheckpointError, match=f"{field} is {value!r}"):
        load_text_encoder(gpt_checkpoint)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_config_is_refused(gpt_checkpoint, content):
    (gpt_checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json .* JSON.*Fetch it again"):
        load_text_encoder(gpt_checkpoint)
