import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from huggingface_hub.errors import LocalEntryNotFoundError

from jaxrec.data import text
from jaxrec.data.text import MINILM, item_texts, resolve_pretrained, tokenize
from jaxrec.errors import DataError, FetchError

TINY = GOLDEN / "tiny_bert"
VOCABULARY = (TINY / "vocab.txt").read_text().split()
COMMIT = "0123456789" * 4
COLUMNS = ("title", "brand", "genres", "categories", "description")


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return resolve_pretrained(MINILM)
    except FetchError as error:
        pytest.skip(f"the real tokenizer is not here: {error}")


def word_pieces(row: np.ndarray) -> list[str]:
    return [VOCABULARY[number] for number in row]


def test_item_texts_join_what_is_known_in_the_order_of_the_columns():
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "categories": [["Beauty", "Nails"], [], None],
            "genres": [["Drama", None, "War"], None, None],
            "brand": ["OPI", "  ", None],
            "title": ["Red polish", " Soap ", None],
        }
    )
    assert item_texts(items, COLUMNS) == [
        "Red polish. OPI. Drama, War. Beauty > Nails",
        "Soap",
        "",
    ]
    assert item_texts(items, ("brand", "title"))[0] == "OPI. Red polish"


def test_item_texts_write_numbers_and_cut_long_columns():
    items = pl.DataFrame({"description": ["x" * 1000], "brand": [7], "price": [1.5]})
    (text,) = item_texts(items, ("description", "brand", "price"))
    assert text == "x" * 400 + ". 7. 1.5"


def test_item_texts_without_any_of_the_columns_are_refused():
    with pytest.raises(ValueError, match=r"title, brand.*item_id, price"):
        item_texts(pl.DataFrame({"item_id": ["a"], "price": [1.0]}), ("title", "brand"))


def test_item_texts_of_nested_values_are_refused():
    items = pl.DataFrame({"item_id": ["a"], "title": [{"en": "Soap"}]})
    with pytest.raises(DataError, match="items, column 'title': wrong type Struct"):
        item_texts(items, ("title",))


def test_real_tokenizer_gives_the_reference_ids(minilm):
    record = np.load(GOLDEN / "bert_minilm.npz")
    tokens = tokenize(record["texts"].tolist(), minilm, 64)
    length = record["ids"].shape[1]
    assert tokens.ids.shape == (len(record["ids"]), 48)  # 44 rounded up
    np.testing.assert_array_equal(tokens.ids[:, :length], record["ids"])
    np.testing.assert_array_equal(tokens.mask[:, :length], record["mask"])
    assert not tokens.mask[:, length:].any()


def test_vocabulary_file_alone_suffices():
    tokens = tokenize(["Red nails", "", "中国 Zoë!"], TINY, 16)
    assert tokens.ids.shape == (3, 8)
    np.testing.assert_array_equal(tokens.lengths, [5, 2, 8])
    assert word_pieces(tokens.ids[0]) == ["[CLS]", "red", "nail", "##s", "[SEP]"] + ["[PAD]"] * 3
    assert word_pieces(tokens.ids[1]) == ["[CLS]", "[SEP]"] + ["[PAD]"] * 6
    assert word_pieces(tokens.ids[2]) == ["[CLS]", "中", "国", "z", "##o", "##e", "[UNK]", "[SEP]"]


def test_long_texts_are_cut_to_max_tokens_with_the_last_token_kept():
    tokens = tokenize(["red " * 50, "blue"], TINY, 11)
    assert tokens.ids.shape == (2, 11)
    assert word_pieces(tokens.ids[0]) == ["[CLS]", *["red"] * 9, "[SEP]"]


def test_a_text_that_is_cut_on_the_left_keeps_its_end():
    tokens = tokenize(["red " * 50 + "blue soap"], TINY, 5, cut="left")
    assert word_pieces(tokens.ids[0]) == ["[CLS]", "red", "blue", "soap", "[SEP]"]
    assert word_pieces(tokenize(["red " * 50], TINY, 5).ids[0]) == ["[CLS]", *["red"] * 3, "[SEP]"]


def test_token_ids_do_not_depend_on_chunks(monkeypatch):
    texts = ["red", "blue nails", "", "soap tool red", "a"]
    whole = tokenize(texts, TINY, 16)
    monkeypatch.setattr(text, "TOKENIZER_CHUNK", 2)
    chunked = tokenize(texts, TINY, 16)
    np.testing.assert_array_equal(chunked.ids, whole.ids)
    np.testing.assert_array_equal(chunked.mask, whole.mask)


def test_directory_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor vocab\.txt.*merges\.txt"):
        tokenize(["red"], tmp_path, 8)


def test_a_directory_is_its_own_checkpoint(tmp_path):
    assert resolve_pretrained(str(tmp_path)) == tmp_path


def test_hub_cache_is_used_without_network(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").touch()
    calls = []

    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        calls.append((name, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    assert resolve_pretrained("org/model") == tmp_path
    assert calls == [("org/model", True)]


@pytest.mark.parametrize("cached", ["nothing", "tokenizer only"])
def test_weights_that_are_not_cached_are_downloaded(monkeypatch, tmp_path, cached):
    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        if local_files_only and cached == "nothing":
            raise LocalEntryNotFoundError("not cached")
        assert "pytorch_model.bin" not in allow_patterns
        return str(tmp_path / ("cached" if local_files_only else "downloaded"))

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    assert resolve_pretrained("org/model") == tmp_path / "downloaded"


def test_offline_without_cache_says_what_to_do(monkeypatch):
    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    with pytest.raises(FetchError, match=r"'org/model'.*no network.*hf download org/model"):
        resolve_pretrained("org/model")


def test_mistyped_directory_is_reported_as_such():
    with pytest.raises(FetchError, match=r"'\./no/such/directory' is no directory"):
        resolve_pretrained("./no/such/directory")


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123abc", "refs/pr/1"])
@pytest.mark.parametrize("name", ["org/model", MINILM])
def test_a_revision_is_looked_up_and_downloaded(monkeypatch, tmp_path, name, revision):
    calls = []

    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        calls.append((name, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(tmp_path)

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    assert resolve_pretrained(f"{name}@{revision}") == tmp_path
    assert calls == [(name, revision, True), (name, revision, False)]


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_the_first_download_tells_its_digest_and_warns_without_a_commit(
    monkeypatch, tmp_path, capsys, revision
):
    directory = tmp_path / COMMIT
    shutil.copytree(TINY, directory)

    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(directory)

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    resolve_pretrained(f"org/model{revision}")
    told = capsys.readouterr().err
    assert text.checkpoint_digest(directory) in told
    assert (f"org/model@{COMMIT} names this one" in told) == (COMMIT not in revision)
    (directory / "config.json").write_text("{}")
    assert text.checkpoint_digest(directory) not in told


def test_an_unknown_revision_says_what_to_do(monkeypatch):
    def snapshot(name, allow_patterns, revision=None, local_files_only=False):
        raise LocalEntryNotFoundError("no such revision")

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    with pytest.raises(FetchError, match=r"revision.*hf download org/model --revision v9` else"):
        resolve_pretrained("org/model@v9")
    with pytest.raises(FetchError, match=r"'org/model@' names no revision after the @"):
        resolve_pretrained("org/model@")


def test_a_directory_may_have_an_at_sign(tmp_path):
    (tmp_path / "model@v1").mkdir()
    assert resolve_pretrained(str(tmp_path / "model@v1")) == tmp_path / "model@v1"
