"""Directories that jobs write to: on this machine, or at a URL that fsspec opens."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import fsspec

from jaxrec.artifacts.files import LOCK, locked, refuse_file_on_the_way
from jaxrec.errors import ConfigError
from jaxrec.runtime import atomic_path

URL_MARK = "://"


@runtime_checkable
class Directory(Protocol):
    """A directory of files; the first file that is written creates it."""

    address: str  # absolute

    def names(self) -> list[str]:
        """Names of its files, without a lock."""

    def read(self, name: str) -> bytes:
        """The content of a file."""

    def write(self, name: str, fill: Callable[[Path], Any]) -> None:
        """Create or replace a file.

        Args:
            fill: writes the content to a path on this machine that ends in `name`.
        """

    def remove(self, name: str) -> None:
        """Remove a file."""

    def remove_drafts(self, prefixes: tuple[str, ...]) -> None:
        """Remove the unfinished files of a killed job, whose names have these prefixes."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing to it, as far as it can.

        Raises:
            Busy: another process is writing to it.
        """


class LocalDirectory:
    """A directory on this machine. Its files appear whole or not at all."""

    def __init__(self, path: Path):
        self.path = path
        self.address = str(path.resolve())

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """See `Directory`."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.name != LOCK)

    def read(self, name: str) -> bytes:
        """See `Directory`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, fill: Callable[[Path], Any]) -> None:
        """See `Directory`."""
        with atomic_path(self.path / name) as draft:
            fill(draft)

    def remove(self, name: str) -> None:
        """See `Directory`."""
        (self.path / name).unlink()

    def remove_drafts(self, prefixes: tuple[str, ...]) -> None:
        """See `Directory`."""
        for name in self.names():
            if name.startswith(tuple(f".{prefix}" for prefix in prefixes)):
                draft = self.path / name
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """See `Directory`."""
        return locked(self.path)


class RemoteDirectory:
    """A directory at a URL, such as `s3://bucket/lists`.

    Object stores show a file when its upload is complete. Jobs of two machines are not kept apart.
    """

    def __init__(self, url: str):
        self.address = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url}: {error}") from error

    def __str__(self) -> str:
        return self.address

    def names(self) -> list[str]:
        """See `Directory`."""
        self.files.invalidate_cache()
        try:
            paths = self.files.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, name: str) -> bytes:
        """See `Directory`."""
        return self.files.cat_file(f"{self.root}/{name}")

    def write(self, name: str, fill: Callable[[Path], Any]) -> None:
        """See `Directory`."""
        with tempfile.TemporaryDirectory(prefix="jaxrec-") as scratch:
            draft = Path(scratch, name)
            fill(draft)
            self.files.put_file(str(draft), f"{self.root}/{name}")

    def remove(self, name: str) -> None:
        """See `Directory`."""
        self.files.rm_file(f"{self.root}/{name}")

    def remove_drafts(self, prefixes: tuple[str, ...]) -> None:
        """See `Directory`; uploads leave none."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """See `Directory`."""
        return contextlib.nullcontext()


def open_directory(place: str | Path) -> Directory:
    """The directory at a path or URL.

    Raises:
        RunError: the path lies in a file.
        ConfigError: the path is a file, or nothing here opens such a URL.
    """
    if URL_MARK in str(place):
        return RemoteDirectory(str(place))
    path = Path(place)
    refuse_file_on_the_way(path)
    if path.is_file():
        raise ConfigError(f"{path} is a file; name a directory")
    return LocalDirectory(path)


def matching_directories(place: str) -> list[str]:
    """The directories that a path, pattern or URL stands for, sorted by name.

    Raises a ConfigError if a pattern matches none, or nothing here opens such a URL.
    """
    paths = matching_paths(place)
    directories = [path for path, is_directory in paths if is_directory or path == place]
    if not directories:
        raise ConfigError(f"{place}: no such directory")
    return directories


def matching_paths(place: str) -> list[tuple[str, bool]]:
    """What a path, pattern or URL stands for, sorted by name, and whether it is a directory.

    Raises a ConfigError if a pattern matches nothing, or nothing here opens such a URL.
    """
    is_pattern = any(mark in place for mark in "*?[") and not Path(place).exists()
    if not is_pattern and URL_MARK not in place:
        return [(place, not Path(place).is_file())]
    try:
        files, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{place}: {error}") from error
    if not is_pattern:
        return [(place, not files.isfile(root))]
    paths = sorted(files.glob(root))
    if not paths:
        raise ConfigError(f"{place}: nothing matches")
    of_place = files.unstrip_protocol if URL_MARK in place else str
    return [(of_place(path), files.isdir(path)) for path in paths]
