"""BERT (Devlin et al., arXiv:1810.04805) that loads checkpoints in Hugging Face's format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxrec.errors import CheckpointError, ConfigError
from jaxrec.models.text.checkpoint import load_weights
from jaxrec.models.transformer import TransformerBlock


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
    def from_file(cls, directory: Path) -> "BertConfig":
        """Read `config.json` of a checkpoint directory.

        Raises:
            CheckpointError: the file is missing, or it describes another architecture.
        """
        path = directory / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{directory} holds no config.json: it is not a checkpoint")
        entries = json.loads(path.read_text())
        for name, (needed, default) in _REQUIRED.items():
            if (value := entries.get(name, default)) != needed:
                raise CheckpointError(
                    f"{path}: {name} is {value!r}, but only {needed!r} is supported"
                )
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})


# entry of config.json -> the value that this module implements, and the value if it is missing
_REQUIRED = {
    "model_type": ("bert", None),
    "hidden_act": ("gelu", "gelu"),
    "position_embedding_type": ("absolute", "absolute"),
    "is_decoder": (False, False),
}


class Bert(nnx.Module):
    """A post-norm transformer encoder with learned positions.

    Args:
        dtype: of the computation; parameters are float32.
    """

    weight_names: ClassVar[Mapping[str, str]] = {
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
            TransformerBlock(
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
        """Input of the first layer; a row is one segment.

        Raises:
            ConfigError: L exceeds the number of positions of the checkpoint.
        """
        length = token_ids.shape[1]
        if length > self.config.max_position_embeddings:
            raise ConfigError(
                f"a text of {length} tokens exceeds the {self.config.max_position_embeddings} "
                "positions of this BERT; lower max_tokens"
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
        """Output of layer `stop - 1` (None: the last) from the input of layer `start`."""
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
    """Mean over the tokens of a row, in float32; zero for a row without tokens."""
    total = jnp.sum(hidden, axis=1, where=mask[:, :, None], dtype=jnp.float32)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def load_bert(directory: Path, dtype: DTypeLike = jnp.float32) -> Bert:
    """Build a BERT with the weights of a checkpoint directory.

    The pooler and the heads of pretraining or of a task are ignored.

    Args:
        directory: holds `config.json` and safetensors weights, in one file or in shards.
        dtype: of the computation; parameters are float32.

    Raises:
        CheckpointError: the checkpoint is no BERT, has no safetensors file, or its weights are
            missing, left over or of another shape.
    """
    config = BertConfig.from_file(directory)
    shapes = nnx.eval_shape(lambda: Bert(config, dtype=dtype, rngs=nnx.Rngs(0)))
    return load_weights(shapes, directory)
