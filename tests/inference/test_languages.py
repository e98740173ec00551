"""Text encoders of other languages: cased and Chinese vocabularies, sentence pieces, refusals."""

import json
import shutil

import numpy as np
import pytest
from helpers.checkpoints import TINY
from helpers.paths import GOLDEN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from jaxrec.data.text import tokenize
from jaxrec.errors import CheckpointError
from jaxrec.inference.text_features import text_vectors

CHINESE = GOLDEN / "tiny_bert_chinese"
RECORD = json.loads((CHINESE / "tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path):
    """The weights of a tiny BERT, without a tokenizer."""
    directory = tmp_path / "encoder"
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("vocab.txt"))
    return directory


def ids_of(directory) -> list[list[int]]:
    tokens = tokenize(RECORD["texts"], directory, 32)
    return [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]


@pytest.mark.parametrize("entry", RECORD["tokenizers"], ids=lambda entry: str(entry["options"]))
def test_the_configuration_of_a_tokenizer_decides_its_ids(checkpoint, entry):
    shutil.copy(CHINESE / "vocab.txt", checkpoint)
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(entry["options"]))
    assert ids_of(checkpoint) == entry["ids"]


def test_texts_of_other_languages_have_the_vectors_of_the_reference(checkpoint):
    shutil.copy(CHINESE / "vocab.txt", checkpoint)
    (checkpoint / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    vectors = text_vectors(RECORD["texts"], str(checkpoint), 32)
    np.testing.assert_allclose(vectors, RECORD["pooled"], atol=1e-5)


def test_sentence_pieces_with_other_special_tokens_are_read(checkpoint):
    """As multilingual MiniLM has them: a BERT with the tokenizer of XLM-R, where padding is 1."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁nail", "甲油", "▁тест"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    tokens = tokenize(["nail 甲油", "тест"], checkpoint, 16)
    assert [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)] == [
        [0, 5, 4, 6, 2],
        [0, 7, 2],
    ]
    alone = text_vectors(["тест"], str(checkpoint), 16)
    together = text_vectors(["nail 甲油 nail nail nail nail", "тест"], str(checkpoint), 16)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-5)


def test_an_encoder_of_another_architecture_and_a_missing_tokenizer_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        tokenize(["a"], checkpoint, 16)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "xlm-roberta"}))
    with pytest.raises(CheckpointError, match="model_type is 'xlm-roberta'"):
        shutil.copy(CHINESE / "vocab.txt", checkpoint)
        text_vectors(["a"], str(checkpoint), 16)
