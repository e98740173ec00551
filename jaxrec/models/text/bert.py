"""BERT (Devlin et al., arXiv:1810.04805) that loads checkpoints in Hugging Face's format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxrec.models.text.checkpoint import EncoderConfig, Supported, modern_name
from jaxrec.models.text.layers import Pooling, TextLayers, position_vectors
from jaxrec.models.transformer import TransformerBlock


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The architecture, under the names of a Hugging Face `config.json`. Defaults: BERT base."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    supported: ClassVar[Supported] = {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }


class Bert(TextLayers):
    """A post-norm transformer encoder with learned positions.

    Args:
        pooling: of `pool`.
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
        self,
        config: BertConfig,
        pooling: Pooling = "mean",
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        width, epsilon = config.hidden_size, config.layer_norm_eps
        blocks = [
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
        ]
        super().__init__(blocks, final_norm=None, causal=False, pooling=pooling)
        self.hidden_size, self.max_tokens = width, config.max_position_embeddings
        self.word = nnx.Embed(config.vocab_size, width, dtype=dtype, rngs=rngs)
        self.position = nnx.Embed(self.max_tokens, width, dtype=dtype, rngs=rngs)
        self.token_type = nnx.Embed(config.type_vocab_size, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

    @staticmethod
    def checkpoint_entries(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """See `TextEncoder.checkpoint_entries`."""
        name = modern_name(name.removeprefix("bert."))  # of models with a head
        # leave out poolers, heads of pretraining or of a task, and a constant of old versions
        if name.startswith(("embeddings.", "encoder.")) and name != "embeddings.position_ids":
            yield name, weight

    @staticmethod
    def stored_entries(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `TextEncoder.stored_entries`."""
        return dict(weights)

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The input of the first layer, one segment a row; raises as `position_vectors`."""
        positions = position_vectors(self.position, token_ids.shape[1])
        return self.norm(self.word(token_ids) + positions + self.token_type(jnp.zeros((1, 1), int)))
