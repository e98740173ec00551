"""The atomic writer: a file or a directory appears whole or not at all."""

import json

import polars as pl
import pytest

from jaxrec.artifacts.files import WRITERS, locked, write_json, write_table
from jaxrec.errors import RunError
from jaxrec.runtime import atomic_path


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "results" / "scores.json"
    write_json(path, {"ndcg": 1})
    with atomic_path(path) as draft:
        draft.write_text('{"ndcg": 2}')
        assert json.loads(path.read_text()) == {"ndcg": 1}
    assert json.loads(path.read_text()) == {"ndcg": 2}
    assert list(path.parent.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as draft:
        draft.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "run"
    with atomic_path(path) as draft:
        draft.mkdir()
        (draft / "config.yaml").write_text("seed: 0")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_suffix_names_the_format_of_a_table(tmp_path, suffix):
    table, path = pl.DataFrame({"item_id": ["a", "b"]}), tmp_path / f"items.{suffix}"
    write_table(table, path)
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[suffix]
    assert read(path).equals(table)


def test_a_directory_has_one_writer_at_a_time(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(RunError, match="another process is writing"), locked(tmp_path / "out"):
            pass
        assert (tmp_path / "out").is_dir()
    assert not list((tmp_path / "out").iterdir())
    with locked(tmp_path / "out"):
        pass
