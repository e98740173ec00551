"""Texts a second through text encoders of usual shapes, with random weights.

    python benchmarks/speed/text_encoders.py --tokens 32

An encoder reads a catalogue once, when a run begins, so this is the time that a change of the
encoder costs. Printed are the parameters, texts a second after compilation, and the time for a
catalogue of 100,000 texts.
"""

import argparse
import time

import jax
import numpy as np
from flax import nnx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxrec.data.text import Tokens
from jaxrec.inference.text_features import BATCH_SIZE, encode_texts
from jaxrec.models.text.bert import Bert, BertConfig
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.gpt import GPT, GPTConfig

MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


def main() -> None:
    """Measure each encoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32, help="of every text")
    parser.add_argument("--batches", type=int, default=4)
    options = parser.parse_args()
    table = Table(box=SIMPLE_HEAD, title=f"{options.tokens} tokens a text, on {jax.devices()[0]}")
    for heading in ("encoder", "parameters", "texts/s", "100,000 texts"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    encoders = {
        "BERT of MiniLM's shape (6 layers, 384)": lambda rngs: Bert(MINILM, rngs=rngs),
        "BERT base (12 layers, 768)": lambda rngs: Bert(BertConfig(), rngs=rngs),
        "GPT of DistilGPT2's shape (6 layers, 768)": lambda r: GPT(GPTConfig(n_layer=6), rngs=r),
        "GPT-2 small (12 layers, 768)": lambda rngs: GPT(GPTConfig(), rngs=rngs),
    }
    for name, build in encoders.items():
        encoder = build(nnx.Rngs(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(encoder)))
        rate = texts_per_second(encoder, options.tokens, options.batches)
        table.add_row(name, f"{count / 1e6:.0f} M", f"{rate:,.0f}", f"{1e5 / rate / 60:.0f} min")
    Console().print(table)


def texts_per_second(encoder: TextEncoder, length: int, batches: int) -> float:
    """The rate at which texts of equal length are encoded."""
    ids = np.random.default_rng(0).integers(5, 20_000, (batches * BATCH_SIZE, length), np.int32)
    tokens = Tokens(ids, np.ones(ids.shape, bool))
    encode_texts(encoder, Tokens(ids[:BATCH_SIZE], tokens.mask[:BATCH_SIZE]))
    start = time.perf_counter()
    encode_texts(encoder, tokens)
    return len(ids) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
