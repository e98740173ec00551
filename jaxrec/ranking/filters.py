"""Lists of items to recommend or to leave out, and the correction for popularity."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Real

from jaxrec.data.columns import PERSONAL, as_ids, require
from jaxrec.data.listing import COMPRESSED
from jaxrec.data.opener import read_table
from jaxrec.errors import DataError
from jaxrec.ranking.option_types import is_whole
from jaxrec.runtime import path_exists, personal

FILE_SUFFIXES = (".parquet", ".csv", ".jsonl", ".inter", ".item")
SHOWN_IDS = 3  # in a message


def listed_ids(
    source: str | Path | pl.Series | Sequence[str | int],
    column: str = "item_id",
    place: str = "listed ids",
    *,
    may_be_empty: bool = False,
) -> pl.Series:
    """Ids from a column of a file, or from a sequence of ids, as strings.

    A single text or path is a file or a directory of parts if it has the ending of a table or
    exists; else it is one id, because the command line cannot tell an id from a path. Blank lines
    of a file with one column are left out.

    Args:
        place: what a message names.
        may_be_empty: whether a file without rows is a list of no ids.

    Raises:
        DataError: the file cannot be read, lacks the column or has no rows, an id is empty, or the
            source is neither a file nor a list of ids.
    """
    if not isinstance(source, str | Path):
        return as_ids(_series(source, column, place), place)
    path = Path(source)
    if _ending(path) not in FILE_SUFFIXES and not path_exists(path):
        return as_ids(_series([str(source)], column, place), place)
    table = read_table(path)
    if column not in table.columns:
        raise DataError(
            f"{path}: no column {column!r}, which a list of ids needs; it has "
            f"{', '.join(table.columns)}. Write {column} as the first line of the file"
        )
    if table.width == 1 and table.schema[column] == pl.String:
        table = table.drop_nulls()
    if may_be_empty and table.is_empty():
        return pl.Series(column, [], pl.String)
    return as_ids(require(table, column, str(path)), str(path))


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def _series(source: pl.Series | Sequence[str | int], column: str, place: str) -> pl.Series:
    if isinstance(source, pl.Series):
        return source.alias(column)
    value = personal if column in PERSONAL else repr
    if not np.iterable(source) or isinstance(source, bytes | Mapping):
        raise DataError(f"{place}: {value(source)} is neither a file nor a list of ids")
    ids = [str(entry) if is_whole(entry) else entry for entry in source]
    try:
        return pl.Series(column, ids or None, pl.String if not ids else None)
    except (TypeError, UnicodeEncodeError):  # half of a surrogate pair is no text
        raise DataError(f"{place}: {value(ids[:SHOWN_IDS])}: give ids as text") from None


def shown(ids: pl.Series) -> str:
    """The first ids of a series, for a message."""
    return ", ".join(map(repr, ids.head(SHOWN_IDS))) + " ..." * (len(ids) > SHOWN_IDS)


def is_listed(item_ids: pl.Series, listed: pl.Series) -> Bool[np.ndarray, " I"]:
    """Whether each id is listed. A null id is never listed."""
    return item_ids.is_in(listed.implode()).fill_null(False).to_numpy()


def popularity_bias(
    counts: Real[np.ndarray, " I"], strength: float, mean: float | None = None
) -> Float[np.ndarray, " I"]:
    """Bias of every item's score: -strength * log((count + 1) / mean(count + 1)).

    Strength 1 is the logQ correction of retrieval models (Yi et al., 2019), applied after
    training, as in logit adjustment (Menon et al., 2021, arXiv:2007.07314). The counts are
    smoothed by one event per item. An item of average count gets 0.

    Args:
        mean: of count + 1; None: that of these counts.
    """
    smoothed = np.asarray(counts, np.float64) + 1
    mean = smoothed.mean() if mean is None else mean
    return (-strength * np.log(smoothed / mean)).astype(np.float32)
