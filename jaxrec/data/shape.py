"""What a specification says about the values of a table: event types, ratings, separators."""

import polars as pl

from jaxrec.data.codes import where
from jaxrec.data.columns import NULL_WORDS, as_text, reject
from jaxrec.data.spec import TableSpec
from jaxrec.errors import DataError
from jaxrec.runtime import personal


def shaped(frame: pl.DataFrame, spec: TableSpec) -> pl.DataFrame:
    """A table with the event types, the lowest rating and the lists of a specification.

    Raises a DataError for ratings without an event type.
    """
    if columns_read(spec):
        frame = _by_rating(frame, spec)
    if spec.event_types and "event" in frame.columns:
        frame = _with_event_types(frame, spec)
    return frame.with_columns(
        pl.col(name).str.split(separator)
        for name, separator in spec.separators.items()
        if frame.schema.get(name) == pl.String
    )


def check_event_types(frame: pl.DataFrame, spec: TableSpec) -> None:
    """Raise a DataError if none of the event types of a specification is in a whole table."""
    if not spec.event_types or "event" not in frame.columns or frame.is_empty():
        return
    present = as_text(frame["event"], spec.origin).unique().cast(pl.String)
    if not present.is_in(list(spec.event_types)).any():
        raise DataError(
            f"{spec.origin}: none of the `event_types` {', '.join(spec.event_types)} occurs; the "
            f"column has {len(present):,} others, such as {personal(present[0])}"
        )


def check_rows(before: int, after: int, spec: TableSpec) -> None:
    """Raise a DataError if a specification leaves none of the rows of a whole table."""
    if before and not after:
        option = "event_types" if spec.event_types else "min_rating"
        raise DataError(f"{spec.origin}: `{option}` leaves none of the {before:,} rows")


def columns_read(spec: TableSpec) -> tuple[str, ...]:
    """The columns that `shaped` needs in a frame that has only some of the columns."""
    return ("rating",) if spec.ratings or spec.min_rating is not None else ()


def columns_made(spec: TableSpec) -> tuple[str, ...]:
    """The columns that `shaped` makes."""
    return ("event",) if spec.ratings else ()


def check_columns(columns: tuple[str, ...], spec: TableSpec) -> None:
    """Raise a DataError if the specification names a column that the table lacks."""
    needed = {"separators": tuple(spec.separators), "ratings": columns_read(spec)}
    if spec.event_types:
        needed["event_types"] = ("event",)
    for option, names in needed.items():
        if missing := [name for name in names if name not in columns]:
            raise DataError(
                f"{spec.origin}: `{option}` needs the column {missing[0]!r}; the table has "
                f"{', '.join(columns)}. Say which one it is in `columns`"
            )


def _by_rating(frame: pl.DataFrame, spec: TableSpec) -> pl.DataFrame:
    """Rows with ratings from `min_rating` on; the event type of a row by its rating."""
    rating = _ratings(frame["rating"], spec.origin)
    if spec.min_rating is not None:
        frame = frame.filter(rating >= spec.min_rating)
        rating = rating.filter(rating >= spec.min_rating)
    if not spec.ratings:
        return frame
    lowest = min(spec.ratings.values())
    fix = "Correct them, or give an event type to lower ratings"
    outside = rating.is_null() | (rating < lowest)
    reject(outside, frame["rating"], spec.origin, "have no event type", fix)
    ordered = sorted(spec.ratings.items(), key=lambda pair: pair[1])
    event = pl.lit(None, pl.String)
    for event_type, least in ordered:
        event = pl.when(rating >= least).then(pl.lit(event_type)).otherwise(event)
    return frame.with_columns(event.alias("event"))


def _ratings(column: pl.Series, table: str) -> pl.Series:
    """Ratings as numbers; null where there is none. Raises a DataError for other values."""
    text = column
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        text = text.set(text.is_in(("", *NULL_WORDS)), None)
    numbers = text.cast(pl.Float64, strict=False)
    fix = "Write them as numbers, such as 4.5"
    reject(text.is_not_null() & numbers.is_null(), column, table, "are no numbers", fix)
    return numbers


def _with_event_types(frame: pl.DataFrame, spec: TableSpec) -> pl.DataFrame:
    """Event types by their names in jaxrec; rows whose type has the name "" are left out."""
    event_types = as_text(frame["event"], spec.origin).replace(dict(spec.event_types))
    kept = where(event_types, lambda text: text != "").fill_null(True)
    return frame.with_columns(event_types).filter(kept)
