"""Both stores keep the items that a shop sends alike."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from helpers.servers import RedisServer
from helpers.stores import address_of, needs_redis

from jaxrec.serving.stores.items import FORMAT, ItemDocument, TextVector, decode_item, encode_item
from jaxrec.serving.stores.opening import open_store
from jaxrec.serving.stores.redis_items import ITEMS
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def store(request, tmp_path):
    server = RedisServer(tmp_path) if request.param == "redis" else None
    with closing(open_store(server.address if server else tmp_path / "store.db")) as store:
        yield store
    if server:
        server.kill()


def item(item_id, sequence=0, **columns):
    return ItemDocument(item_id, columns, sequence=sequence)


def ids(documents):
    return [document.item_id for document in documents]


def test_changes_are_read_in_their_order_and_each_item_once(store):
    items = store.items
    assert (items.sequence(), items.count(), items.since(0, 9)) == (0, 0, [])
    assert items.save([item("a", price=1), item("b"), item("c")]) == []
    first = items.sequence()
    assert ids(items.since(0, 9)) == ["a", "b", "c"]
    assert items.save([items.load(["a"])["a"]]) == []
    assert ids(items.since(0, 9)) == ["b", "c", "a"]
    assert ids(items.since(first, 9)) == ["a"]
    page = items.since(0, 2)
    assert ids(page) == ["b", "c"]
    assert ids(items.since(page[-1].sequence, 2)) == ["a"]
    assert items.sequence() == items.load(["a"])["a"].sequence
    assert items.count() == 3


def test_only_the_version_loaded_last_can_be_saved(store):
    items = store.items
    items.save([item("a", price=1)])
    before = items.load(["a", "unknown"])["a"]
    assert items.save([replace(before, columns={"price": 2}), item("b")]) == []
    assert items.save([item("a"), before, item("c")]) == ["a", "a"]
    stored = items.load(["a", "b", "c"])
    assert set(stored) == {"a", "b", "c"}
    assert stored["a"].columns == {"price": 2}


def test_a_second_process_sees_what_was_saved(store):
    document = ItemDocument(
        "ä/1",
        {"title": "Crème", "sizes": ["S", "M"], "stock": 0, "new": True, "left": None},
        whole=False,
        removed=True,
        text=TextVector("bert", np.arange(4, dtype=np.float32) / 3),
        changed=12.5,
    )
    store.items.save([document])
    with closing(open_store(address_of(store))) as other:
        [stored] = other.items.since(0, 9)
        np.testing.assert_array_equal(stored.text.values, document.text.values)
        assert replace(stored, text=None) == replace(document, text=None, sequence=stored.sequence)


def test_items_are_forgotten_unless_they_changed(store):
    items = store.items
    items.save([item("a"), item("b")])
    a, b = items.since(0, 9)
    items.save([replace(a, columns={"price": 3})])
    last = items.sequence()
    assert items.forget([a, b]) == 1
    assert items.forget([]) == 0
    assert ids(items.since(0, 9)) == ["a"]
    items.forget(items.since(0, 9))
    assert (items.sequence(), items.count()) == (last, 0)
    items.save([item("c")])
    assert items.sequence() > last  # workers that have read the last number see the next change


def test_a_damaged_document_counts_as_removed_and_can_be_sent_again(store):
    items = store.items
    items.save([item("a"), item("b")])
    if isinstance(store, SQLiteStore):
        store.connection.execute("UPDATE items SET document = x'00' WHERE item_id = 'a'")
    else:
        store.client.hset(ITEMS, "a", b"")
    a, b = items.since(0, 9)
    assert (a.removed, b.removed) == (True, False)
    assert items.save([replace(a, removed=False, columns={"price": 1})]) == []
    assert items.load(["a"])["a"].columns == {"price": 1}


@pytest.mark.parametrize("damage", [b"", b"\x63", bytes([FORMAT]) + b"no zlib"])
def test_bytes_of_another_kind_are_those_of_a_removed_item(damage):
    assert decode_item("a", 3, damage) == ItemDocument("a", removed=True, sequence=3)
    assert decode_item("a", 3, encode_item(item("a"))) == item("a", sequence=3)
