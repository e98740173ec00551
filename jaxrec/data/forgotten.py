"""The list of forgotten users: keyed hashes of their ids, and until when their events are left out.

Each line is `HASH SECONDS`. The key of the hashes is in a file beside the list, `forgotten.key` for
`forgotten.txt`. So the list alone reveals no user, and a shop that gets a new event of a forgotten
user afterwards may use it again.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from filelock import FileLock, Timeout

from jaxrec.data.codes import coded, per_row, texts
from jaxrec.data.pseudonyms import keyed_hash, new_key, pseudonyms, read_key
from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime import atomic_path

LOCK_SECONDS = 30.0  # to wait for another process that adds users
HEADER = "# users that jaxrec leaves out: keyed hashes of ids, events until a time (s)\n"


@dataclass(frozen=True)
class Forgotten:
    """A list of forgotten users."""

    name: str = ""  # of the file in messages
    key: bytes = b""
    until: dict[str, int] = field(default_factory=dict)  # hash of an id -> seconds since 1970

    def events_of(self, events: pl.DataFrame, *, has_time: bool) -> pl.Series:
        """Whether each event is one of a forgotten user, until the user was forgotten.

        Args:
            events: `user_id` (text or codes) and `timestamp` (milliseconds).
            has_time: False: timestamps are positions, so all events of the user are.
        """
        if not self.until:
            return pl.repeat(False, len(events), eager=True)
        users = coded(events["user_id"])
        hashes = pseudonyms(self.key, texts(users)).cast(pl.String)
        until = hashes.replace_strict(self.until, default=None, return_dtype=pl.Int64)
        last = per_row(users, until)
        if not has_time:
            return last.is_not_null()
        return (events["timestamp"] // 1000 <= last).fill_null(False)

    def add_pseudonyms(self, id_key: bytes, ids: pl.Series) -> None:
        """Also list the pseudonyms of listed ids, as the list may be older than the key of ids."""
        if not self.until:
            return
        for user_id in texts(coded(ids)).drop_nulls().unique():
            if (seconds := self.until.get(keyed_hash(self.key, user_id))) is not None:
                entry = keyed_hash(self.key, keyed_hash(id_key, user_id))
                self.until[entry] = max(seconds, self.until.get(entry, 0))


class LeftOut:
    """Leaves the events of forgotten users out of tables, and counts them."""

    def __init__(self, forgotten: Forgotten):
        self.forgotten, self.users, self.events = forgotten, set[str](), 0

    def without(self, events: pl.DataFrame, *, has_time: bool) -> pl.DataFrame:
        """The other events of a table; arguments as of `Forgotten.events_of`."""
        left_out = self.forgotten.events_of(events, has_time=has_time)
        if not left_out.any():
            return events
        self.users.update(events["user_id"].filter(left_out).unique().cast(pl.String))
        self.events += int(left_out.sum())
        return events.filter(~left_out)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on what was left out, if anything was."""
        if not self.events:
            return ()
        counts = f"{len(self.users):,} users with {self.events:,} events"
        return (f"{self.forgotten.name}: {counts} are forgotten and left out.",)


def read_forgotten(path: str | Path) -> Forgotten:
    """The list in a file; empty for an empty path.

    Raises:
        ConfigError: the file or its key is missing, or the key cannot be used.
        DataError: a line has another form.
    """
    if not path:
        return Forgotten()
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such list of forgotten users; name it, or begin an empty one: "
            f"touch {path}"
        )
    until = dict[str, int]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        entry, _, seconds = line.partition(" ")
        if not seconds.isdecimal():
            raise DataError(f"{path}, line {number}: no hash and time; take the list from a backup")
        until[entry] = max(int(seconds), until.get(entry, 0))
    if not until:
        return Forgotten()
    fix = f"take the key of {path.name} from a backup: without it the list means nothing"
    return Forgotten(str(path), read_key(key_of(path), fix), until)


def add_forgotten(path: Path, user_ids: Iterable[str], seconds: int) -> int:
    """Add users to a list, which is made if it is missing; returns how many are new there.

    Raises:
        ConfigError: the path cannot be that of a list, or the key of the list is missing or cannot
            be used.
        DataError: the list is damaged, or another process keeps writing it.
    """
    refuse_list(path)
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS):
            before = read_forgotten(path) if path.is_file() else Forgotten()
            key = before.key or _key_beside(path)
            added = {keyed_hash(key, user_id): seconds for user_id in user_ids}
            newest = {entry: max(time, before.until.get(entry, 0)) for entry, time in added.items()}
            _write(path, before.until | newest)
    except Timeout:
        raise DataError(f"{path}: another process keeps writing it; try again") from None
    return len(added.keys() - before.until.keys())


def refuse_list(path: Path, id_keys: Collection[bytes] = ()) -> None:
    """Raise a ConfigError for a path that cannot be that of a list.

    Args:
        id_keys: of user ids; the key of a list must be another.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name a file for the list of forgotten users")
    if key_of(path) == path:
        fix = f"name the list {path.stem}.txt"
        raise ConfigError(f"{path}: the key of the list would have the same name; {fix}")
    if key_of(path).is_file() and read_key(key_of(path)) in id_keys:
        raise ConfigError(
            f"{path}: its key would be {key_of(path)}, which is that of the user ids, so the list "
            "would hold pseudonyms; give the list another name"
        )


def key_of(path: Path) -> Path:
    """Where the key of a list is."""
    return path.with_suffix(".key")


def _key_beside(path: Path) -> bytes:
    """The key of a list that has no entries yet."""
    place = key_of(path)
    if not place.exists():
        with atomic_path(place) as draft:
            draft.touch(0o600)
            draft.write_bytes(new_key() + b"\n")
    return read_key(place)


def _write(path: Path, until: dict[str, int]) -> None:
    lines = (f"{entry} {seconds}\n" for entry, seconds in sorted(until.items()))
    with atomic_path(path) as draft:
        draft.touch(0o600)
        draft.write_text(HEADER + "".join(lines), encoding="utf-8")
