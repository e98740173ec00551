import json

import pytest
from helpers.checkpoints import TINY, assert_parity
from safetensors.numpy import load_file, save_file

from jaxrec.errors import CheckpointError
from jaxrec.models.text.build import load_text_encoder


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


def test_pickled_weights_are_refused_with_the_way_to_convert(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        load_text_encoder(checkpoint)


def test_truncated_weights_are_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load_text_encoder(checkpoint)


def test_missing_weight_is_named(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["encoder.layer.1.attention.self.key.bias"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layer\.1\.attention\.self\.key\.bias"):
        load_text_encoder(checkpoint)


def test_left_over_layer_is_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"unknown weights: encoder\.layer\.1\."):
        load_text_encoder(checkpoint)


def test_weight_of_another_shape_is_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(CheckpointError, match=r"embeddings\.word_embeddings\.weight"):
        load_text_encoder(checkpoint)
