"""A run takes only the text encoder that it was trained with."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers.paths import GOLDEN
from helpers.training import config
from safetensors.numpy import load_file, save_file

import jaxrec
from jaxrec.artifacts.run_directory import read_artifacts
from jaxrec.data import text
from jaxrec.errors import RunError
from jaxrec.inference.text_features import trained_encoder
from jaxrec.training.fit import fit

TINY_BERT = GOLDEN / "tiny_bert"
REFUSED = r"not the one that the run was trained with.*original revision.*or train again"
NEW_ITEM = pl.DataFrame({"item_id": ["new"], "title": ["red soap"]})


@pytest.fixture(scope="module", params=["frozen", pytest.param("finetune", marks=pytest.mark.slow)])
def original(request, tables, tmp_path_factory) -> tuple[str, Path, Path]:
    """The mode, a run trained with a directory, and that directory."""
    directory = tmp_path_factory.mktemp(request.param)
    encoder = Path(shutil.copytree(TINY_BERT, directory / "encoder"))
    options = {"model.experts": ["text"], "text.mode": request.param, "train.epochs": 1}
    options |= {"text.pretrained": str(encoder), "text.finetune_items": 8, "text.whiten": 4}
    fit(config(**options), directory / "run", tables=tables)
    return request.param, directory / "run", encoder


@pytest.fixture
def trained(original, tmp_path) -> tuple[str, Path, Path]:
    """Copies of `original` that a test may change."""
    mode, run, encoder = original
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    directory = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    name_encoder(copy, str(directory))
    return mode, copy, directory


def name_encoder(run: Path, name: str) -> None:
    path = run / "config.yaml"
    lines = path.read_text().splitlines()
    [number] = [i for i, line in enumerate(lines) if line.strip().startswith("pretrained:")]
    lines[number] = lines[number].partition(":")[0] + f": {json.dumps(name)}"
    path.write_text("\n".join(lines))


def change(directory: Path, part: str) -> None:
    if part == "weights":
        weights = load_file(directory / "model.safetensors")
        weights["embeddings.LayerNorm.bias"] += 1
        save_file(weights, directory / "model.safetensors")
    else:
        with (directory / part).open("a") as file:
            file.write("\n")


def assert_loads(run: Path) -> None:
    model = jaxrec.load(run)
    assert np.isfinite(model.words.text_vector("red soap")).all()
    assert "new" in model.with_items(NEW_ITEM).catalog.item_ids


@pytest.mark.parametrize("part", ["weights", "config.json", "vocab.txt"])
def test_a_changed_encoder_is_refused(trained, tables, part):
    mode, run, encoder = trained
    change(encoder, part)
    with pytest.raises(RunError, match=REFUSED):
        jaxrec.fit(data=tables, resume=run)
    if mode == "finetune":
        with pytest.raises(RunError, match=REFUSED):
            jaxrec.load(run)
        return
    model = jaxrec.load(run)  # needs no encoder
    assert len(model.recommend(tables.events, k=1)) == 40
    with pytest.raises(RunError, match=REFUSED):
        model.words.text_vector("red soap")
    with pytest.raises(RunError, match=REFUSED):
        model.with_items(NEW_ITEM)


def test_the_same_files_in_another_directory_are_accepted(trained, tables, tmp_path):
    _, run, encoder = trained
    change(encoder, "weights")
    name_encoder(run, str(shutil.copytree(TINY_BERT, tmp_path / "restored")))
    assert_loads(run)
    jaxrec.fit(data=tables, resume=run)


def test_a_branch_that_moved_is_refused_and_its_old_commit_accepted(trained, monkeypatch):
    _, run, changed = trained
    change(changed, "weights")
    directories = {"main": changed, "0123abc": TINY_BERT}

    def snapshot(name, revision, allow_patterns, local_files_only=False):
        return str(directories[revision])

    monkeypatch.setattr(text, "snapshot_download", snapshot)
    name_encoder(run, "org/model@main")
    with pytest.raises(RunError, match=r"'org/model@main' is " + REFUSED):
        jaxrec.load(run).with_items(NEW_ITEM)
    name_encoder(run, "org/model@0123abc")
    assert_loads(run)


def test_a_run_without_the_digest_takes_any_encoder(trained):
    _, run, encoder = trained
    digest = read_artifacts(run).text_encoder
    assert len(digest) == 64
    path = run / "catalog" / "layout.json"
    layout = json.loads(path.read_text())
    del layout["text_encoder"]
    path.write_text(json.dumps(layout))
    change(encoder, "weights")
    assert trained_encoder(str(encoder), read_artifacts(run).text_encoder) == encoder
    with pytest.raises(RunError, match=REFUSED):
        trained_encoder(str(encoder), digest)


@pytest.mark.slow
def test_a_run_that_reads_no_text_records_no_encoder(tables, tmp_path):
    fit(config(**{"train.epochs": 1}), tmp_path / "run", tables=tables)
    assert read_artifacts(tmp_path / "run").text_encoder == ""
