"""Documents that stay in memory beside a store."""

from dataclasses import replace

import numpy as np
import pytest

from jaxrec.serving.stores import documents
from jaxrec.serving.stores.base import LiveEvent, UserDocument
from jaxrec.serving.stores.cache import DocumentCache, size_of
from jaxrec.serving.stores.retention import Retention
from jaxrec.serving.stores.sqlite import SQLiteStore

EVENT = LiveEvent(1_700_000_000, "i1", "view", None)
DOCUMENT = UserDocument("u", (EVENT,), np.ones(4, np.float32), positives={"view": ("i1",)})


@pytest.fixture
def decoded(monkeypatch):
    """The users whose documents were decoded."""
    users, decode = [], documents.decode

    def recorded(user_id, *arguments):
        users.append(user_id)
        return decode(user_id, *arguments)

    monkeypatch.setattr(documents, "decode", recorded)
    return users


def test_an_unchanged_document_is_not_decoded_again(tmp_path, decoded):
    store, other = (SQLiteStore(tmp_path / "store.db") for _ in range(2))
    names = ["u", 'a "b" \\c', "é/ü?💥", "new"]
    assert store.save([replace(DOCUMENT, user_id=name) for name in names[:3]]) == []
    first = store.load(names).documents
    assert list(first) == names[:3]
    assert not decoded
    read = other.load(names).documents
    assert decoded == names[:3]
    for name, document in read.items():
        assert replace(document, state=None) == replace(first[name], state=None)
        np.testing.assert_array_equal(document.state, first[name].state)
    changed = replace(read["u"], truncated=3)
    assert other.save([changed]) == []
    assert store.load(names).documents["u"].truncated == 3  # another process may have written
    assert decoded[3:] == ["u"]
    assert store.save([first["u"]]) == ["u"]


def test_a_deleted_user_leaves_memory(tmp_path):
    store, other = (SQLiteStore(tmp_path / "store.db") for _ in range(2))
    for deleting in (store, other):
        store.save([DOCUMENT])
        assert store.load(["u"]).documents["u"].events
        deleting.delete("u")
        assert store.load(["u"]).documents == {}
    store.expire(Retention(before=0, max_users=9))
    assert not store.cache.documents


def test_the_memory_is_bounded_and_a_written_state_is_a_copy(tmp_path):
    cache = DocumentCache(max_bytes=3 * size_of(DOCUMENT))
    cache.put(replace(DOCUMENT, user_id=name) for name in "abc")
    cache.get("a")
    cache.put([replace(DOCUMENT, user_id="d")])
    assert set(cache.get("abcd")) == {"a", "c", "d"}
    assert cache.bytes == 3 * size_of(DOCUMENT)
    cache.put([replace(DOCUMENT, user_id="a", version=-1)])  # was read before the newer one
    assert cache.get("a")["a"].version == 0
    batch = np.ones((512, 4), np.float32)
    store = SQLiteStore(tmp_path / "store.db")
    store.save([replace(DOCUMENT, state=batch[0])])
    assert store.load(["u"]).documents["u"].state.base is None
