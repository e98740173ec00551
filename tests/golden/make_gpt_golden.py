"""Reference outputs of Hugging Face's PyTorch GPT-2 for tests/invariants/test_gpt_reference.py.

    pip install torch==2.13.0 transformers safetensors tokenizers
    python tests/golden/make_gpt_golden.py

writes `tiny_gpt`: a random checkpoint, named as `GPT2LMHeadModel` saves itself, a byte-level BPE
tokenizer, and the ids and outputs of a few texts.
"""

import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

TINY = Path(__file__).parent / "tiny_gpt"
LOGITS = 16  # tokens whose logits are recorded
TEXTS = [
    "viewed Red lipstick; bought Nail file 0.5 oz",
    "Crème brûlée torch: 1,300 °C — 东京; the cook's choice!",
    "red  nails\n",
]
CORPUS = [
    *("viewed bought rated returned added to cart", "red lipstick nail file nails soap tool"),
    *(
        "brand item Hair Nails Skin Beauty care number",
        "the cook's choice, a red soap; a blue tool",
    ),
    *(f"brand {letter} item {letter}" for letter in string.ascii_lowercase),
]


def make_tokenizer() -> GPT2TokenizerFast:
    """Write `vocab.json` and `merges.txt`, and read them as transformers does."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(CORPUS * 4, vocab_size=340, special_tokens=["<|endoftext|>"])
    trainer.save_model(str(TINY))
    return GPT2TokenizerFast.from_pretrained(TINY)


def make_model(vocab_size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=64,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=40,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
    )
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():  # fresh LayerNorms are all alike, which would hide a swap
        torch.nn.init.normal_(parameter, std=0.3)
    (TINY / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    del weights["lm_head.weight"]  # it is that of the embeddings
    save_file(weights, TINY / "model.safetensors", {"format": "pt"})
    return model.eval()


def main() -> None:
    torch.manual_seed(0)
    TINY.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(max(lengths)) < lengths[:, None]).long()
    ids = torch.zeros_like(mask)
    ids[mask.bool()] = torch.tensor([number for row in rows for number in row])
    with torch.no_grad():
        model = make_model(len(tokenizer))
        output = model(ids, attention_mask=mask, output_hidden_states=True)
    np.savez_compressed(
        TINY / "outputs.npz",
        texts=np.array(TEXTS),
        ids=ids.numpy().astype(np.int32),
        mask=mask.numpy().astype(bool),
        hidden=torch.stack(output.hidden_states).numpy(),
        pooled=output.hidden_states[-1][torch.arange(len(rows)), lengths - 1].numpy(),
        logits=output.logits[..., :LOGITS].numpy(),
    )


if __name__ == "__main__":
    main()
