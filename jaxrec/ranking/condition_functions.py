"""The functions of SQL conditions as polars expressions; see `jaxrec.ranking.conditions`."""

import math
import re
from collections.abc import Callable
from typing import Any

import polars as pl

MAX_PATTERN = 200  # characters of a LIKE pattern or regular expression
MAX_REPEATS = 100  # product of the counts {n} of a regular expression
MAX_DECIMALS = 18
MAX_SEPARATOR = 20  # characters between the values of a joined list
WHOLE = pl.Int128  # holds signed and unsigned 64-bit integers, and the product of two
ZERO, ISO_DATE = pl.lit(0), pl.lit("%Y-%m-%d")


class Refused(Exception):
    """The reason why a condition cannot be used."""


def constant(value: pl.Expr, kind: Any, name: str) -> Any:
    """The Python value of an expression without columns."""
    try:
        result = pl.select(value).item()
    except pl.exceptions.ColumnNotFoundError as error:
        raise Refused(f"{name} must be a constant, not a column") from error
    if not isinstance(result, kind):
        raise Refused(f"{name} cannot be {result!r}")
    return result


def regexp_like(text: pl.Expr, pattern: pl.Expr, flags: pl.Expr | None = None) -> pl.Expr:
    """Whether a regular expression matches a part of a text, in linear time."""
    regex = constant(pattern, str, "a regular expression")
    letters = "" if flags is None else constant(flags, str, "the flags of a regular expression")
    if len(regex) > MAX_PATTERN:
        raise Refused(f"a regular expression is longer than {MAX_PATTERN} characters")
    counts = re.findall(r"[{,]\s*(\d{1,9})", regex)
    if math.prod(max(int(count), 1) for count in counts) > MAX_REPEATS:
        raise Refused(f"a regular expression repeats a part more than {MAX_REPEATS} times")
    if not re.fullmatch("[imsx]*", letters):
        raise Refused(f"the flags {letters!r} of a regular expression are not among i, m, s, x")
    return text.str.contains(f"(?{letters})" * bool(letters) + regex)


def like(text: pl.Expr, pattern: pl.Expr, flags: str = "s") -> pl.Expr:
    """Whether a whole text fits a pattern of % (any text) and _ (any character)."""
    like = constant(pattern, str, "the pattern of LIKE")
    if len(like) > MAX_PATTERN:
        raise Refused(f"a pattern of LIKE is longer than {MAX_PATTERN} characters")
    regex = pl.escape_regex(like.strip("%")).replace("%", ".*").replace("_", ".")
    start, end = "^" * (not like.startswith("%")), "$" * (not like.endswith("%"))
    return text.str.contains(f"(?{flags}){start}{regex}{end}")


def _round(value: pl.Expr, digits: pl.Expr = ZERO) -> pl.Expr:
    decimals = constant(digits, int, "the number of decimals")
    if not 0 <= decimals <= MAX_DECIMALS:
        raise Refused(f"round takes 0 to {MAX_DECIMALS} decimals, not {decimals}")
    return value.round(decimals)


def remainder(value: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """SQL gives the remainder the sign of the dividend."""
    return value.abs() % divisor.abs() * value.sign()


def quotient(value: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """The whole part of a quotient; null for a division by zero."""
    return ((value - remainder(value, divisor)) // divisor).cast(WHOLE, strict=False)


def _substr(text: pl.Expr, start: pl.Expr, length: pl.Expr | None = None) -> pl.Expr:
    """Characters from `start`, counted from 1; places before the text count for the length."""
    first = constant(start, int, "the start of substr")
    if length is None:
        return text.str.slice(max(first - 1, 0))
    end = first + constant(length, int, "the length of substr")
    return text.str.slice(max(first - 1, 0), max(end - max(first, 1), 0))


def _strpos(text: pl.Expr, part: pl.Expr) -> pl.Expr:
    """Place of a part in a text, counted from 1; 0 without one."""
    place = (text.str.find(part, literal=True) + 1).fill_null(0).cast(WHOLE)
    return pl.when(text.is_not_null() & part.is_not_null()).then(place)


def _joined(values: pl.Expr, between: pl.Expr) -> pl.Expr:
    separator = constant(between, str, "the separator of array_to_string")
    if len(separator) > MAX_SEPARATOR:
        raise Refused(f"the separator of array_to_string exceeds {MAX_SEPARATOR} characters")
    return values.cast(pl.List(pl.String)).list.join(separator)


DATE_PARTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "century": lambda x: x.dt.century(),
    "day": lambda x: x.dt.day(),
    "dow": lambda x: x.dt.weekday() % 7,
    "doy": lambda x: x.dt.ordinal_day(),
    "epoch": lambda x: x.dt.timestamp("us") / 1_000_000,
    "hour": lambda x: x.dt.hour(),
    "isodow": lambda x: x.dt.weekday(),
    "minute": lambda x: x.dt.minute(),
    "month": lambda x: x.dt.month(),
    "quarter": lambda x: x.dt.quarter(),
    "second": lambda x: x.dt.second(),
    "week": lambda x: x.dt.week(),
    "year": lambda x: x.dt.year(),
}


def date_part(part: pl.Expr, value: pl.Expr) -> pl.Expr:
    """A number of a date or time, such as its year."""
    name = constant(part, str, "the part of a date").lower()
    if name not in DATE_PARTS:
        raise Refused(f"{name!r} is not one of the parts of a date: {', '.join(DATE_PARTS)}")
    number = DATE_PARTS[name](value)
    return number if name == "epoch" else number.cast(WHOLE)


# Each function reads one row. Aggregates, windows and readers of files are left out, and `replace`,
# because its texts can be of any length.
FUNCTIONS: dict[str, Callable[..., pl.Expr]] = {
    "abs": lambda x: x.abs(),
    "array_contains": lambda values, value: values.list.contains(value),
    "array_length": lambda values: values.list.len().cast(WHOLE),
    "array_to_string": _joined,
    "ceil": lambda x: x.ceil(),
    "char_length": lambda text: text.str.len_chars().cast(WHOLE),
    "coalesce": lambda first, *others: pl.coalesce(first, *others),
    "concat": lambda first, *others: pl.concat_str(first, *others, ignore_nulls=True),
    "date": lambda text, form=ISO_DATE: text.str.to_date(constant(form, str, "a format")),
    "date_part": date_part,
    "ends_with": lambda text, end: text.str.ends_with(end),
    "exp": lambda x: x.exp(),
    "floor": lambda x: x.floor(),
    "greatest": lambda first, *others: pl.max_horizontal(first, *others),
    "if": lambda test, yes, no: pl.when(test).then(yes).otherwise(no),
    "ifnull": lambda value, other: pl.coalesce(value, other),
    "initcap": lambda text: text.str.to_titlecase(),
    "least": lambda first, *others: pl.min_horizontal(first, *others),
    "left": lambda text, count: text.str.head(count),
    "length": lambda text: text.str.len_chars().cast(WHOLE),
    "ln": lambda x: x.log(),
    "log": lambda x, base: x.log(constant(base, int | float, "the base of log")),
    "lower": lambda text: text.str.to_lowercase(),
    "ltrim": lambda text, chars=None: text.str.strip_chars_start(chars),
    "mod": remainder,
    "nullif": lambda value, other: pl.when(value == other).then(None).otherwise(value),
    "pow": lambda x, exponent: x.cast(pl.Float64).pow(exponent),
    "regexp_like": regexp_like,
    "right": lambda text, count: text.str.tail(count),
    "round": _round,
    "rtrim": lambda text, chars=None: text.str.strip_chars_end(chars),
    "sign": lambda x: x.sign(),
    "sqrt": lambda x: x.sqrt(),
    "starts_with": lambda text, start: text.str.starts_with(start),
    "strpos": _strpos,
    "substr": _substr,
    "trim": lambda text, chars=None: text.str.strip_chars(chars),
    "upper": lambda text: text.str.to_uppercase(),
}
