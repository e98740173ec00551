"""Impressions that are written beside the requests."""

import threading

import pytest

from jaxrec.errors import StoreError
from jaxrec.serving.live import impression_writer
from jaxrec.serving.live.impression_writer import ImpressionWriter
from jaxrec.serving.stores.base import Impression
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture
def store():
    store = SQLiteStore(":memory:")
    yield store
    store.close()


def impression(time):
    return Impression("u", time, "m", ("i1",), (1.0,))


def test_what_is_waiting_is_written_before_it_closes(store):
    writer = ImpressionWriter(store)
    for time in range(200):
        writer.add([impression(time)])
    writer.close()
    assert [i.time for i in store.impressions("u")] == list(range(200))


def test_lists_do_not_wait_for_a_stuck_store(store, monkeypatch, caplog):
    monkeypatch.setattr(impression_writer, "MAX_WAITING", 2)
    add, stuck = store.add_impressions, threading.Event()

    def add_when_free(impressions):
        stuck.wait(60)
        add(impressions)

    monkeypatch.setattr(store, "add_impressions", add_when_free)
    writer = ImpressionWriter(store)
    for time in range(20):
        writer.add([impression(time)])  # never waits
    assert "too slow" in caplog.text
    stuck.set()
    writer.close()
    assert 2 <= len(store.impressions("u")) < 20


def test_a_store_that_fails_does_not_end_the_thread(store, monkeypatch, caplog):
    add = store.add_impressions

    def fail(impressions):
        monkeypatch.setattr(store, "add_impressions", add)
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "add_impressions", fail)
    writer = ImpressionWriter(store)
    writer.add([impression(0)])
    for _ in range(600):
        if caplog.records:
            break
        threading.Event().wait(0.1)
    assert "the disk is full" in caplog.text
    writer.add([impression(1)])
    writer.close()
    assert [i.time for i in store.impressions("u")] == [1]
