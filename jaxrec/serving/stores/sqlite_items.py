"""Items of a store in SQLite."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxrec.serving.stores.items import ItemDocument, decode_item, encode_item

if TYPE_CHECKING:
    from jaxrec.serving.stores.sqlite import SQLiteStore  # which has these items

# The number of a change is the key, so that the changes after one are read in their order.
SCHEMA = """
CREATE TABLE IF NOT EXISTS items
    (sequence INTEGER PRIMARY KEY, item_id TEXT UNIQUE, document BLOB);
CREATE TABLE IF NOT EXISTS item_sequence
    (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER);
INSERT OR IGNORE INTO item_sequence VALUES (1, 0);
"""
STORED = "SELECT item_id, sequence, document FROM items"


class SQLiteItems:
    """Documents of items; see `jaxrec.serving.stores.items.ItemStore`."""

    def __init__(self, store: "SQLiteStore"):
        self.store = store

    def sequence(self) -> int:
        """See `ItemStore.sequence`."""
        return self.store.rows("SELECT value FROM item_sequence")[0][0]

    def load(self, item_ids: Sequence[str]) -> dict[str, ItemDocument]:
        """See `ItemStore.load`."""
        ids = json.dumps(list(item_ids))
        rows = self.store.rows(
            f"{STORED} WHERE item_id IN (SELECT value FROM json_each(?))",
            ids,
        )
        return {row[0]: decode_item(*row) for row in rows}

    def since(self, sequence: int, limit: int) -> list[ItemDocument]:
        """See `ItemStore.since`."""
        rows = self.store.rows(
            f"{STORED} WHERE sequence > ? ORDER BY sequence LIMIT ?", sequence, limit
        )
        return [decode_item(*row) for row in rows]

    def save(self, documents: Iterable[ItemDocument]) -> list[str]:
        """See `ItemStore.save`."""
        encoded = [(document, encode_item(document)) for document in documents]
        refused = list[str]()
        with self.store.transaction() as connection:
            [(last,)] = connection.execute("SELECT value FROM item_sequence").fetchall()
            for document, content in encoded:
                query = "SELECT sequence FROM items WHERE item_id = ?"
                stored = connection.execute(query, (document.item_id,)).fetchone() or (0,)
                if stored[0] != document.sequence:
                    refused.append(document.item_id)
                    continue
                last += 1
                row = (last, document.item_id, content)
                connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", row)
            connection.execute("UPDATE item_sequence SET value = ?", (last,))
        return refused

    def forget(self, documents: Iterable[ItemDocument]) -> int:
        """See `ItemStore.forget`."""
        rows = [(document.sequence,) for document in documents]
        with self.store.transaction() as connection:
            statement = "DELETE FROM items WHERE sequence = ?"
            return connection.executemany(statement, rows).rowcount if rows else 0

    def ids(self) -> list[str]:
        """See `ItemStore.ids`."""
        return [item_id for (item_id,) in self.store.rows("SELECT item_id FROM items")]

    def count(self) -> int:
        """See `ItemStore.count`."""
        return self.store.rows("SELECT count(*) FROM items")[0][0]
