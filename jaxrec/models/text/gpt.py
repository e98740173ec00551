"""GPT-2 (Radford et al. 2019) that loads checkpoints in Hugging Face's format."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxrec.models.text.checkpoint import EncoderConfig, Supported
from jaxrec.models.text.layers import Pooling, TextLayers, position_vectors
from jaxrec.models.transformer import TransformerBlock, gelu_tanh


@dataclass(frozen=True)
class GPTConfig(EncoderConfig):
    """The architecture, under the names of a Hugging Face `config.json`. Defaults: GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # 4 n_embd
    layer_norm_epsilon: float = 1e-5

    supported: ClassVar[Supported] = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }


class GPTBlock(TransformerBlock):
    """A transformer block with the GELU of GPT-2."""

    activation = staticmethod(gelu_tanh)


class GPT(TextLayers):
    """A pre-norm transformer decoder with learned positions, read as a text encoder.

    A token sees itself and earlier tokens only.

    Args:
        pooling: of `pool`.
        dtype: of the computation; parameters are float32.
    """

    weight_names: ClassVar[Mapping[str, str]] = {
        "word": "wte",
        "position": "wpe",
        "blocks.{}.attention_norm": "h.{}.ln_1",
        "blocks.{}.attention.query": "h.{}.attn.c_attn.query",
        "blocks.{}.attention.key": "h.{}.attn.c_attn.key",
        "blocks.{}.attention.value": "h.{}.attn.c_attn.value",
        "blocks.{}.attention.out": "h.{}.attn.c_proj",
        "blocks.{}.mlp_norm": "h.{}.ln_2",
        "blocks.{}.mlp.up": "h.{}.mlp.c_fc",
        "blocks.{}.mlp.down": "h.{}.mlp.c_proj",
        "final_norm": "ln_f",
    }

    def __init__(
        self,
        config: GPTConfig,
        pooling: Pooling = "last",
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        width, epsilon = config.n_embd, config.layer_norm_epsilon
        blocks = [
            GPTBlock(
                width,
                config.n_head,
                config.n_inner or 4 * width,
                norm="pre",
                epsilon=epsilon,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.n_layer)
        ]
        norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        super().__init__(blocks, final_norm=norm, causal=True, pooling=pooling)
        self.hidden_size, self.max_tokens = width, config.n_positions
        self.word = nnx.Embed(config.vocab_size, width, dtype=dtype, rngs=rngs)
        self.position = nnx.Embed(config.n_positions, width, dtype=dtype, rngs=rngs)

    @staticmethod
    def checkpoint_entries(name: str, weight: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """See `TextEncoder.checkpoint_entries`."""
        name = name.removeprefix("transformer.")
        if not name.startswith(("wte.", "wpe.", "h.", "ln_f.")):
            return  # a head
        if re.search(r"\.attn\.(masked_)?bias$", name):
            return  # the causal mask, which old versions stored
        packed = name.partition(".c_attn.")
        is_kernel = re.search(r"\.c_\w+\.weight$", name)
        kernel = weight.T if is_kernel else weight  # GPT-2 stores [inputs, outputs]
        if not packed[1]:
            yield name, kernel
            return
        for part, piece in zip(("query", "key", "value"), np.split(kernel, 3), strict=True):
            yield f"{packed[0]}.c_attn.{part}.{packed[2]}", piece

    @staticmethod
    def stored_entries(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `TextEncoder.stored_entries`."""
        entries = {}
        for name, weight in weights.items():
            packed = re.fullmatch(r"(.*\.c_attn\.)query\.(\w+)", name)
            if packed:
                start, kind = packed.groups()
                parts = [weights[f"{start}{part}.{kind}"] for part in ("query", "key", "value")]
                name, weight = f"{start}{kind}", np.concatenate(parts)
            elif re.search(r"\.c_attn\.(key|value)\.", name):
                continue  # packed with the query
            entries[name] = weight.T if re.search(r"\.c_\w+\.weight$", name) else weight
        return entries

    def embed(self, token_ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """The input of the first layer; raises as `position_vectors`."""
        return self.word(token_ids) + position_vectors(self.position, token_ids.shape[1])

    def next_token_logits(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Logits of the token that follows each position, by the tied language-model head.

        Args:
            hidden: output of the encoder.
        """
        return self.word.attend(hidden)
