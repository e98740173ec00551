"""A small BERT or GPT-2 with random weights, and a tokenizer of a data set's item texts.

    python benchmarks/quality/new_text_encoder.py gpt2 scientific encoders/gpt-new \\
        --folder path/to/data
    jaxrec pretrain --data path/to/data/amazon_scientific --config shopping --data.time order \\
        --split.scheme leave_one_out --text.pretrained encoders/gpt-new --out encoders/gpt \\
        --text.max_tokens 32 --tasks.tokens 1 --tasks.contrast 0 --layers 0 --epochs 10 \\
        --batch-size 64 --learning-rate 1e-3

No registry package holds GPT-2's weights. So the two architectures are compared with equal size,
equal texts and equal pre-training. Only items that occur in training give the tokenizer its words.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, Variant, configuration
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

from jaxrec.data.dataset import prepare
from jaxrec.inference.text_features import known_texts
from jaxrec.models.text.build import build_text_encoder
from jaxrec.models.text.checkpoint import checkpoint_weights

WIDTH, LAYERS, HEADS, POSITIONS = 256, 4, 4, 128
END = "<|endoftext|>"


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model_type", choices=("bert", "gpt2"))
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    case = CASES[options.case]
    config = configuration(case, case.data(options.folder), Variant({}), 0)
    dataset = prepare(config)
    texts, known = known_texts(dataset.catalog.items, config)
    own = np.array(texts, object)[known & dataset.trained].tolist()
    options.out.mkdir(parents=True)
    size = write_tokenizer(options.model_type, own, options.vocab_size, options.out)
    entries = architecture(options.model_type, size)
    (options.out / "config.json").write_text(json.dumps(entries, indent=2) + "\n")
    save_file(random_weights(options.out, options.seed), options.out / "model.safetensors")


def write_tokenizer(model_type: str, texts: list[str], vocab_size: int, out: Path) -> int:
    """Train a tokenizer on texts and write its files; the number of its tokens."""
    tokenizer: Any
    if model_type == "bert":
        tokenizer = BertWordPieceTokenizer()
        tokenizer.train_from_iterator(texts, vocab_size, show_progress=False)
    else:
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(texts, vocab_size, special_tokens=[END], show_progress=False)
    tokenizer.save_model(str(out))
    return tokenizer.get_vocab_size()


def architecture(model_type: str, vocab_size: int) -> dict[str, Any]:
    """The entries of config.json; both types have blocks of the same size."""
    if model_type == "bert":
        return {
            "model_type": "bert",
            "vocab_size": vocab_size,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 4 * WIDTH,
            "max_position_embeddings": POSITIONS,
        }
    return {
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": POSITIONS,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def random_weights(directory: Path, seed: int) -> dict[str, np.ndarray]:
    """Weights as both papers initialise them: normal with .02, norms 1, biases 0."""
    random = np.random.default_rng(seed)
    encoder = build_text_encoder(directory, rngs=nnx.Rngs(seed))
    return {
        name: random.normal(0, 0.02, weight.shape).astype(np.float32)
        if weight.ndim == 2
        else weight
        for name, weight in checkpoint_weights(encoder).items()
    }


if __name__ == "__main__":
    main()
