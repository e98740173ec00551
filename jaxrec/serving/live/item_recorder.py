"""Records what a shop sends about its items in the store."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from jaxrec.data.graph import COLUMN_RELATIONS
from jaxrec.errors import InputError, LimitError, StoreError
from jaxrec.serving.live.live_catalogue import LiveCatalogue
from jaxrec.serving.stores.items import ItemDocument, ItemStore

ItemOutcome = Literal["created", "updated", "unchanged", "unknown"]
Columns = Mapping[str, Any]
MAX_CONFLICTS = 20  # attempts to save items that other processes change at the same time
PAGE = 4096  # documents read at a time


class ItemChange(NamedTuple):
    """What a request does to items.

    Attributes:
        operation: `put` adds or replaces items; columns that are not named become null. `patch`
            changes columns of known items.
        items: item id -> its columns.
    """

    operation: Literal["put", "patch", "remove"]
    items: Mapping[str, Columns]


class ItemRecorder:
    """Reads and writes the documents of items.

    Args:
        catalogue: the items in effect, which know the types of the columns.
        limit: the most documents in the store.
    """

    def __init__(self, catalogue: LiveCatalogue, store: ItemStore, limit: int):
        self.catalogue, self.store, self.limit = catalogue, store, limit

    def record(self, changes: Sequence[ItemChange]) -> list[list[ItemOutcome] | Exception]:
        """Make changes in their order, those of different items at once; durable on return.

        Returns:
            For every change the outcomes of its items, or why it was not made, which harms no other
            change: a DataError if a value does not fit its column, a LimitError if the store holds
            too many items, or a StoreError if the store fails.
        """
        results: dict[int, list[ItemOutcome] | Exception] = {}
        waiting = list(enumerate(changes))
        while waiting:
            now, later = list[tuple[int, ItemChange]](), list[tuple[int, ItemChange]]()
            item_ids = set[str]()
            for entry in waiting:
                (now if item_ids.isdisjoint(entry[1].items) else later).append(entry)
                item_ids.update(entry[1].items)
            numbers, group = zip(*now, strict=True)
            results |= zip(numbers, self._attempt(group), strict=True)
            waiting = later
        return [results[number] for number in range(len(changes))]

    def _attempt(self, changes: Sequence[ItemChange]) -> Sequence[list[ItemOutcome] | Exception]:
        try:
            return self._outcomes(changes)
        except StoreError as error:
            return [error] * len(changes)
        except InputError as error:
            if len(changes) == 1:
                return [error]
        return [result for change in changes for result in self._attempt([change])]

    def get(self, item_id: str) -> dict[str, Any] | None:
        """The columns of an item without those that are null; None for unknown and removed ones."""
        document = self._known(item_id, self.store.load([item_id]).get(item_id))
        if document is None:
            return None
        [row] = self.catalogue.known_rows([document]).to_dicts()
        return _known({**row, **document.columns})

    def forget(self, before: float) -> int:
        """Delete what is kept of items that were removed before a time (s) and the run lacks."""
        last, forgotten = 0, 0
        while documents := self.store.since(last, PAGE):
            last = documents[-1].sequence
            old = [d for d in documents if d.removed and d.changed < before]
            forgotten += self.store.forget(
                d for d in old if not self.catalogue.is_trained(d.item_id)
            )
        return forgotten

    def notes(self, items: Mapping[str, Columns]) -> list[str]:
        """What of the sent columns does not reach the vectors of the items."""
        graph = self.catalogue.encoder.graph
        types = {node_type.name for node_type in graph.types}
        sent = {name: value for columns in items.values() for name, value in columns.items()}
        unread = [
            f"{column}: the run does not read these vectors; train again with +{column} in "
            "model.experts to use them"
            for column, value in sent.items()
            if _is_vector(value) and column not in self.catalogue.features.vectors
        ]
        return unread + [
            f"{column}: the run has no relation {relation}, so it makes no edges; train again to "
            "use it"
            for column, (relation, node_type) in COLUMN_RELATIONS.items()
            if column in sent and not (relation in graph.relations and node_type in types)
        ]

    def _known(self, item_id: str, stored: ItemDocument | None) -> ItemDocument | None:
        """The document of an item that is not removed; an empty one for an item of the run."""
        if stored is not None:
            return None if stored.removed else stored
        return ItemDocument(item_id, whole=False) if self.catalogue.is_trained(item_id) else None

    def _outcomes(self, changes: Sequence[ItemChange]) -> list[list[ItemOutcome]]:
        """Make changes of different items together."""
        change_of = {item_id: change for change in changes for item_id in change.items}
        outcomes: dict[str, ItemOutcome] = {}
        waiting = list(change_of)
        for _ in range(MAX_CONFLICTS):
            stored = self.store.load(waiting)
            after = {i: self._after(change_of[i], i, stored.get(i)) for i in waiting}
            outcomes |= {i: self._outcome(stored.get(i), d) for i, d in after.items()}
            changed = [
                (stored.get(i, ItemDocument(i, whole=False)), replace(d, changed=time.time()))
                for i, d in after.items()
                if d is not None and outcomes[i] in ("created", "updated")
            ]
            if changed:
                self._check_limit(sum(document.sequence == 0 for _, document in changed))
                waiting = self.store.save(self.catalogue.checked(changed))
            if not (changed and waiting):
                return [[outcomes[item_id] for item_id in change.items] for change in changes]
        raise StoreError(f"other processes keep writing item {waiting[0]!r}; send this again")

    def _after(
        self, change: ItemChange, item_id: str, stored: ItemDocument | None
    ) -> ItemDocument | None:
        """The document of an item after a change; None: the item is unknown."""
        sent = change.items[item_id]
        if change.operation == "put":
            return replace(
                stored or ItemDocument(item_id), columns=_known(sent), whole=True, removed=False
            )
        if change.operation == "remove" and stored is not None and stored.removed:
            return stored
        before = self._known(item_id, stored)
        if before is None:
            return None
        if change.operation == "remove":
            return replace(before, removed=True)
        columns = {**before.columns, **sent}
        return replace(before, columns=_known(columns) if before.whole else columns)

    def _outcome(self, before: ItemDocument | None, after: ItemDocument | None) -> ItemOutcome:
        if after is None:
            return "unknown"
        if before == after:
            return "unchanged"
        known = self._known(after.item_id, before)
        return "created" if known is None else "updated"

    def _check_limit(self, new: int) -> None:
        if new and self.store.count() + new > self.limit:
            raise LimitError(
                f"the store would hold more than {self.limit:,} changed items; raise --keep-items"
            )


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and isinstance(value[0], int | float)


def _known(columns: Columns) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}
