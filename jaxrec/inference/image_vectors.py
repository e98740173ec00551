"""Vectors of many images: found by item, encoded in batches, kept by content."""

import hashlib
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.data.columns import as_ids
from jaxrec.errors import DataError
from jaxrec.inference.image_encoder import ImageEncoder
from jaxrec.runtime import cache_dir

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
READERS = 4  # threads that decode images while the model computes
BUSY_SECONDS = 60  # that another process may write to the cache

Vector = Float[np.ndarray, " D"]


@dataclass(frozen=True)
class ImageFile:
    """The content of a file and its key, which decides the vector together with the encoder."""

    path: Path
    key: bytes
    pixels: np.ndarray | None  # None: the vector is known
    problem: str = ""


class VectorCache:
    """Vectors by content of the image, in a SQLite file of the cache directory.

    So a run that was stopped goes on where it was, and the next one encodes new images alone.
    """

    def __init__(self, encoder: ImageEncoder):
        path = cache_dir() / "images" / f"{encoder.digest}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, threading.Lock()
        self.connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        with self._used():
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, v BLOB)"
            )

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Vector]:
        """The known ones of some vectors."""
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, v FROM vectors WHERE key IN ({marks})"
        with self._used():
            rows = self.connection.execute(query, list(keys)).fetchall()
        return {key: np.frombuffer(content, "<f4").astype(np.float32) for key, content in rows}

    def put(self, vectors: dict[bytes, Vector]) -> None:
        """Keep vectors; they survive when this returns."""
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._used(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _used(self) -> Iterator[None]:
        """One thread at a time; raises an OSError that names the file."""
        with self.lock:
            try:
                yield
            except sqlite3.Error as error:
                raise OSError(f"{self.path}: {error}; remove the file") from error


def image_paths(
    items: pl.DataFrame, images: Path, column: str, note: Callable[[str], None]
) -> list[Path | None]:
    """The image file of every item; None where there is none.

    Args:
        images: directory of the images, also in subdirectories.
        column: of paths relative to it, the first one of a list; empty: `ITEM_ID.jpg`, `.jpeg`,
            `.png` or `.webp`.
        note: gets a sentence for every item whose image could be several files.

    Raises:
        DataError: there is no such directory or column, or no item has an image.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such directory of images")
    if column:
        if column not in items.columns:
            raise DataError(f"items: no column {column!r}; it has {', '.join(items.columns)}")
        names = items[column]
        names = names.list.first() if isinstance(names.dtype, pl.List) else names
        given = [images / name if name else None for name in names.cast(pl.String)]
        paths = [path if path is not None and path.is_file() else None for path in given]
    else:
        paths = _paths_by_id(as_ids(items["item_id"], "items"), images, note)
    if not any(paths):
        expected = f"the paths of column {column!r}" if column else "ITEM_ID.jpg, .png or .webp"
        raise DataError(f"{images}: no item has an image there; expected {expected}")
    return paths


def _paths_by_id(ids: pl.Series, images: Path, note: Callable[[str], None]) -> list[Path | None]:
    """The image whose relative path without suffix is the id, or else the only one of that name."""
    files = [path for path in _files_below(images) if path.suffix.lower() in SUFFIXES]
    # of several files of an item, the one whose suffix comes first
    files.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()), reverse=True)
    # an id may hold a dot, so that with_suffix cuts the image's suffix alone
    by_path = {
        _composed(path.relative_to(images).with_suffix("").as_posix()): path for path in files
    }
    by_name: dict[str, list[Path]] = {}
    for path in by_path.values():
        by_name.setdefault(_composed(path.stem), []).append(path)
    paths: list[Path | None] = []
    for item in map(_composed, ids):
        named = by_name.get(item, [])
        paths.append(by_path.get(item, named[0] if len(named) == 1 else None))
        if paths[-1] is None and named:
            listed = " or ".join(map(str, named))
            note(
                f"item {item!r} gets no vector, because it could have {listed}; give the paths in "
                "a column with --image-column, or keep one of them"
            )
    return paths


def _files_below(directory: Path) -> Iterator[Path]:
    """All files of a directory, also behind links; none of a directory that is reached again."""
    seen: set[str] = set()
    for place, folders, names in os.walk(directory, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from filter(Path.is_file, (Path(place) / name for name in sorted(names)))


def _composed(name: str) -> str:
    """A name as most systems write it: macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def encode_images(
    paths: Sequence[Path | None],
    encoder: ImageEncoder,
    batch_size: int,
    note: Callable[[str], None],
    advance: Callable[[int], None] = lambda count: None,
) -> list[Vector | None]:
    """The vector of every image; None where there is no image, or a broken one.

    Args:
        note: gets a sentence for every image that cannot be read.
        advance: gets the number of paths that are done.

    Raises:
        CheckpointError: the model fails.
    """
    vectors: list[Vector | None] = [None] * len(paths)
    size = encoder.batch_size or batch_size
    rows = [row for row, path in enumerate(paths) if path is not None]
    advance(len(paths) - len(rows))
    with closing(VectorCache(encoder)) as cache:
        for part, files in _files(paths, rows, size, encoder, cache):
            known = cache.get([file.key for file in files])
            missing = {
                f.key: f.pixels for f in files if f.pixels is not None and f.key not in known
            }
            if missing:
                encoded = encoder.encode(list(missing.values()))
                new = dict(zip(missing, encoded, strict=True))
                cache.put(new)
                known |= new
            for row, file in zip(part, files, strict=True):
                vectors[row] = known.get(file.key)
                if file.problem:
                    note(f"{file.path}: {file.problem}; its item gets no vector")
            advance(len(part))
    return vectors


def _files(
    paths: Sequence[Path | None],
    rows: Sequence[int],
    size: int,
    encoder: ImageEncoder,
    cache: VectorCache,
) -> Iterator[tuple[Sequence[int], list[ImageFile]]]:
    """Batches of rows with their files; threads read one batch ahead."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]

    def read(row: int) -> ImageFile:
        path = paths[row]
        assert path is not None
        try:
            content = path.read_bytes()
        except OSError as error:
            return ImageFile(path, b"", None, f"cannot be read ({error.strerror})")
        key = hashlib.sha256(content).digest()
        if cache.get([key]):
            return ImageFile(path, key, None)
        try:
            return ImageFile(path, key, encoder.preprocessing.pixels(content))
        except OSError as error:
            return ImageFile(path, key, None, f"is no image that can be read ({error})")

    with ThreadPoolExecutor(READERS) as workers:
        ahead = [workers.submit(read, row) for row in parts[0]] if parts else []
        for number, part in enumerate(parts):
            files = [future.result() for future in ahead]
            following = parts[number + 1] if number + 1 < len(parts) else []
            ahead = [workers.submit(read, row) for row in following]
            yield part, files
