"""Reference outputs of Hugging Face's PyTorch BERT for tests/invariants/test_bert_reference.py.

    pip install torch==2.13.0 transformers safetensors
    python tests/golden/make_bert_golden.py PATH/TO/all-MiniLM-L6-v2

writes `bert_minilm.npz` for the real checkpoint, and two tiny random checkpoints with their
outputs: `tiny_bert` is named as `BertModel` saves itself, `tiny_bert_legacy` as bert-base-uncased
is: prefix, gamma and beta, pooler, heads of pretraining. `tiny_bert_chinese` has the tokenizer of
bert-base-chinese: upper case and accents stay, Chinese characters are words. `tokens.json` holds
the token ids of `TEXTS_OF_LANGUAGES` under several tokenizer configurations.
"""

import argparse
import json
import string
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertModel, BertTokenizer

GOLDEN = Path(__file__).parent
DIMENSIONS = 8  # of each hidden state that are recorded
TEXTS = [
    "OPI Nail Lacquer, Simmer and Shimmer, 0.5-Fluid Ounce",
    "",
    "Crème brûlée torch: 1,300 °C, refillable — 东京 kitchen; the cook's choice!",
    "Toy Story (1995). Animation > Children's > Comedy. A cowboy doll is threatened by a new "
    "spaceman action figure who supplants him as the top toy in a boy's bedroom",
]
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *string.ascii_lowercase,
    *(f"##{letter}" for letter in string.ascii_lowercase),
    *("nail", "red", "blue", "tool", "soap", "##ing", "##s", "中", "国"),
]
CASED_VOCABULARY = [
    *VOCABULARY[:5],
    *("OPI", "opi", "红", "色", "甲", "油", "Cr", "cr", "Creme", "creme", "Crème", "crème", "É"),
    *("##ème", "##eme", "##油", "##é", "##e", "тест", "日本", "日", "本", ",", "，"),  # noqa: RUF001
]
TEXTS_OF_LANGUAGES = ["OPI红色甲油，Crème", "日本 тест, crème É", "甲油"]  # noqa: RUF001
TOKENIZERS = [
    {"do_lower_case": False},
    {"do_lower_case": True},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": False, "tokenize_chinese_chars": False},
]


def outputs(model: BertModel, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    """Hidden states before and after each layer [S B L D], and their masked mean [B D]."""
    with torch.no_grad():
        hidden = model.eval()(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    weights = mask[:, :, None].float()
    pooled = (hidden[-1] * weights).sum(1) / weights.sum(1)
    return {
        "ids": ids.numpy().astype(np.int32),
        "mask": mask.numpy().astype(bool),
        "hidden": torch.stack(hidden).numpy(),
        "pooled": pooled.numpy(),
    }


def record_minilm(directory: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    model = BertModel.from_pretrained(directory, attn_implementation="eager")
    record = outputs(model, tokens["input_ids"], tokens["attention_mask"])
    record["hidden"] = record["hidden"][..., :DIMENSIONS]
    np.savez_compressed(GOLDEN / "bert_minilm.npz", texts=np.array(TEXTS), **record)


def record_tiny(name: str, model_class: type[BertModel] | type[BertForPreTraining]) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        architectures=[model_class.__name__],
    )
    model = model_class(config)
    for parameter in model.parameters():  # fresh LayerNorms are all alike, which would hide a swap
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(5, len(VOCABULARY), (3, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7, 2])[:, None]).long()
    directory = GOLDEN / name
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    encoder = model if isinstance(model, BertModel) else model.bert
    np.savez_compressed(directory / "outputs.npz", **outputs(encoder, ids, mask))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    if model_class is BertForPreTraining:
        weights = {
            name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): weight
            for name, weight in weights.items()
        }
        weights["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def record_chinese() -> None:
    """The weights of `tiny_bert`, whose vocabulary is larger."""
    directory = GOLDEN / "tiny_bert_chinese"
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(CASED_VOCABULARY) + "\n")
    record = []
    for options in TOKENIZERS:
        tokenizer = BertTokenizer(str(directory / "vocab.txt"), **options)
        record.append({"options": options, "ids": tokenizer(TEXTS_OF_LANGUAGES)["input_ids"]})
    tokens = BertTokenizer(str(directory / "vocab.txt"), do_lower_case=False)(
        TEXTS_OF_LANGUAGES, padding=True, return_tensors="pt"
    )
    model = BertModel.from_pretrained(GOLDEN / "tiny_bert", attn_implementation="eager")
    pooled = outputs(model, tokens["input_ids"], tokens["attention_mask"])["pooled"].tolist()
    content = {"texts": TEXTS_OF_LANGUAGES, "tokenizers": record, "pooled": pooled}
    (directory / "tokens.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minilm", type=Path, help="directory of all-MiniLM-L6-v2")
    record_minilm(parser.parse_args().minilm)
    record_tiny("tiny_bert", BertModel)
    record_tiny("tiny_bert_legacy", BertForPreTraining)
    record_chinese()
    (GOLDEN / "tiny_bert" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


if __name__ == "__main__":
    main()
