"""Opens the store at an address."""

from pathlib import Path

from jaxrec.errors import ConfigError
from jaxrec.serving.stores.base import Store
from jaxrec.serving.stores.sqlite import SQLiteStore

SCHEMES = ("redis", "rediss", "unix")
REDIS_FORM = "redis://HOST:PORT/DATABASE (also rediss:// and unix://)"


def open_store(address: str | Path) -> Store:
    """Open the SQLite file or the Redis server at an address.

    Args:
        address: a path, or `redis://HOST:PORT/DATABASE` (also `rediss://`, `unix://`).

    Raises:
        ConfigError: the address cannot be read, or the package `redis` is not installed.
        StoreError: the store cannot be opened.
    """
    scheme, separator, _ = str(address).partition("://")
    if not separator:
        return SQLiteStore(address)
    if scheme not in SCHEMES:
        raise ConfigError(f"{address}: write a path or {REDIS_FORM}")
    check_redis(address)
    from jaxrec.serving.stores.redis import RedisStore

    return RedisStore(str(address))


def check_redis(address: str | Path) -> None:
    """Raise a ConfigError if an address cannot be read, or the package it needs is missing."""
    try:
        from redis.connection import parse_url

        parse_url(str(address))
    except ImportError as error:
        raise ConfigError(f"{address}: pip install -e '.[redis]' first ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{address}: write {REDIS_FORM} ({error})") from error
