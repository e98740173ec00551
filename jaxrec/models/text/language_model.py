"""A text encoder with the head that predicts tokens: the model of pre-training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.text.bert import Bert
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.checkpoint import (
    checkpoint_entries,
    checkpoint_weights,
    modern_name,
    turned,
)
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.layers import PoolingOption

HEAD = "cls.predictions."
HEAD_NAMES: dict[tuple[Any, ...], str] = {
    ("transform", "kernel"): f"{HEAD}transform.dense.weight",
    ("transform", "bias"): f"{HEAD}transform.dense.bias",
    ("norm", "scale"): f"{HEAD}transform.LayerNorm.weight",
    ("norm", "bias"): f"{HEAD}transform.LayerNorm.bias",
    ("bias",): f"{HEAD}bias",
}
"""Paths of the head's parameters -> their names in a checkpoint of BERT."""


class MaskedTokenHead(nnx.Module):
    """BERT's head of masked tokens: what is multiplied with the word embeddings.

    A fresh transform begins as the identity, because the embeddings that it meets are trained.
    """

    def __init__(
        self, width: int, vocab_size: int, epsilon: float, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.transform = nnx.Linear(
            width, width, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs
        )
        self.transform.kernel[...] = jnp.eye(width)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(vocab_size))

    def __call__(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Vectors to multiply with the word embeddings; the bias is added to the product."""
        return self.norm(jax.nn.gelu(self.transform(hidden), approximate=False))


class LanguageModel(nnx.Module):
    """A text encoder and, for BERT, the head that predicts masked tokens.

    GPT multiplies its output with the word embeddings (`GPT.next_token_logits`), so it has no head.
    """

    def __init__(self, encoder: TextEncoder, head: MaskedTokenHead | None) -> None:
        self.encoder = encoder
        self.head = head

    def hidden(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """The output of the encoder."""
        return self.encoder.layers(self.encoder.embed(token_ids), mask)

    def text_vectors(
        self, token_ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B D"]:
        """One vector a text, in float32."""
        return self.encoder.pool(self.hidden(token_ids, mask), mask)

    def token_factors(
        self, hidden: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T W"], Float[Array, "V W"]]:
        """Two factors whose product is the logits of all tokens at these positions."""
        words = self.encoder.word.embedding[...]
        if self.head is None:
            return hidden, words
        queries = self.head(hidden)
        ones = jnp.ones((*queries.shape[:2], 1), queries.dtype)  # that multiply the bias
        table = jnp.concatenate([words, self.head.bias[...][:, None]], 1)
        return jnp.concatenate([queries, ones], -1), table


def load_language_model(
    directory: Path, pooling: PoolingOption, *, with_head: bool, dtype: DTypeLike = jnp.float32
) -> LanguageModel:
    """The language model of a checkpoint.

    Args:
        with_head: BERT predicts masked tokens. The head comes from the checkpoint, where it has
            one, or is new.

    Raises:
        CheckpointError: as `load_text_encoder`.
    """
    encoder = load_text_encoder(directory, pooling, dtype=dtype)
    if not (with_head and isinstance(encoder, Bert)):
        return LanguageModel(encoder, None)
    words = encoder.word.embedding
    head = MaskedTokenHead(
        words.shape[1], words.shape[0], encoder.norm.epsilon, dtype=dtype, rngs=nnx.Rngs(0)
    )
    entries = checkpoint_entries(directory).items()
    stored = {modern_name(name): weight for name, weight in entries}
    if set(HEAD_NAMES.values()) <= stored.keys():
        params = [
            (path, param.replace(jnp.asarray(turned(path, stored[HEAD_NAMES[path]]), jnp.float32)))
            for path, param in nnx.to_flat_state(nnx.state(head))
        ]
        nnx.update(head, nnx.from_flat_state(params))
    return LanguageModel(encoder, head)


def language_model_weights(model: LanguageModel, source: Path) -> dict[str, np.ndarray]:
    """The entries of a checkpoint of the model; what it does not read is as in `source`."""
    encoder = model.encoder
    own = checkpoint_weights(encoder)
    rest = {
        name: weight
        for name, weight in checkpoint_entries(source).items()
        if not encoder.causal and not any(encoder.checkpoint_entries(name, weight))
    }
    if model.head is not None:
        rest = {name: weight for name, weight in rest.items() if not name.startswith(HEAD)}
        for path, param in nnx.to_flat_state(nnx.state(model.head)):
            rest[HEAD_NAMES[path]] = turned(path, np.asarray(param[...]))
    has_head = any(name.startswith("cls.") for name in rest)
    entries = own | {name.removeprefix("bert."): weight for name, weight in rest.items()}
    if has_head:  # BertForMaskedLM has the encoder in a member of this name
        entries = {
            name if name.startswith("cls.") else f"bert.{name}": w for name, w in entries.items()
        }
    return {name: np.ascontiguousarray(weight) for name, weight in entries.items()}
