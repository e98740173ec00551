"""Stores of both kinds."""

import shutil

import pytest

from jaxrec.serving.stores import sqlite

needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a Redis server (Debian: redis-server)"
)


def address_of(store):
    if isinstance(store, sqlite.SQLiteStore):
        return store.path
    return f"redis://127.0.0.1:{store.client.connection_pool.connection_kwargs['port']}/0"
