"""Removes users from stores, streams, outputs, states and runs, and lists them as forgotten."""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.artifacts.directories import Directory, matching_paths, open_directory
from jaxrec.artifacts.erasing import TABLES, Erased, erase_from_file, erase_from_parts, total
from jaxrec.artifacts.run_directory import read_config
from jaxrec.data.forgotten import add_forgotten, refuse_list
from jaxrec.errors import Busy, ConfigError, InputError
from jaxrec.serving.stores.base import Store
from jaxrec.serving.stores.opening import check_redis, open_store

LIST, RUN = "list", "run"  # kinds of places
NOT_COMPACT = (
    "its files were not rewritten, so an id may remain in unused parts of them until the next "
    "`jaxrec forget --store`"
)
CHUNK = 500  # users of a store at a time
RANKS = "ranks.parquet"  # the file of a run that names users
BUSY_SECONDS = 10.0  # to wait for another process that writes to a directory
RETRY_SECONDS = 0.2

Users = Mapping[str, str]
"""Every form in which the id of a user is kept -> the id."""


@dataclass(frozen=True)
class Places:
    """Where to forget users."""

    lists: tuple[Path, ...] = ()  # of forgotten users
    stores: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    runs: tuple[Path, ...] = ()


class Removed(NamedTuple):
    """What was removed from one place."""

    forms: frozenset[str]  # the ids that were found, as they were kept
    counts: dict[str, int]  # of what -> how many
    notes: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()  # files that may still hold content of users, and why


@dataclass(frozen=True)
class PlaceReport:
    """What became of the users in one place."""

    kind: str
    place: str
    users: int = 0  # that were found there
    removed: dict[str, int] = field(default_factory=dict)  # of what -> how many
    notes: tuple[str, ...] = ()
    failure: str = ""  # why the place may still hold users

    def __str__(self) -> str:
        counts = ", ".join(f"{what} {count:,}" for what, count in self.removed.items())
        results = [f"FAILED: {self.failure}"] if self.failure else []
        if self.kind == LIST and counts:
            results.append(f"new {counts}")
        elif self.users:
            results.append(f"users found: {self.users:,}; removed: {counts}")
        elif not self.failure:
            results.append("no user found")
        return f"{self.kind} {self.place}: {'; '.join([*results, *self.notes])}"


def check_lists(places: Places, id_keys: Collection[bytes] = ()) -> None:
    """Raise a ConfigError for a list that cannot be written, such as one of another machine.

    Args:
        id_keys: of user ids; a list with one of them would hold pseudonyms.
    """
    for path in places.lists:
        refuse_list(path, id_keys)
        if not path.parent.is_dir():
            raise ConfigError(
                f"{path}: there is no such directory for the list of forgotten users; name the "
                "list with --forgotten"
            )


def forget(
    users: Users, places: Places, deleted_at: int | None, *, compact: bool = False
) -> list[PlaceReport]:
    """Remove users from all places; a place that fails does not stop the others.

    Everything may be repeated. The list comes first, so that nothing brings a user back meanwhile.

    Args:
        deleted_at: the time of the tombstones (s), see `Store.delete`.
        compact: also rewrite streams and the files of stores, see `Store.compact`.
    """
    reports = list[PlaceReport]()
    for kind, place, remove in _work(users, places, deleted_at, compact):
        try:
            reports.append(report_of(kind, place, users, remove()))
        except (InputError, OSError) as error:
            failure = _without_password(str(error))
            reports.append(PlaceReport(kind, _without_password(place), failure=failure))
    return reports


def report_of(kind: str, place: str, users: Users, removed: Removed) -> PlaceReport:
    """The report of a place that users were removed from."""
    num_users = len({users[form] for form in removed.forms})
    shown, failure = _without_password(place), "; ".join(removed.remaining)
    return PlaceReport(kind, shown, num_users, removed.counts, removed.notes, failure)


def summary(reports: Sequence[PlaceReport], users: int) -> dict[str, Any]:
    """The reports of all places as JSON has them.

    Args:
        users: number of users to forget.
    """
    complete = not any(report.failure for report in reports)
    places = [asdict(report) for report in reports]
    return {"users": users, "complete": complete, "places": places}


def delete_from_store(store: Store, users: Users, deleted_at: int | None) -> Removed:
    """Delete users from a store, see `Store.delete`, without rewriting its files.

    Raises a StoreError if the store fails.
    """
    ids, forms, documents, impressions = list(users), set[str](), 0, 0
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        loaded = store.load(chunk)
        kept = {u for u, document in loaded.documents.items() if document.version}
        kept |= loaded.damaged.keys()
        documents += len(kept)
        forms |= kept
        for user_id in chunk:
            if shown := len(store.impressions(user_id)):
                impressions += shown
                forms.add(user_id)
            store.delete(user_id, deleted_at)
    counts = {"documents": documents, "impressions": impressions}
    return Removed(frozenset(forms), counts, (NOT_COMPACT,))


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//", text)


def _work(
    users: Users, places: Places, deleted_at: int | None, compact: bool
) -> Iterator[tuple[str, str, Callable[[], Removed]]]:
    """Kind and name of every place, and what removes the users there."""
    for path in places.lists:
        yield LIST, str(path), partial(_listed, path, users, deleted_at)
    for address in places.stores:
        yield "store", address, partial(_from_store, address, users, deleted_at, compact)
    for address in places.streams:
        yield "stream", address, partial(_from_stream, address, users, compact)
    for kind, patterns in (("outputs", places.outputs), ("states", places.states)):
        for pattern in patterns:
            yield kind, pattern, partial(_from_parts, pattern, users)
    for run in places.runs:
        yield RUN, str(run), partial(_from_run, run, users)


def _listed(path: Path, users: Users, deleted_at: int | None) -> Removed:
    now = int(time.time()) if deleted_at is None else deleted_at
    return Removed(frozenset(), {"entries": add_forgotten(path, users, now)})


def _from_store(address: str, users: Users, deleted_at: int | None, compact: bool) -> Removed:
    if "://" not in address and not Path(address).is_file():
        raise ConfigError(f"{address}: there is no such store")
    with closing(open_store(address)) as store:
        removed = delete_from_store(store, users, deleted_at)
        if not compact:
            return removed
        return removed._replace(notes=(), remaining=tuple(store.compact()))


def _from_stream(address: str, users: Users, compact: bool) -> Removed:
    try:
        from jaxrec.serving.http.stream import parse_stream
    except ImportError as error:
        raise ConfigError(f"streams need more: pip install -e '.[serve]' ({error})") from error
    stream = parse_stream(address)
    check_redis(stream.server)
    from jaxrec.serving.stores.redis_streams import erase_entries

    names = (stream.name, stream.rejected)
    erased = erase_entries(stream.server, names, users.keys(), compact=compact)
    return Removed(erased.users, {"entries": erased.entries}, remaining=erased.remaining)


def _from_parts(pattern: str, users: Users) -> Removed:
    erased, unread = list[Erased](), list[str]()
    for place, is_directory in matching_paths(pattern):
        if is_directory:
            erased.append(_patiently(open_directory(place), users))
            unread += [f"{place}/{name}" for name in erased[-1].unread]
        elif place == pattern or place.endswith(TABLES):  # such as the table of an audience
            parent, _, name = place.rpartition("/")
            directory = open_directory(parent or ".")
            erased.append(total([erase_from_file(directory, name, users)]))
        else:
            unread.append(place)
    forms = frozenset[str]().union(*(part.users for part in erased))
    rows, files = sum(part.rows for part in erased), sum(part.files for part in erased)
    note = f"not read, as they are no tables of users: {', '.join(unread)}"
    return Removed(forms, {"rows": rows, "files": files}, (note,) if unread else ())


def _patiently(directory: Directory, users: Users) -> Erased:
    """`erase_from_parts` when no other process writes to the directory."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return erase_from_parts(directory, users)
        except Busy:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)


def _from_run(run: Path, users: Users) -> Removed:
    read_config(run)  # refuses another directory
    tables = sorted(run.rglob(RANKS))  # also of a run inside the run, such as that of a shop
    erased = total([erase_from_file(open_directory(t.parent), RANKS, users) for t in tables])
    return Removed(erased.users, {"rows": erased.rows})
