"""Users are removed from part files, and all else stays as it is written."""

import json

import polars as pl
import pytest
from helpers.jobs import contents, holding, manifest
from helpers.paths import ROOT

from jaxrec.artifacts import erasing
from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.erasing import erase_from_file, erase_from_parts
from jaxrec.artifacts.files import locked
from jaxrec.artifacts.partitions import PartFile, open_partitions, read_manifest, write_files
from jaxrec.errors import Busy, RunError

TITLES = ['a "quoted", title', "two\nlines", "\u2028 separated", "", None]
FORMATS = ("parquet", "csv", "jsonl")


def lists_of(*users):
    """Five rows a user, with texts that are hard to write and a float that is hard to read."""
    return pl.DataFrame(
        {
            "user_id": [user for user in users for _ in TITLES],
            "score": [0.1 + 0.2] * (5 * len(users)),
            "title": TITLES * len(users),
        }
    )


def job(directory, form, *, finished=True):
    """Two parts: users a, b and gone; c and d. One user has fewer rows than asked for."""
    parts = open_partitions(directory, {"options": {"users": ["a", "gone"]}})
    for number, users in enumerate((("a", "gone", "b"), ("c", "d"))):
        name = f"part-{number:05}"
        metadata = {"layout": "L"} if form == "parquet" else None
        file = PartFile(directory, f"{name}.{form}", lists_of(*users), metadata)
        facts = {"name": name, "users": len(users), "rows": 5 * len(users), "removed": {}}
        fewer = {"gone": 5, "b": 5} if not number else {}
        parts = parts.write([file], {**facts, "users_with_fewer": len(fewer), "fewer": fewer})
    if finished:
        parts.finish({"users": 5, "rows": 25, "users_with_fewer": 2, "notes": ["kept"]})
    return directory


@pytest.fixture(params=FORMATS)
def lists(request, tmp_path):
    return job(open_directory(tmp_path / "out"), request.param)


def counts(directory):
    totals = read_manifest(directory)["totals"]
    return totals["users"], totals["rows"], totals["users_with_fewer"]


def test_all_but_the_rows_of_the_user_stays_as_it_was(lists):
    whole = contents(lists.path)
    assert erase_from_parts(lists, {"gone", "nobody"}) == ({"gone"}, 5, 1, ())
    left = contents(lists.path)
    changed, same = sorted(left)
    assert left[same] == whole[same]
    if changed.endswith("parquet"):
        assert pl.read_parquet(lists.path / changed).equals(lists_of("a", "b"))
        assert pl.read_parquet_metadata(lists.path / changed)["layout"] == "L"
    else:
        alone = job(open_directory(lists.path.parent / "alone"), changed.split(".")[1])
        erasing_none = contents(alone.path)[changed]
        assert left[changed] == without_gone(erasing_none, changed)
    entries = read_manifest(lists)["parts"]
    assert [(entry["users"], entry["rows"]) for entry in entries] == [(2, 10), (2, 10)]
    assert entries[0]["fewer"] == {"b": 5}
    assert counts(lists) == (4, 20, 1)
    assert read_manifest(lists)["totals"]["notes"] == ["kept"]
    assert read_manifest(lists)["job"]["options"]["users"] == ["a"]
    assert holding(lists.path, "gone") == set()


def without_gone(content, name):
    """The bytes of a file without the rows of a user, whose order is known."""
    first, _, rest = content.partition(b"gone" if name.endswith("csv") else b'{"user_id":"gone"')
    _, mark, last = rest.partition(b"b,0.3" if name.endswith("csv") else b'{"user_id":"b"')
    return first + mark + last


def test_a_stopped_erasure_can_be_repeated(lists, monkeypatch):
    """It ends when a file is replaced, and the manifest is not yet."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erasing, "_erase_from_manifest", stop)
        erase_from_parts(lists, {"gone"})
    assert counts(lists) == (5, 25, 2)
    assert erase_from_parts(lists, {"gone"}) == (frozenset(), 0, 0, ())
    assert counts(lists) == (4, 20, 1)
    before = contents(lists.path)
    assert erase_from_parts(lists, {"gone", "d"}).users == {"d"}
    assert counts(lists) == (3, 15, 1)
    assert len(before.items() - contents(lists.path).items()) == 1


def test_a_directory_of_a_stopped_job_loses_the_user_and_its_drafts(tmp_path):
    directory = job(open_directory(tmp_path), "csv", finished=False)
    (tmp_path / ".part-00002.csv.99").write_text("gone")
    assert erase_from_parts(directory, {"gone"}).rows == 5
    assert "totals" not in manifest(tmp_path)
    assert not [path for path in tmp_path.iterdir() if b"gone" in path.read_bytes()]


def test_a_job_for_one_user_names_that_user_no_more(tmp_path):
    directory = open_directory(tmp_path)
    open_partitions(directory, {"options": {"users": "gone"}})
    erase_from_parts(directory, {"gone"})
    assert read_manifest(directory)["job"]["options"]["users"] == []


def test_integer_ids_are_found_by_their_text(tmp_path):
    directory = open_directory(tmp_path)
    for form in FORMATS:
        table = pl.DataFrame({"user_id": [7, 8], "rank": [1, 1]})
        write_files([PartFile(directory, f"table.{form}", table)])
        erasure = erase_from_file(directory, f"table.{form}", {"7"})
        assert (erasure.users, erasure.rows_before, erasure.kept.to_list()) == ({"7"}, 2, ["8"])
    assert pl.read_parquet(tmp_path / "table.parquet").schema["user_id"] == pl.Int64
    assert json.loads((tmp_path / "table.jsonl").read_text()) == {"user_id": 8, "rank": 1}


def test_a_list_of_json_objects_loses_those_of_the_user(tmp_path):
    def written(*users):
        texts = [{"user_id": user, "score": 0.1 + 0.2, "titles": TITLES} for user in users]
        return json.dumps(texts, indent=1)

    directory, why = open_directory(tmp_path), tmp_path / "why.json"
    why.write_text(written("a", "gone", "b", "gone"))
    erased = erase_from_file(directory, "why.json", {"gone"})
    assert (erased.users, erased.rows_before, len(erased.kept)) == ({"gone"}, 4, 2)
    assert why.read_text() == written("a", "b")
    erase_from_file(directory, "why.json", {"a", "b"})
    assert json.loads(why.read_text()) == []
    for other in ('{"user_id": "gone"}', "1", '[{"id": 1}]', "[1]", "["):
        why.write_text(other)
        with pytest.raises(RunError, match=r"why\.json is no table with a column user_id"):
            erase_from_file(directory, "why.json", {"gone"})


def test_tables_beside_the_parts_are_cleared_and_other_files_are_named(lists):
    (lists.path / "audience.csv").write_text("rank,user_id\n1,gone\n2,a\n")
    (lists.path / "items.csv").write_text("item_id\n1\n")
    (lists.path / "notes.txt").write_text("no table")
    (lists.path / "older.csv").mkdir()
    erased = erase_from_parts(lists, {"gone"})
    assert (erased.rows, erased.files) == (6, 2)
    assert erased.unread == ("items.csv", "notes.txt", "older.csv")
    assert (lists.path / "audience.csv").read_text() == "rank,user_id\n2,a\n"


def test_states_at_a_url_are_cleared(tmp_path):
    directory = job(open_directory("memory://erasing/states"), "parquet")
    assert erase_from_parts(directory, {"c"}) == ({"c"}, 5, 1, ())


def test_what_is_no_output_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no part files; name a directory of a batch job"):
        erase_from_parts(open_directory(tmp_path / "nowhere"), {"gone"})
    (tmp_path / "part-00000.csv").write_text("item_id\n1\n")
    with pytest.raises(RunError, match=r"part-00000\.csv is no table with a column user_id"):
        erase_from_parts(open_directory(tmp_path), {"gone"})
    (tmp_path / "part-00000.csv").write_bytes((ROOT / "docs" / "page.png").read_bytes())
    with pytest.raises(RunError, match=r"part-00000\.csv is no table"):
        erase_from_parts(open_directory(tmp_path), {"gone"})


def test_a_directory_that_a_job_writes_to_is_not_touched(lists):
    before = contents(lists.path)
    with locked(lists.path), pytest.raises(Busy, match="another process is writing"):
        erase_from_parts(lists, {"gone"})
    assert contents(lists.path) == before
