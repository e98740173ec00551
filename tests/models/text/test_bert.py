"""The golden files are outputs of Hugging Face's PyTorch BERT: see golden/make_bert_golden.py."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.paths import GOLDEN
from safetensors.numpy import load_file, save_file

from jaxrec.data.text import MINILM, resolve_pretrained
from jaxrec.errors import CheckpointError, FetchError
from jaxrec.models.text.bert import BertConfig, load_bert, mean_pool

TINY = GOLDEN / "tiny_bert"


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return resolve_pretrained(MINILM)
    except FetchError as error:
        pytest.skip(f"no access to the real weights: {error}")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A tiny checkpoint to damage."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


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


def test_real_weights_match_the_reference_layer_by_layer(minilm):
    assert_parity(minilm, GOLDEN / "bert_minilm.npz")


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_bert_legacy"])
def test_either_naming_of_weights_matches_the_reference(name):
    assert_parity(GOLDEN / name, GOLDEN / name / "outputs.npz")


def test_sharded_checkpoint_equals_the_single_file(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    shard_of = {
        name: f"model-{number % 2 + 1:05}-of-00002.safetensors"
        for number, name in enumerate(weights)
    }
    for shard in set(shard_of.values()):
        part = {name: weight for name, weight in weights.items() if shard_of[name] == shard}
        save_file(part, checkpoint / shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    assert_parity(checkpoint, TINY / "outputs.npz")


def test_half_precision_weights_become_float32(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    halves = {name: weight.astype(jnp.bfloat16) for name, weight in weights.items()}
    save_file(halves, checkpoint / "model.safetensors")
    kernel = load_bert(checkpoint).blocks[0].mlp.up.kernel[...]
    expected = halves["encoder.layer.0.intermediate.dense.weight"].T.astype(np.float32)
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, expected)


def test_gradient_reaches_the_last_layer_alone_when_the_rest_is_cached():
    bert = load_bert(TINY)
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
    hidden = load_bert(TINY, dtype=jnp.bfloat16)(ids, mask)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(mean_pool(hidden, mask), record["pooled"], atol=0.05)


def test_mean_pool_by_hand():
    hidden = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(mean_pool(hidden, mask), [[2.0, 4.0], [0.0, 0.0]])


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match=r"41 tokens .* 40 positions"):
        load_bert(TINY).embed(jnp.zeros((1, 41), int))


def test_config_defaults_are_those_of_bert_base(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "vocab_size": 21128}')
    assert BertConfig.from_file(tmp_path) == BertConfig(vocab_size=21128, hidden_size=768)


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
        load_bert(checkpoint)


def test_directory_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_bert(tmp_path)


def test_pickled_weights_are_refused_with_the_way_to_convert(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_bert(checkpoint)


def test_truncated_weights_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load_bert(checkpoint)


def test_missing_weight_is_named(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["encoder.layer.1.attention.self.key.bias"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layer\.1\.attention\.self\.key\.bias"):
        load_bert(checkpoint)


def test_left_over_layer_is_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"unknown weights: encoder\.layer\.1\."):
        load_bert(checkpoint)


def test_weight_of_another_shape_is_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(CheckpointError, match=r"embeddings\.word_embeddings\.weight"):
        load_bert(checkpoint)
