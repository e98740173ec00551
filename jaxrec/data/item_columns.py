"""Columns of items: labels and lists of them, and items whose columns stand in the events."""

import ast
import re
from collections.abc import Collection

import polars as pl

from jaxrec.data.columns import BLANKS, NULL_LABELS, NULL_WORDS, as_labels, shown

CATEGORY_SEPARATOR = " > "
LABEL_COLUMNS = ("brand", "merchant", "category", "categories", "genres")
PATH_SEPARATOR = r"\s*(->|→|»|[|>])\s*"
SEPARATORS = ("|", "->", "→", "»", ">", "::", "\\", "/", ";", ",", ".")
CLEAR_SEPARATORS = SEPARATORS[:7]  # the others may stand inside a label
OFTEN = 0.5  # share of the values that hold a possible separator
THOUSANDS = r"(\d)[\s'](\d{3})"
# A currency may stand before or behind an amount.
NO_SIGN = r"[^\d.,()%+\u2212\u2013-]{0,4}"
AMOUNT = rf"^{NO_SIGN}(-?[\d.,]*\d){NO_SIGN}$"
COMMA = r"^-?\d*,(\d{1,2}|\d{4,})$|\.\d{3},\d+$"  # before the fraction
POINT = r"\.(\d{1,2}|\d{4,})$"
NO_LABELS = (*NULL_LABELS, "(no genres listed)")
# Usual names of columns that jaxrec knows by another name
LIKELY_NAMES = {
    "event": r"event_?(type|name)|action(_?type)?|behaviou?r(_?type)?|interaction(_?type)?",
    "title": r"name|(product|item|article|prod)_?(name|title)",
    "description": r"desc|detail_?desc|(product|item)_?description|body",
    "brand": r"manufacturer|maker|vendor|brand_?name",
    "price": r"(unit|list|sale|item|product)_?price|cost|amount",
    "category": r"(main|product|item)_?category|category_?name|product_?type|department",
}
OF_EVENTS = ("event",)
OF_ITEMS = tuple(name for name in LIKELY_NAMES if name not in OF_EVENTS)
TEXTS = ("title", "description")
EVENT_ITEM_COLUMNS = (
    *("title", "description", *LABEL_COLUMNS, "price", "image_url"),
    *("category_code", "product_name"),
)


def with_labels(items: pl.DataFrame, table: str) -> tuple[pl.DataFrame, list[str]]:
    """Items whose label columns hold labels or lists of labels, and notes.

    Text that is a list (`['Hair', 'Care']`), genres and category paths with a clear separator
    become lists. Words for a missing value become null.

    Raises a DataError for nested or binary labels.
    """
    notes: list[str] = []
    for name in TEXTS:
        if name in items.columns:
            as_labels(items[name], table)
    for name in LABEL_COLUMNS:
        if name in items.columns and items.schema[name] != pl.Null:
            column, column_notes = _labels(as_labels(items[name], table), table)
            items, notes = items.with_columns(column), notes + column_notes
    return items, notes


def with_prices(items: pl.DataFrame, table: str) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Items whose prices are numbers where text has them (`$9.99`, `9,99`), warnings and notes."""
    dtype = items.schema.get("price", pl.Null())
    if dtype == pl.Null:
        return items, [], []
    column = items["price"]
    if dtype.is_numeric():
        return items, _negative(column, table), []
    if dtype != pl.String:
        return items, [_no_numbers(column, column.is_not_null(), table)], []
    text = column.set(column.str.strip_chars().is_in(NULL_WORDS), None).str.strip_chars()
    if not text.count():
        return items, [], []
    for _ in range(2):  # 1 234 567
        text = text.str.replace_all(THOUSANDS, "$1$2")
    amount = text.str.extract(AMOUNT)
    has_comma, has_point = (amount.str.contains(form).any() for form in (COMMA, POINT))
    if has_comma and has_point:
        amount = amount.set(amount.is_not_null(), None)  # it is open which of them it is
    elif has_comma:
        amount = amount.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    numbers = amount.str.replace_all(",", "", literal=True).cast(pl.Float64, strict=False)
    lost = text.is_not_null() & numbers.is_null() & (text != "")
    if lost.any() or not numbers.count():
        return items, [_no_numbers(column, lost, table)], []
    row = numbers.is_not_null().arg_max() or 0
    read = f"{shown(column, row, table)} as {shown(numbers, row, table)}"
    note = f"{table}: prices were read as numbers, such as {read}."
    return items.with_columns(price=numbers), _negative(numbers, table), [note]


def _negative(prices: pl.Series, table: str) -> list[str]:
    """A note on prices below 0, if there are any."""
    negative = (prices < 0).fill_null(False)
    if not negative.any():
        return []
    row = negative.arg_max() or 0
    return [
        f"{table}, column 'price': {negative.sum():,} of {len(prices):,} prices are below 0 (row "
        f"{row + 1}: {shown(prices, row, table)}), and conditions take them as they are. Correct "
        "them, or leave them empty."
    ]


def _no_numbers(prices: pl.Series, lost: pl.Series, table: str) -> str:
    row = lost.arg_max() or 0
    return (
        f"{table}, column 'price': {lost.sum():,} of {len(prices):,} prices are no numbers (row "
        f"{row + 1}: {shown(prices, row, table)}), so conditions cannot compare them."
    )


def items_of_events(events: pl.DataFrame, table: str) -> tuple[pl.DataFrame, list[str]]:
    """The items of events, with the last value of the item columns that stand in the events."""
    names = [name for name in EVENT_ITEM_COLUMNS if name in events.columns]
    items = events["item_id"].unique(maintain_order=True).to_frame()
    if names:
        items = events.group_by("item_id", maintain_order=True).agg(
            pl.col(name).sort_by("timestamp").drop_nulls().last() for name in names
        )
    items = items.with_columns(pl.col("item_id").cast(pl.String))
    notes = [f"No items table: the {len(items):,} items are those of the events."]
    if names:
        notes.append(
            f"{table}: the columns {', '.join(names)} describe items; each item has its last value."
        )
    return items, notes


def unused_item_columns(events: pl.DataFrame, items: pl.DataFrame, table: str) -> list[str]:
    """A note that names the item columns of events that the items table lacks."""
    unused = [n for n in EVENT_ITEM_COLUMNS if n in events.columns and n not in items.columns]
    if not unused:
        return []
    return [f"{table}: columns not used: {', '.join(unused)}. Add them to the items table."]


def likely_columns(frame: pl.DataFrame, names: Collection[str], table: str) -> list[str]:
    """A note on columns that may be some of jaxrec's under other names, if there are any."""
    likely = likely_names(frame, names)
    if not likely:
        return []
    pairs = ", ".join(f"{name}: {other}" for name, other in likely.items())
    return [
        f"{table}: no {', '.join(likely)}, but {', '.join(likely.values())}. If that is the same, "
        f"say so in dataset.yaml: `columns: {{{pairs}}}`."
    ]


def likely_names(frame: pl.DataFrame, names: Collection[str]) -> dict[str, str]:
    """Columns that may be some of jaxrec's under other names, by jaxrec's name."""
    return {
        name: other
        for name in names
        if name not in frame.columns
        for other in frame.columns
        if re.fullmatch(LIKELY_NAMES[name], other.lower())
    }


def _labels(column: pl.Series, table: str) -> tuple[pl.Series, list[str]]:
    """One column of labels without words for a missing value, and notes."""
    notes: list[str] = []
    column, count = _bare(column)
    if column.dtype == pl.String and (lists := _list_literals(column)) is not None:
        column, in_lists = _bare(lists)
        count += in_lists
    if count:
        notes.append(f"{table}, column {column.name!r}: words for no value ignored: {count:,}.")
    if column.dtype == pl.String:
        column, separator_notes = _split(column, table)
        notes += separator_notes
    return column, notes


def _bare(column: pl.Series) -> tuple[pl.Series, int]:
    """Labels without `BLANKS` at their ends and without words for no value; how many words."""
    if column.dtype == pl.String:
        column = column.str.strip_chars(BLANKS)
        is_word = column.is_in(NO_LABELS)
        return column.set(is_word, None), int(is_word.sum())
    column = column.list.eval(pl.element().str.strip_chars(BLANKS))
    count = int(column.explode().is_in(NO_LABELS).sum())
    if count:
        column = column.list.eval(pl.element().filter(~pl.element().is_in(NO_LABELS)))
    return column, count


def _list_literals(column: pl.Series) -> pl.Series | None:
    """Text such as `['Hair', 'Care']` or `["Hair"]` as lists, if all values are such text."""
    values = column.drop_nulls()
    text = values.str.strip_chars()
    if not len(values) or not (text.str.starts_with("[") & text.str.ends_with("]")).all():
        return None
    try:
        lists = {value: _labels_of(value) for value in values.unique()}
    except (ValueError, SyntaxError):
        return None
    return pl.Series(
        column.name,
        [None if value is None else lists[value] for value in column],
        dtype=pl.List(pl.String),
    )


def _labels_of(text: str) -> list[str]:
    value = ast.literal_eval(text.strip())
    if isinstance(value, list):  # TMDB writes [{'id': 18, 'name': 'Drama'}]
        value = [label.get("name") if isinstance(label, dict) else label for label in value]
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError(text)
    return value


def _split(column: pl.Series, table: str) -> tuple[pl.Series, list[str]]:
    """Genres as lists, category paths with the usual separator, or a note on a likely separator."""
    values = column.drop_nulls()
    counts = {mark: values.str.contains(mark, literal=True).sum() for mark in SEPARATORS}
    if column.name == "genres" and counts["|"]:
        note = f"{table}: {counts['|']:,} of {len(values):,} genres were split at '|'."
        return column.str.split("|"), [note]
    if column.name == "categories":
        column = column.str.replace_all(PATH_SEPARATOR, CATEGORY_SEPARATOR)
        counts |= dict.fromkeys(SEPARATORS[:5], 0)
    likely = [m for m, count in counts.items() if count >= _least(m, len(values))]
    if not likely or column.name in ("brand", "merchant"):
        return column, []
    name, mark = column.name, likely[0]
    return column, [
        f"{table}, column {name!r}: {counts[mark]:,} of {len(values):,} values hold {mark!r}. If "
        f"it separates labels, say so in dataset.yaml: items: {{separators: {{{name}: {mark!r}}}}}."
    ]


def _least(mark: str, num_values: int) -> float:
    """How many values must hold a mark that likely separates labels."""
    return 1 if mark in CLEAR_SEPARATORS else max(1, OFTEN * num_values)
