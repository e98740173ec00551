"""`jaxrec forget`: removes users from every place that is named."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from jaxrec.artifacts.run_directory import read_config, read_id_key, served, uses_id_key
from jaxrec.config import Config
from jaxrec.config.ranges import Bounded
from jaxrec.data.pseudonyms import keyed_hash, read_key
from jaxrec.errors import ConfigError, InputError, RunError
from jaxrec.ranking.filters import listed_ids
from jaxrec.serving.console import console
from jaxrec.serving.forgetting import RUN, PlaceReport, Places, check_lists, forget, summary
from jaxrec.serving.live.engine import time_of_deletion
from jaxrec.serving.options import STORE, Place


@dataclass(frozen=True, kw_only=True)
class ForgetOptions(Bounded):
    """Remove users from every place that is named, and add keyed hashes of their ids to a list that
    `data.forgotten` keeps out of the next training. A run that was stopped can be repeated."""

    user: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ids of the users."""
    users: Path | None = None
    """More of them: a file with a column user_id."""
    id_key: Path | None = None
    """The file of the key of user ids: pseudonyms are removed too (by default the keys of the
    runs)."""
    forgotten: Path | None = None
    """The list of forgotten users, made if it is missing (by default `data.forgotten` of the
    runs)."""
    store: tuple[str, ...] = ()
    """Stores of the live service: SQLite files or redis://HOST:PORT/DB."""
    stream: tuple[str, ...] = ()
    """Streams of events, redis://HOST:PORT/DB/STREAM, with their rejected entries."""
    outputs: tuple[Place, ...] = ()
    """Directories or URLs that `jaxrec recommend` and `jaxrec profile` wrote, patterns of them,
    single tables, or files of `jaxrec explain`."""
    states: tuple[Place, ...] = ()
    """Directories or URLs of --states, or patterns of them."""
    run: tuple[Path, ...] = ()
    """Run directories: the ranks of the test users, and the default store if it is there."""
    no_vacuum: bool = False
    """Do not rewrite streams and the files of stores. SQLite overwrites deleted content in any
    case, but an id may remain in an unused part of a page."""
    json: bool = False
    """Print the report as JSON."""


def forget_users(options: ForgetOptions) -> None:
    """Forget the users, and print what was removed where.

    Raises:
        ConfigError, DataError: an option or the file of users cannot be used.
        RunError: a place may still hold users.
    """
    ids = list(options.user)
    if options.users is not None:
        ids += listed_ids(options.users, "user_id", may_be_empty=True).to_list()
    elif not ids:
        raise ConfigError("name users, or a file of them with --users")
    if "" in ids:
        raise ConfigError("a user id is empty; name users by their ids")
    runs, unusable = open_runs(options)
    keys = {run.id_key for run in runs}
    if options.id_key is not None:
        keys.add(read_key(options.id_key))
    users = {user_id: user_id for user_id in ids}
    users |= {keyed_hash(key, user_id): user_id for key in keys if key for user_id in ids}
    times = [time_of_deletion(run.config) for run in runs] or [int(time.time())]
    deleted_at = None if None in times else max(filter(None, times))
    places = places_of(options, runs)
    check_lists(places, keys)
    reports = [*forget(users, places, deleted_at, compact=not options.no_vacuum), *unusable]
    show = as_json if options.json else as_text
    console.print(show(reports, len(set(ids))))
    failed = [report.place for report in reports if report.failure]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(reports)} places may still hold users ({', '.join(failed)}); "
            "correct what the report says, then give the same command again"
        )


class OpenRun(NamedTuple):
    """A run whose users are forgotten."""

    path: Path
    config: Config
    id_key: bytes  # empty: its ids are no keyed hashes


def open_runs(options: ForgetOptions) -> tuple[list[OpenRun], list[PlaceReport]]:
    """The runs that the options name, and reports of those that cannot be used."""
    runs, unusable = list[OpenRun](), list[PlaceReport]()
    for path in options.run:
        own = served(path)
        try:
            config = read_config(path)
            key = read_id_key(own, options.id_key) if uses_id_key(own) else b""
            runs.append(OpenRun(path, config, key))
        except InputError as error:
            unusable.append(PlaceReport(RUN, str(path), failure=str(error)))
    return runs, unusable


def places_of(options: ForgetOptions, runs: Sequence[OpenRun]) -> Places:
    """The places that the options name; raises a ConfigError if there is no list for users."""
    configs = [run.config for run in runs]
    of_runs = {Path(config.data.forgotten) for config in configs if config.data.forgotten}
    lists = of_runs if options.forgotten is None else {options.forgotten}
    if not lists:
        raise ConfigError(
            "name the list of forgotten users with --forgotten FILE, so that the next training "
            "(data.forgotten: FILE) leaves their events out"
        )
    own = [store for run in runs for store in sorted(run.path.rglob(STORE))]
    return Places(
        lists=tuple(sorted(lists)),
        stores=tuple(dict.fromkeys((*options.store, *map(str, own)))),
        streams=options.stream,
        outputs=options.outputs,
        states=options.states,
        runs=tuple(run.path for run in runs),
    )


def as_text(reports: Sequence[PlaceReport], users: int) -> str:
    """A line for each place."""
    return "\n".join([f"users to forget: {users:,}", *map(str, reports)])


def as_json(reports: Sequence[PlaceReport], users: int) -> str:
    """The report for a program."""
    return json.dumps(summary(reports, users), indent=2)
