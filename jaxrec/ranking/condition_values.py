"""The values of SQL conditions: whole numbers never wrap, and a text beside a date is a date."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl
from sqlglot import exp

from jaxrec.ranking.condition_functions import WHOLE, Refused

MAX_WHOLE = 2**64  # a larger number is read as a fraction
TYPES: dict[str, Any] = {
    "BIGINT": pl.Int64,
    "BOOLEAN": pl.Boolean,
    "DATE": pl.Date,
    "DATETIME": pl.Datetime("us"),
    "DOUBLE": pl.Float64,
    "FLOAT": pl.Float64,
    "INT": pl.Int32,
    "INTEGER": pl.Int32,
    "REAL": pl.Float32,
    "SMALLINT": pl.Int16,
    "TEXT": pl.String,
    "TIMESTAMP": pl.Datetime("us"),
    "TINYINT": pl.Int8,
    "VARCHAR": pl.String,
}


def exact(value: pl.Expr, kind: Any) -> pl.Expr:
    """A value of some type in the type that neither wraps nor rounds its numbers."""
    for step in _exact_types(kind):
        value = value.cast(step)
    return value


def _exact_types(kind: Any) -> list[Any]:
    """Types to cast to, one after another."""
    if isinstance(kind, pl.List):
        return [pl.List(step) for step in _exact_types(kind.inner)]
    if kind.is_integer():
        return [WHOLE]
    return [pl.String, pl.Float64] if kind == pl.Float32 else []  # as text, so that 0.1 stays 0.1


def kind_of(value: pl.Expr, items: pl.DataFrame) -> Any:
    """The type of an expression on the columns of a table."""
    (kind,) = items.lazy().select(value).collect_schema().dtypes()
    return kind


def literal(node: exp.Expression) -> str | int | float | bool | None:
    """The Python value of a literal."""
    match node:
        case exp.Null():
            return None
        case exp.Boolean() | exp.Literal(is_string=True):
            return node.this
        case exp.Neg(this=exp.Literal() as number):
            return -_number(number.name)
    return _number(node.name)


def _number(text: str) -> int | float:
    try:
        number: int | float = int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise Refused(f"{text!r} is not a number") from error
    return number if number < MAX_WHOLE else float(text)


def constant_of(value: str | int | float | bool | None) -> pl.Expr:
    """The expression of a Python value."""
    return pl.lit(value, WHOLE) if type(value) is int else pl.lit(value)


def is_moment(kind: Any) -> bool:
    """Whether a type is a date, or a date with a time."""
    return kind in (pl.Date, pl.Datetime)


def moments(texts: Sequence[str], kind: Any) -> pl.Series:
    """ISO 8601 texts as times in the zone of a type."""
    times = pl.Series([_moment(text) for text in texts], dtype=pl.Datetime("us"))
    zone = getattr(kind, "time_zone", None)
    return times.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError) as error:
        raise Refused(f"{text!r} is not a date such as '2025-01-31'") from error


def is_in(value: pl.Expr, literals: Sequence[Any], kind: Any) -> pl.Expr:
    """Whether a value of some type is among literals; none of them is null."""
    types = {float if type(literal) is int else type(literal) for literal in literals}
    if len(types) > 1:
        raise Refused("the values of IN are of different types")
    if types == {str} and is_moment(kind):
        times = moments(literals, kind)
        return value.cast(times.dtype).is_in(times.implode())
    if types != {float}:
        return value.is_in(literals)
    if not kind.is_integer():
        return value.cast(pl.Float64).is_in([float(number) for number in literals])
    whole = [int(number) for number in literals if float(number).is_integer()]
    return value.is_in(pl.Series(whole, dtype=WHOLE).implode())
