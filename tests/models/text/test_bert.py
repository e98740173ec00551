"""BERT: configuration, precision, gradients and pooling."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.checkpoints import TINY
from safetensors.numpy import load_file, save_file

from jaxrec.errors import CheckpointError
from jaxrec.models.text.bert import BertConfig
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.checkpoint import read_config
from jaxrec.models.text.layers import mean_pool


def test_half_precision_weights_become_float32(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    halves = {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}
    save_file(halves, checkpoint / "model.safetensors")
    kernel = load_text_encoder(checkpoint).blocks[0].mlp.up.kernel[...]
    expected = halves["encoder.layer.0.intermediate.dense.weight"].T.astype(np.float32)
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, expected)


def test_gradient_reaches_the_last_layer_alone_when_the_rest_is_cached():
    bert = load_text_encoder(TINY)
    record = np.load(TINY / "outputs.npz")
    mask = jnp.asarray(record["mask"])
    cached = jnp.asarray(record["hidden"][1])
    graphdef, params = nnx.split(bert)

    def loss(params):
        hidden = nnx.merge(graphdef, params).layers(cached, mask, start=1)
        return jnp.sum(jnp.square(mean_pool(hidden, mask)[:, :3]))

    gradient = nnx.merge(graphdef, jax.jit(jax.grad(loss))(params))
    size = [sum(jnp.abs(g).sum() for g in jax.tree.leaves(nnx.state(b))) for b in gradient.blocks]
    assert size[0] == 0 < size[1]


def test_bfloat16_stays_near():
    record = np.load(TINY / "outputs.npz")
    ids, mask = jnp.asarray(record["ids"]), jnp.asarray(record["mask"])
    hidden = load_text_encoder(TINY, dtype=jnp.bfloat16)(ids, mask)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(mean_pool(hidden, mask), record["pooled"], atol=0.05)


def test_mean_pool_by_hand():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(mean_pool(hidden, mask), [[2.0, 4.0], [0.0, 0.0]])


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match=r"41 tokens .* 40 positions"):
        load_text_encoder(TINY).embed(jnp.zeros((1, 41), int))


def test_config_defaults_are_those_of_bert_base(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 21128}')
    assert read_config(BertConfig, tmp_path) == BertConfig(vocab_size=21128, hidden_size=768)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
    ],
)
def test_another_architecture_is_refused_by_field(checkpoint, field, value):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(CheckpointError, match=f"{field} is {value!r}"):
        load_text_encoder(checkpoint)


def test_directory_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_text_encoder(tmp_path)
