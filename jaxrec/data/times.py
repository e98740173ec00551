"""Timestamps in any usual form as milliseconds since 1970."""

import time

import polars as pl

from jaxrec.data.columns import is_whole, reject, reject_inexact, reject_rounded, shown, wrong_type
from jaxrec.errors import DataError

TIME_FIX = (
    "Use integer seconds or milliseconds since 1970, a datetime, or ISO 8601 text such as "
    "2024-01-31T23:59:59Z; a query can convert them: strptime(at, '%m/%d/%Y %H:%M') AS timestamp"
)
YEAR_1980 = 315_532_800_000  # milliseconds since 1970
DAY = 86_400_000
YEAR_5138 = 1e14  # milliseconds; integers of other units cannot become milliseconds beyond it
MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138, as milliseconds 1973
# how many units a millisecond has
PER_MILLISECOND = {"seconds": 1e-3, "milliseconds": 1, "microseconds": 1e3, "nanoseconds": 1e6}
# Spreadsheets count days from 1899-12-30.
SPREADSHEET, DAYS_TO_1970 = "days of a spreadsheet", 25_569
# .NET counts them from the year 1. As nanoseconds since 1970, today would be in 1990.
TICKS, TICKS_TO_1970, TICKS_PER_MILLISECOND = "ticks of .NET", 621_355_968 * 10**9, 10**4
TICKS_FROM = TICKS_TO_1970 + YEAR_1980 * TICKS_PER_MILLISECOND
# calendar dates written as a number, and how many digits they have
CALENDAR = {
    "dates like 20240131": 8,
    "times like 2024013123": 10,
    "times like 202401312359": 12,
    "times like 20240131235959": 14,
    "times like 20240131235959999": 17,
}
CALENDAR_FORMAT = "%Y%m%d%H%M%S%3f"
TEXT_FORMATS = (
    *("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%#z"),
    *("%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d"),
    *("%Y-%m-%dT%I:%M:%S %p", "%Y-%m-%dT%I:%M %p", "%Y%m%dT%H:%M:%S"),
    *("%Y%m%dT%H%M%S%.f", "%Y%m%dT%H%M%S%#z"),
    *("%Y%m%dT%H%M%S%.f%#z", "%Y%m%d_%H%M%S"),
    *("%d %b %Y %H:%M:%S", "%d %b %Y %H:%M:%S%#z", "%d/%b/%Y:%H:%M:%S%#z"),
    *("%d %b %Y", "%d-%b-%Y", "%d-%b-%Y %H:%M:%S", "%b %d, %Y", "%b %d, %Y, %I:%M:%S %p"),
    *("%b %d %H:%M:%S %Y", "%b %d, %Y %H:%M:%S", "%b %d %Y %H:%M:%S%#z", "%b %d %H:%M:%S%#z %Y"),
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y"),
)


def as_milliseconds(column: pl.Series, table: str) -> pl.Series:
    """Timestamps as int64 milliseconds since 1970.

    The column holds dates, datetimes (UTC unless they have a zone), text or numbers. Text is ISO
    8601 (also basic, with slashes, or with `UTC` behind it) or RFC 1123. The unit of numbers is
    the one in which most of them lie between 1980 and tomorrow: seconds, milliseconds,
    microseconds, nanoseconds, or digits such as 20240131 and 20240131235959; or the days of a
    spreadsheet or the ticks of .NET, if all of them do. If there is none, numbers are milliseconds
    or seconds, by their size.

    Raises:
        DataError: the column has another type; a value is null, no timestamp, in another unit, or
            larger than its type can hold exactly.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        times = column
    elif column.dtype == pl.String:
        times = _dates(column)
        if times.null_count():
            numbers = _numbers(column, table, "text")
            times = max(times, numbers, key=lambda reading: reading.count())
    else:
        times = _numbers(column, table, "integers, datetimes or ISO 8601 text")
    reject(times.is_null(), column, table, "are not timestamps", TIME_FIX)
    if times.dtype.is_temporal():
        return times.dt.epoch("ms")
    return _from_numbers(times, column, table)


def clear_times(column: pl.Series) -> tuple[str, pl.Series] | None:
    """The unit of timestamps and the times as datetimes, if all of them are clear.

    They are if all are dates, or all are integers of one unit, between 1980 and tomorrow. Then
    `as_milliseconds` reads them alike, whatever rows of the same unit stand before and after them.
    """
    unit = "dates"
    if column.dtype in (pl.Date, pl.Datetime):
        times = column.dt.epoch("ms")
    elif column.dtype.is_integer() or column.dtype == pl.String:
        numbers = column
        if column.dtype == pl.String:
            numbers = column.str.strip_chars().cast(pl.Int64, strict=False)
        if column.dtype == pl.String and not numbers.count():
            times = _dates(column).dt.epoch("ms")
        elif (of_all := _unit_of_all(numbers)) is None:
            return None
        else:
            unit = of_all
            scale = PER_MILLISECOND[unit]
            numbers = numbers.cast(pl.Int64)
            times = numbers * round(1 / scale) if scale < 1 else numbers // int(scale)
    else:
        return None
    if times.null_count() or not _is_usual(times, 1):
        return None
    return unit, times.cast(pl.Datetime("ms"))


def as_positions(column: pl.Series, table: str) -> pl.Series:
    """Whole numbers as int64. Raises a DataError for other values."""
    numbers = _numbers(column, table, "integers")
    fix = "Positions are integers: 0, 1, 2 ..."
    reject(~is_whole(numbers), column, table, "are not whole numbers", fix)
    return numbers.cast(pl.Int64)


def time_notes(times: pl.Series, column: pl.Series, table: str, strict: bool) -> list[str]:
    """A note if times (milliseconds) lie outside 1980 to tomorrow; when strict, a DataError."""
    outside = (times < YEAR_1980) | (times > int(_tomorrow()))  # with a float, Polars makes a copy
    if not outside.any():
        return []
    row = outside.arg_max() or 0
    is_number = unit_of(column) != "dates"
    if is_number and outside.all() and (times < YEAR_1980).all() and not strict:
        return [
            f"{table}: timestamps are before 1980 (row 1: {shown(column, 0, table)}); if they "
            "are positions, say `time: order`, otherwise write dates or seconds since 1970."
        ]
    problem = "lie outside 1980 to tomorrow"
    if strict:
        reject(outside, column, table, problem, "Correct or remove these rows")
    return [
        f"{table}, column {column.name!r}: {outside.sum():,} of {len(times):,} timestamps "
        f"{problem} (row {row + 1}: {shown(column, row, table)}). Correct or remove these rows."
    ]


def unit_of(column: pl.Series) -> str:
    """The unit of a column of timestamps, in words; dates and other text have the unit `dates`."""
    numbers = column
    if column.dtype == pl.String:
        numbers = column.cast(pl.Float64, strict=False)
        if 2 * numbers.count() <= column.count():
            return "dates"
    return _unit(numbers, _plausible(numbers)) if numbers.dtype.is_numeric() else "dates"


def _unit_of_all(numbers: pl.Series) -> str | None:
    """The unit in which all numbers lie between 1980 and tomorrow, if there is one."""
    units = (unit for unit, scale in PER_MILLISECOND.items() if _is_usual(numbers, scale))
    unit = next(units, None)
    return None if unit == "nanoseconds" and _are_ticks(numbers) else unit


def _is_usual(numbers: pl.Series, scale: float) -> bool:
    """Whether all numbers lie between 1980 and tomorrow."""
    least, most = numbers.min(), numbers.max()
    if least is None:
        return False
    return bool(YEAR_1980 * scale <= least and most <= _tomorrow() * scale)  # type: ignore[operator]


def _are_ticks(numbers: pl.Series) -> bool:
    last = TICKS_TO_1970 + int(_tomorrow()) * TICKS_PER_MILLISECOND
    return bool(numbers.is_between(TICKS_FROM, last).all())


def _tomorrow() -> float:
    return time.time() * 1000 + DAY


def _plausible(numbers: pl.Series) -> dict[str, pl.Series]:
    """For every unit: whether each number lies between 1980 and tomorrow in it."""
    sizes = numbers.cast(pl.Float64)
    last = _tomorrow()
    plausible = {
        unit: sizes.is_between(YEAR_1980 * scale, last * scale)
        for unit, scale in PER_MILLISECOND.items()
    }
    now = time.gmtime(last / 1000)
    for unit, digits in CALENDAR.items():
        scale = 10 ** (digits - 8)
        today = (now.tm_year * 10_000 + now.tm_mon * 100 + now.tm_mday) * scale
        dates = sizes // scale
        is_date = (dates // 100 % 100).is_between(1, 12) & (dates % 100).is_between(1, 31)
        plausible[unit] = is_date & sizes.is_between(19_800_101 * scale, today + scale)
    return plausible


def _unit(numbers: pl.Series, plausible: dict[str, pl.Series]) -> str:
    """The unit in which most numbers are plausible, or the one that their size suggests."""
    if _are_ticks(numbers):
        return TICKS
    counts = {unit: values.sum() for unit, values in plausible.items()}
    best = max(counts, key=lambda unit: counts[unit])
    if 2 * counts[best] > len(numbers):
        return best
    days = numbers.cast(pl.Float64) - DAYS_TO_1970
    if days.is_between(YEAR_1980 / DAY, _tomorrow() / DAY).all():
        return SPREADSHEET
    large = (numbers.cast(pl.Float64).abs() >= MILLISECONDS_FROM).any()
    return "milliseconds" if large else "seconds"


def _numbers(column: pl.Series, table: str, expected: str) -> pl.Series:
    """Integers as int64, other numbers and text as float64; null where there is no number."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        reject_rounded(column, table)
        integers = column.cast(pl.Int64, strict=False)
        if integers.null_count() == column.null_count():
            return integers
    elif not (column.dtype.is_numeric() or column.dtype == pl.Null):
        raise wrong_type(column, table, expected)
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _from_numbers(numbers: pl.Series, column: pl.Series, table: str) -> pl.Series:
    plausible = _plausible(numbers)
    unit = _unit(numbers, plausible)
    for other, values in plausible.items():
        if unit not in (other, TICKS):
            problem = f"look like {other} among {unit}"
            reject(values, column, table, problem, "Use one unit in the whole column")
    reject_inexact(column, table, "Write integers")
    if unit == SPREADSHEET:
        return ((numbers - DAYS_TO_1970) * DAY).round().cast(pl.Int64)
    if unit == TICKS:
        return (numbers - TICKS_TO_1970) // TICKS_PER_MILLISECOND
    if unit in CALENDAR:
        return _from_calendar(numbers, unit, column, table)
    # as an integer, -2^63 has no absolute value
    too_large = numbers.cast(pl.Float64).abs() >= YEAR_5138 * PER_MILLISECOND[unit]
    reject(too_large, column, table, "are beyond the year 5138", TIME_FIX)
    if unit == "seconds":
        return (numbers * 1000).round().cast(pl.Int64)
    per_millisecond = int(PER_MILLISECOND[unit])
    if numbers.dtype.is_integer():
        return numbers // per_millisecond
    return (numbers / per_millisecond).round().cast(pl.Int64)


def _from_calendar(numbers: pl.Series, unit: str, column: pl.Series, table: str) -> pl.Series:
    digits = numbers.cast(pl.Int64, strict=False).cast(pl.String)
    digits = digits.set(digits.str.len_bytes() != CALENDAR[unit], None).str.pad_end(17, "0")
    times = digits.str.to_datetime(CALENDAR_FORMAT, time_unit="ms", strict=False)
    reject(times.is_null(), column, table, f"are not {unit}", TIME_FIX)
    return times.dt.epoch("ms")


def _dates(column: pl.Series) -> pl.Series:
    """Text as UTC datetimes; null for text in no known format."""
    times = _parsed(column.str.strip_chars().str.replace(" ", "T"), TEXT_FORMATS[:2])
    if not times.null_count():
        return times
    text = (
        column.str.strip_chars()
        .str.replace(r"\s*(UTC|GMT|Z|z)$", "+00:00")
        .str.replace(r"([+-]\d{2}:?\d{2}) *\+00:00$", "$1")  # an offset and a zone
        .str.replace(r"\s+([+-]\d{2}(:?\d{2})?)$", "$1")
        .str.replace(r"^(\d{4})/(\d{1,2})/", "$1-$2-")
        .str.replace(r"^(\d{4}-?\d{1,2}-?\d{1,2})(?: +|t)", "${1}T")
        .str.replace(r"^(Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +", "")
        .str.replace(r" (?:UTC|GMT|([+-]\d{4})) (\d{4})$", "${1}+0000 $2")
        .str.replace(r"([+-]\d{4})\+0000 ", "$1 ")
        .str.replace(r"(:\d{2}),(\d+)", "$1.$2")  # fractions of a second
        .str.replace(r" GMT([+-]\d{4})( \(.*\))?$", "$1")  # as JavaScript writes zones
    )
    return times.zip_with(times.is_not_null(), _parsed(text, TEXT_FORMATS))


def _parsed(text: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    """Text in any of the formats as UTC datetimes, null for other text."""
    times = pl.repeat(None, len(text), dtype=pl.Datetime("ms", "UTC"), eager=True).alias(text.name)
    for form in formats:
        if times.null_count() == text.null_count():
            break
        parsed = text.str.to_datetime(form, time_unit="ms", time_zone="UTC", strict=False)
        times = times.zip_with(times.is_not_null(), parsed)
    return times


def same_unit(previous: str | None, unit: str, origin: str) -> str:
    """The unit of a batch of timestamps. Raises a DataError if the batch before had another."""
    if previous not in (None, unit):
        raise DataError(
            f"{origin}, column 'timestamp': {unit} after rows of {previous}. "
            "Use one unit in the whole column"
        )
    return unit
