"""Opens the store at an address."""

from pathlib import Path

from jaxrec.errors import ConfigError
from jaxrec.serving.stores.base import Store
from jaxrec.serving.stores.sqlite import SQLiteStore


def open_store(address: str | Path) -> Store:
    """Open the SQLite file or the Redis server at an address.

    Args:
        address: a path, or `redis://HOST:PORT/DB` (also `rediss://`, `unix://`).

    Raises:
        ConfigError: the package `redis` is not installed.
        StoreError: the store cannot be opened.
    """
    if not str(address).startswith(("redis://", "rediss://", "unix://")):
        return SQLiteStore(address)
    check_redis(address)
    from jaxrec.serving.stores.redis import RedisStore

    return RedisStore(str(address))


def check_redis(address: str | Path) -> None:
    """Raise a ConfigError if the package that an address needs is not installed."""
    try:
        import redis  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{address}: pip install 'jaxrec[redis]' first ({error})") from error
