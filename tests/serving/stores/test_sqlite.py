import gc
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.errors import StoreError
from jaxrec.serving.stores import sqlite as store_module
from jaxrec.serving.stores.sqlite import (
    Impression,
    LiveEvent,
    SQLiteStore,
    UserDocument,
    decode,
    encode,
)

names = st.text(max_size=8)
events = st.builds(LiveEvent, st.integers(0, 2**33), names, names, st.none() | names)
states = st.none() | st.lists(st.floats(width=32), min_size=4, max_size=4).map(
    lambda numbers: np.array(numbers, np.float32)
)
documents = st.builds(
    UserDocument,
    names,
    st.lists(events, max_size=4).map(tuple),
    states,
    states,
    st.integers(-1, 2**33),
    st.frozensets(names, max_size=3),
    st.integers(0, 4),
    st.integers(0, 9),
    st.booleans(),
    st.dictionaries(names, st.frozensets(names, max_size=3), max_size=3),
    st.lists(events, max_size=4).map(tuple),
    names,
    st.integers(1, 9),
)


def same(left, right):
    for name in ("state", "base"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    others = [n for n in UserDocument.__dataclass_fields__ if n not in ("state", "base")]
    assert [getattr(left, n) for n in others] == [getattr(right, n) for n in others]


@settings(deadline=None)
@given(documents)
def test_documents_are_read_as_they_were_written(document):
    same(decode(document.user_id, document.version, encode(document)), document)


@settings(deadline=None)
@given(documents, st.data())
def test_a_damaged_document_is_read_or_told_and_nothing_else(document, data):
    whole = bytearray(encode(document))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + 1] = data.draw(st.binary(max_size=2)) or b" "
    try:
        decode("u", 1, bytes(whole))
    except StoreError as error:
        assert "cannot be read" in str(error)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_document_are_told(junk):
    with pytest.raises(StoreError, match="cannot be read"):
        decode("u", 1, junk)


def test_what_was_forgotten_does_not_come_back_with_who_read_it_before(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    assert store.save([UserDocument("u", truncated=1)]) == []
    read_before = store.load(["u"])["u"]
    store.forget("u")
    assert store.save([UserDocument("u", truncated=2)]) == []
    assert store.save([read_before]) == ["u"]
    assert store.load(["u"])["u"].truncated == 2


def test_of_what_was_shown_the_newest_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_IMPRESSIONS", 3)
    store = SQLiteStore(tmp_path / "store.db")
    for moment in range(5):
        store.show(
            [
                Impression("u", moment, "m", ("i",), (1.0,)),
                Impression(f"v{moment}", moment, "m", (), ()),
            ]
        )
    assert [s.time for s in store.shown("u")] == [2, 3, 4]
    store.expire(before=0, most=2)  # nobody of these ever did anything
    assert [bool(store.shown(user)) for user in ("u", "v3", "v4")] == [True, False, True]


def test_what_is_folded_stays_before_what_is_not():
    """Whatever the order of equal times; the newest time is that of what is folded."""
    a, b, c = (LiveEvent(time, item, "view") for time, item in ((1, "a"), (2, "b"), (2, "c")))
    base = np.zeros(4, np.float32)
    document = UserDocument("u", (a, c), base=base, base_time=5, folded=2)
    assert document.last_time == 5
    after = store_module.with_events(document, [b], lambda event: (event.time, event.item_id))
    assert (after.events, after.unfolded) == ((a, c, b), (b,))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / "nowhere" / "store.db"
    with pytest.raises(StoreError, match=r"nowhere/store\.db cannot be used as a store"):
        SQLiteStore(path)


def test_a_file_that_is_no_database_is_told(tmp_path):
    file = tmp_path / "store.db"
    file.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SQLiteStore(file)


def test_a_store_that_is_let_go_of_closes_its_file(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    connection = store.connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
