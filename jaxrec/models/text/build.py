"""Builds the text encoder of a checkpoint."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxrec.errors import CheckpointError
from jaxrec.models.text.bert import Bert, BertConfig
from jaxrec.models.text.checkpoint import config_entries, load_weights, read_config
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.gpt import GPT, GPTConfig
from jaxrec.models.text.layers import Pooling, PoolingOption


def build_text_encoder(
    directory: Path,
    pooling: PoolingOption = "auto",
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> TextEncoder:
    """The text encoder that `config.json` of a checkpoint describes, with random weights.

    Args:
        pooling: `auto`: the mean of BERT's tokens, or the last token of GPT.
        dtype: of the computation; parameters are float32.

    Raises:
        CheckpointError: the checkpoint has no configuration, or one that is not supported.
    """
    pool = pooling_of(directory, pooling)
    match config_entries(directory).get("model_type"):
        case "bert":
            return Bert(read_config(BertConfig, directory), pool, dtype=dtype, rngs=rngs)
        case "gpt2":
            return GPT(read_config(GPTConfig, directory), pool, dtype=dtype, rngs=rngs)
        case other:
            raise CheckpointError(
                f"{directory / 'config.json'}: model_type is {other!r}, but only 'bert' and 'gpt2' "
                "are supported. Name another checkpoint as text.pretrained"
            )


def pooling_of(directory: Path, pooling: PoolingOption) -> Pooling:
    """What a pooling option means for a checkpoint."""
    if pooling != "auto":
        return pooling
    # the last token of GPT alone has read the whole text
    return "last" if config_entries(directory).get("model_type") == "gpt2" else "mean"


def load_text_encoder(
    directory: Path,
    pooling: PoolingOption = "auto",
    *,
    dtype: DTypeLike = jnp.float32,
) -> TextEncoder:
    """`build_text_encoder` with the weights of the checkpoint.

    Poolers and heads of pretraining or of a task are ignored.

    Args:
        directory: holds `config.json` and safetensors weights, in one file or in shards.

    Raises:
        CheckpointError: it is no BERT or GPT-2, has no safetensors file, or its weights are
            missing, left over or of another shape.
    """
    shapes = nnx.eval_shape(
        lambda: build_text_encoder(directory, pooling, dtype=dtype, rngs=nnx.Rngs(0))
    )
    return load_weights(shapes, directory)
