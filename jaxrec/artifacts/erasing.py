"""Removes users from tables and from directories of part files."""

import json
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from jaxrec.artifacts.directories import Directory
from jaxrec.artifacts.files import WRITERS, fill_table
from jaxrec.artifacts.partitions import (
    has_manifest,
    read_manifest,
    remove_drafts,
    replace_manifest,
)
from jaxrec.errors import RunError

SUFFIXES = tuple(f".{name}" for name in WRITERS)
TABLES = (*SUFFIXES, ".json")  # and what `jaxrec explain` writes
LINE = "line"  # column of a row of JSON, as it is written
Fill = Callable[[pl.DataFrame, Path], Any]


class Erased(NamedTuple):
    """What was removed from one file or several."""

    users: frozenset[str]  # those that were found
    rows: int
    files: int
    unread: tuple[str, ...] = ()  # names of other files, which may hold users


class ErasedFile(NamedTuple):
    """One file before and after users were removed."""

    users: frozenset[str]  # those that were found
    rows_before: int
    kept: pl.Series  # user ids of the rows that stay


def erase_from_parts(directory: Directory, user_ids: Collection[str]) -> Erased:
    """Remove users from the part files of a batch job, from its manifest and from other tables.

    Each file is replaced as a whole. A run that was stopped can be repeated.

    Raises:
        RunError: the directory holds no part files or those of something else, or another process
            is writing to it.
    """
    names = directory.names()
    parts = [name for name in names if name.startswith("part-") and name.endswith(SUFFIXES)]
    if not parts and not has_manifest(names):
        raise RunError(f"{directory} holds no part files; name a directory of a batch job")
    with directory.locked():
        remove_drafts(directory)
        erased = {name: erase_from_file(directory, name, user_ids) for name in parts}
        if has_manifest(names):
            _erase_from_manifest(directory, erased, user_ids)
        others = [name for name in names if name not in parts and name[0] not in "._"]
        beside, unread = _erase_from_others(directory, others, user_ids)
    return total([*erased.values(), *beside])._replace(unread=unread)


def _erase_from_others(
    directory: Directory, names: list[str], user_ids: Collection[str]
) -> tuple[list[ErasedFile], tuple[str, ...]]:
    """Remove users from the tables among some files; also the names of the other files."""
    erased, unread = list[ErasedFile](), list[str]()
    for name in names:
        try:
            if not name.endswith(TABLES):
                raise RunError(f"{name} is no table")
            erased.append(erase_from_file(directory, name, user_ids))
        except (RunError, OSError):  # a directory may have such a name
            unread.append(name)
    return erased, tuple(unread)


def erase_from_file(directory: Directory, name: str, user_ids: Collection[str]) -> ErasedFile:
    """Remove the rows of users from a table, which is replaced only if it holds one of them.

    Raises a RunError if the table has no column `user_id`.

    Args:
        name: of a table, or of a JSON file with a list of objects, as `jaxrec explain` writes.
    """
    content = directory.read(name)
    try:
        users = _users(content, name)
        is_listed = users.is_in(list(user_ids))
        found = frozenset(users.filter(is_listed))
        if found:
            table, fill = _read(content, name)
            directory.write(name, partial(fill, table.filter(~is_listed)))
    except (pl.exceptions.PolarsError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{directory}: {name} is no table with a column user_id "
            f"({str(error).splitlines()[0]}); name the output of a batch job"
        ) from error
    return ErasedFile(found, len(users), users.filter(~is_listed))


def total(erased: Collection[ErasedFile]) -> Erased:
    """What was removed from several files."""
    return Erased(
        frozenset[str]().union(*(erasure.users for erasure in erased)),
        sum(erasure.rows_before - len(erasure.kept) for erasure in erased),
        sum(bool(erasure.users) for erasure in erased),
    )


def _users(content: bytes, name: str) -> pl.Series:
    """The user id of every row of a table, as text."""
    if name.endswith(".parquet"):
        if pl.read_parquet(BytesIO(content), n_rows=1).is_empty():  # such as ranks of no event
            return pl.Series([], dtype=pl.String)
        table = pl.read_parquet(BytesIO(content), columns=["user_id"])
    else:
        table, _ = _read(content, name)
    return table["user_id"].cast(pl.String)


def _read(content: bytes, name: str) -> tuple[pl.DataFrame, Fill]:
    """A table whose other values stay as they are written, and how to write it."""
    source = BytesIO(content)
    if name.endswith(".parquet"):
        metadata = pl.read_parquet_metadata(source)
        metadata.pop("ARROW:schema", None)  # is written with the columns
        return pl.read_parquet(source), partial(fill_table, metadata=metadata or None)
    if name.endswith(".csv"):
        return pl.read_csv(source, infer_schema=False), fill_table
    if name.endswith(".json"):
        objects = [json.dumps(row) for row in json.loads(content)]
        return _by_user(objects), _fill_json
    lines = [f"{line}\n" for line in content.decode().split("\n") if line]
    return _by_user(lines), lambda rows, path: path.write_text("".join(rows[LINE]))


def _by_user(lines: list[str]) -> pl.DataFrame:
    """Objects of JSON with the user id of each."""
    users = [str(json.loads(line)["user_id"]) for line in lines]
    return pl.DataFrame({"user_id": users, LINE: lines}, {"user_id": pl.String, LINE: pl.String})


def _fill_json(rows: pl.DataFrame, path: Path) -> None:
    path.write_text(json.dumps([json.loads(line) for line in rows[LINE]], indent=1))


def _erase_from_manifest(
    directory: Directory, erased: dict[str, ErasedFile], user_ids: Collection[str]
) -> None:
    """Make the counts those of the files, and remove the users that the manifest names."""
    before = read_manifest(directory)
    by_part = {Path(name).stem: file for name, file in erased.items()}
    parts = [_updated_part(part, by_part.get(part["name"]), user_ids) for part in before["parts"]]
    after = {**before, "job": _updated_job(before["job"], user_ids), "parts": parts}
    if "totals" in before:
        counts = Counter[str]()
        for part in parts:
            counts.update({name: value for name, value in part.items() if isinstance(value, int)})
        after["totals"] = {**before["totals"], **counts}
    if after != before:
        replace_manifest(directory, after)


def _updated_part(
    part: dict[str, Any], erased: ErasedFile | None, user_ids: Collection[str]
) -> dict[str, Any]:
    """The entry of a part in the manifest, without the users."""
    if erased is None:
        return part
    users = part["users"] - len(erased.users)
    if part.get("rows") != erased.rows_before:  # a stopped run has replaced the file already
        users = erased.kept.n_unique()
    updated = {**part, "rows": len(erased.kept), "users": users}
    if "fewer" in part:
        fewer = {user: count for user, count in part["fewer"].items() if user not in user_ids}
        updated["fewer"] = fewer
        updated["users_with_fewer"] -= len(part["fewer"]) - len(fewer)
    return updated


def _updated_job(job: dict[str, Any], user_ids: Collection[str]) -> dict[str, Any]:
    """The job without the users that its option --users names."""
    options = job.get("options", {})
    named = options.get("users") or []
    named = [named] if isinstance(named, str) else named
    kept = [user for user in named if user not in user_ids]
    return job if kept == named else {**job, "options": {**options, "users": kept}}
