"""The catalogue as a shop shows it: popular items, a search for titles and ids, details."""

from copy import copy
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from jaxrec.data.graph import ITEM
from jaxrec.data.tables import CATEGORY_SEPARATOR
from jaxrec.inference.catalog_index import CatalogIndex

DETAILS = ("price", "brand", "category", "image_url")
MAX_WORDS = 8  # of a search; each is one pass over the remaining titles


class ShopItems:
    """The items of a catalogue by number, from 1.

    Details are Python lists, because picking ten entries of a list takes a microsecond, and of a
    Polars series fifty.

    Args:
        index: the catalogue, with the counts of training.
    """

    def __init__(self, index: CatalogIndex):
        items = index.catalog.items
        names = index.names(ITEM, np.arange(len(items)))
        columns = {name: detail(items, name) for name in DETAILS}
        self.details = {name: shared(c) for name, c in columns.items() if c is not None}
        self.names = {name.replace("item_id", "id"): names[name] for name in names.columns}
        self.has_popular = bool(index.counts[1 : len(items)].any())
        self.most_popular = np.argsort(-index.counts[: len(items)], kind="stable")
        self.listed = names["item_id"].is_not_null().to_numpy()
        self.all_texts = text_of(names)
        self._select()

    def _select(self) -> None:
        """Select the items that may be shown."""
        self.by_popularity = pl.Series(self.most_popular[self.listed[self.most_popular]])
        self.texts = self.all_texts.gather(self.by_popularity)

    def with_items(
        self,
        rows: Int[np.ndarray, " n"],
        items: pl.DataFrame,
        names: pl.DataFrame,
        listed: Bool[np.ndarray, " n"],
    ) -> "ShopItems":
        """The same items after some have changed.

        Args:
            items, names: of these rows; the names as from `item_names`.
            listed: which of them may be shown.
        """
        after, size = copy(self), len(self.listed)
        after.details = {name: list(values) for name, values in self.details.items()}
        for name in DETAILS:
            column = detail(items, name)
            if column is not None:
                values = after.details.setdefault(name, [None] * size)
                for row, value in zip(rows.tolist(), column.to_list(), strict=True):
                    values[row] = value
        order = np.arange(size)
        order[rows] = size + np.arange(len(rows))
        untitled = pl.repeat(None, size, dtype=pl.String, eager=True)
        after.names = {
            name.replace("item_id", "id"): pl.concat(
                [self.names.get(name.replace("item_id", "id"), untitled), names[name]]
            ).gather(order)
            for name in names.columns
        }
        after.all_texts = pl.concat([self.all_texts, text_of(names)]).gather(order)
        after.listed = self.listed.copy()
        after.listed[rows] = listed
        after._select()
        return after

    def popular(self, k: int) -> list[int]:
        """The k items chosen most often in training, most popular first.

        Without training events (`has_popular` is False), the first ones of the catalogue.
        """
        return self.by_popularity.head(k).to_list()

    def search(self, words: str, k: int) -> list[int]:
        """Up to k items whose title and id hold all words, in upper or lower case.

        Items in which all words are beginnings of words come first, then the more popular ones.
        """
        matches = pl.DataFrame({"item": self.by_popularity, "text": self.texts})
        text, starts = pl.col("text"), pl.lit(True)
        for word in search_text(pl.Series([words]))[0].split()[:MAX_WORDS]:
            matches = matches.filter(text.str.contains(word, literal=True))
            starts &= text.str.contains(rf"(?:^|[^\pL\pN]){pl.escape_regex(word)}")
        first = matches.filter(starts).head(k)
        if len(first) < k:
            first = pl.concat([first, matches.filter(~starts).head(k - len(first))])
        return first["item"].to_list()

    def rows(self, items: list[int]) -> list[dict[str, Any]]:
        """`id`, `title` (where items have one) and the details of items."""
        names = pl.DataFrame([column.gather(items) for column in self.names.values()])
        named = (dict(zip(self.names, row, strict=True)) for row in names.iter_rows())
        return [row | more for row, more in zip(named, self.details_of(items), strict=True)]

    def details_of(self, items: list[int]) -> list[dict[str, Any]]:
        """The details of items, as far as the catalogue has columns for them."""
        return [{name: column[i] for name, column in self.details.items()} for i in items]


def text_of(names: pl.DataFrame) -> pl.Series:
    """What a search looks through, the title and the id; `names` as from `item_names`."""
    title_and_id = pl.concat_str(names.columns[::-1], separator=" ", ignore_nulls=True)
    return search_text(names.select(title_and_id).to_series())


def shared(column: pl.Series) -> list[Any]:
    """The values as a list in which equal ones are one object: a million items have few brands."""
    objects: dict[Any, Any] = {}
    return [objects.setdefault(value, value) for value in column]


def detail(items: pl.DataFrame, name: str) -> pl.Series | None:
    """A detail of all items; None if they have no column for it, or one of another type.

    The category is the last one of a path in `categories`, or `category`, or the `genres`.
    """
    if name == "price":
        return numbers(items[name]) if name in items.columns else None
    if name == "category":
        columns = [c for c in ("categories", name, "genres") if c in items.columns]
        return category(items[columns[0]]) if columns else None
    return labels(items[name]) if name in items.columns else None


def numbers(column: pl.Series) -> pl.Series | None:
    """Numbers, or text that holds numbers, as finite float64; None for other types."""
    if not (column.dtype.is_numeric() or column.dtype == pl.String):
        return None
    values = column.cast(pl.Float64, strict=False)
    return values.set(~values.is_finite(), None)


def category(column: pl.Series) -> pl.Series | None:
    """The last category of each path; all genres of each item."""
    if column.name == "categories" and isinstance(column.dtype, pl.List):
        return labels(column.list.last())
    texts = labels(column)
    return None if texts is None else texts.str.split(CATEGORY_SEPARATOR).list.last()


def labels(column: pl.Series) -> pl.Series | None:
    """Values as text, lists of them joined by commas; None for vectors and other types."""
    if isinstance(column.dtype, pl.List) and column.dtype.inner == pl.String:
        return column.list.join(", ")
    is_label = column.dtype == pl.String or column.dtype.is_integer()
    return column.cast(pl.String) if is_label else None


def search_text(texts: pl.Series) -> pl.Series:
    """Text without accents, in lower case, so that `creme` finds `Crème`."""
    return texts.str.normalize("NFKD").str.replace_all(r"\p{M}", "").str.to_lowercase()
