"""BERT (Devlin et al., arXiv:1810.04805) that loads checkpoints in Hugging Face's format."""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxrec.errors import CheckpointError
from jaxrec.models.transformer import Block


@dataclass(frozen=True)
class BertConfig:
    """The architecture, under the names of a Hugging Face `config.json`. Defaults: BERT base."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_file(cls, directory: Path) -> Self:
        """Read `config.json` of a checkpoint directory.

        Raises:
            CheckpointError: there is none, or it describes another architecture.
        """
        path = directory / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no config.json: it is not a checkpoint")
        entries = json.loads(path.read_text())
        for name, (needed, default) in _REQUIRED.items():
            if (found := entries.get(name, default)) != needed:
                raise CheckpointError(
                    f"{path}: {name} is {found!r}, but only {needed!r} is supported"
                )
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})


# What this module implements, and what a config means that does not say it.
_REQUIRED = {
    "model_type": ("bert", None),
    "hidden_act": ("gelu", "gelu"),
    "position_embedding_type": ("absolute", "absolute"),
    "is_decoder": (False, False),
}


class Bert(nnx.Module):
    """A post-norm transformer encoder with learned positions.

    Args:
        config: the architecture.
        dtype: of the computation; parameters are float32.
        rngs: source of the initial parameters.
    """

    def __init__(
        self, config: BertConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.config = config
        self.word = nnx.Embed(config.vocab_size, width, dtype=dtype, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, width, dtype=dtype, rngs=rngs)
        self.token_type = nnx.Embed(config.type_vocab_size, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                norm="post",
                epsilon=epsilon,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.num_hidden_layers)
        )

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Input of the first layer, each row being one segment.

        Raises:
            ValueError: L is more than the checkpoint has positions.
        """
        length = token_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"a text of {length} tokens does not fit this BERT, which has "
                f"{self.config.max_position_embeddings} positions: lower max_tokens"
            )
        positions = self.position(jnp.arange(length)[None])
        return self.norm(self.word(token_ids) + positions + self.token_type(jnp.zeros((1, 1), int)))

    def layers(
        self,
        hidden: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        start: int = 0,
        stop: int | None = None,
    ) -> Float[Array, "B L D"]:
        """Output of layer `stop - 1` (none: the last), given the input of layer `start`."""
        visible = mask[:, None, None, :]
        for block in self.blocks[start:stop]:
            hidden = block(hidden, visible)
        return hidden

    def __call__(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """Output of the last layer; `mask` is true at tokens and false at padding."""
        return self.layers(self.embed(token_ids), mask)


def mean_pool(hidden: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over a row's tokens, in float32; the zero vector for a row without any."""
    total = jnp.sum(hidden, axis=1, where=mask[:, :, None], dtype=jnp.float32)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def load_bert(directory: Path, dtype: DTypeLike = jnp.float32) -> Bert:
    """Build a BERT with the weights of a checkpoint directory.

    The pooler and the heads of pretraining or of a task are left aside.

    Args:
        directory: holds `config.json` and safetensors weights, in one file or in shards.
        dtype: of the computation; parameters are float32.

    Raises:
        CheckpointError: not a BERT, no safetensors, or weights that are missing, left over or
            of another shape.
    """
    config = BertConfig.from_file(directory)
    shapes = nnx.eval_shape(lambda: Bert(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(shapes)
    params = dict(nnx.to_flat_state(state))
    weights = _read_weights(directory)
    _check_names({_checkpoint_name(path) for path in params}, set(weights), directory)
    loaded = []
    for path, param in params.items():
        weight = weights[_checkpoint_name(path)]
        if path[-1] == "kernel":  # PyTorch stores [outputs, inputs]
            weight = weight.T
        if weight.shape != param.shape:
            raise CheckpointError(
                f"{directory}: {_checkpoint_name(path)} has {weight.size} numbers, config.json "
                f"says {param.shape}: they belong to different models"
            )
        loaded.append((path, param.replace(jnp.asarray(weight, param.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


# Modules of Bert and their names in a checkpoint; {} is the layer.
_MODULES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "blocks.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "blocks.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "blocks.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "blocks.{}.mlp.up": "encoder.layer.{}.intermediate.dense",
    "blocks.{}.mlp.down": "encoder.layer.{}.output.dense",
    "blocks.{}.mlp_norm": "encoder.layer.{}.output.LayerNorm",
}


def _checkpoint_name(path: tuple[object, ...]) -> str:
    """Name in a checkpoint of the parameter of Bert at `path`."""
    *module, parameter = path
    key = ".".join("{}" if isinstance(part, int) else str(part) for part in module)
    layer = [part for part in module if isinstance(part, int)]
    return _MODULES[key].format(*layer) + (".bias" if parameter == "bias" else ".weight")


def _read_weights(directory: Path) -> dict[str, np.ndarray]:
    """Weights of a checkpoint's encoder, under the names that a bare `BertModel` has today."""
    weights = {}
    for shard in _shards(directory):
        try:
            for name, weight in load_file(shard).items():
                weights[_todays_name(name)] = weight
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read {shard}: {error}. Convert pickles (pytorch_model.bin) where PyTorch "
                f"is installed, with AutoModel.from_pretrained({str(directory)!r})"
                f".save_pretrained({str(directory)!r}); fetch damaged files again"
            ) from error
    # The rest are poolers, heads of pretraining or of a task, and a constant of old versions.
    return {
        name: weight
        for name, weight in weights.items()
        if name.startswith(("embeddings.", "encoder.")) and name != "embeddings.position_ids"
    }


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    return [directory / name for name in set(json.loads(index.read_text())["weight_map"].values())]


def _todays_name(name: str) -> str:
    """Without the prefix of models with a head and TensorFlow's names in LayerNorm."""
    name = name.removeprefix("bert.")
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _check_names(expected: set[str], found: set[str], directory: Path) -> None:
    for what, names in (("lacks", expected - found), ("holds unknown", found - expected)):
        if names:
            raise CheckpointError(
                f"{directory} {what} weights: {', '.join(sorted(names)[:5])}"
                f"{' ...' if len(names) > 5 else ''}. Its config.json is that of another model, or "
                "the file is incomplete: fetch the checkpoint again"
            )
