"""User ids as keyed hashes: only the holder of the key can make them, and none reveals its id."""

import base64
import hashlib
import hmac
import secrets
import stat
from pathlib import Path
from typing import overload

import polars as pl

from jaxrec.data.codes import coded, new_codes, per_row, texts
from jaxrec.data.columns import as_text
from jaxrec.errors import ConfigError, DataError

BYTES = 20  # of a hash that are kept, as 32 characters
MIN_KEY = 32  # bytes


@overload
def pseudonym(key: bytes | str | Path, user_id: str | int) -> str: ...
@overload
def pseudonym(key: bytes | str | Path, user_id: pl.Series) -> pl.Series: ...
def pseudonym(key: bytes | str | Path, user_id: str | int | pl.Series) -> str | pl.Series:
    """The pseudonym of a user: HMAC-SHA256 of the id, cut to 160 bits, in 32 characters (base32).

    The same key and id always give the same pseudonym, so tables of pseudonyms can be joined with
    the shop's own. Two of n users share one with a probability of about n^2 / 2^161: 3e-31 for a
    billion users.

    >>> import jaxrec
    >>> jaxrec.pseudonym(b"a key of 32 bytes or more .......", "u1")
    '3padulxphwpc5kanvpjg72lqovlmpyi3'

    Args:
        key: the key, or the path of its file.
        user_id: an id as text or integer, or a column of them; null stays null.

    Raises:
        ConfigError: the key cannot be used; see `read_key`.
        DataError: a value is neither text nor a whole number.
    """
    key = check_key(key, "the key") if isinstance(key, bytes) else read_key(Path(key))
    if isinstance(user_id, pl.Series):
        ids = as_text(user_id, user_id.name or "ids")
        return pseudonyms(key, ids).cast(pl.String)
    if isinstance(user_id, bool) or not isinstance(user_id, str | int) or user_id == "":
        raise DataError(f"{user_id!r} is no user id; give text or a whole number")
    return keyed_hash(key, str(user_id))


def keyed_hash(key: bytes, text: str) -> str:
    """`pseudonym` of one text."""
    digest = hmac.digest(key, text.encode(errors="surrogatepass"), "sha256")
    return base64.b32encode(digest[:BYTES]).decode().lower()


def pseudonyms(key: bytes, ids: pl.Series) -> pl.Series:
    """The pseudonyms of a column of text or codes, as codes."""
    column = coded(ids)
    hashes = [None if text is None else keyed_hash(key, text) for text in texts(column)]
    return per_row(column, pl.Series(hashes, dtype=pl.String).cast(new_codes())).alias(ids.name)


def read_key(path: Path, fix: str = "") -> bytes:
    """The key in a file, without white space at its ends.

    Args:
        fix: what to do if it is missing or too short; by default, to make one.

    Raises:
        ConfigError: the file is missing, others on this machine may read it, or it is too short.
    """
    fix = fix or (
        f"put it there, or make one for a first run: umask 077; openssl rand -hex 32 > {path}"
    )
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path}: no key can be read ({reason}); {fix}") from None
    if mode & stat.S_IROTH:
        raise ConfigError(
            f"{path}: everybody on this machine may read the key; run chmod 600 {path}"
        )
    return check_key(content.strip(), str(path), fix)


def check_key(key: bytes, place: str, fix: str = "make a longer one") -> bytes:
    """Return a key; raises a ConfigError if it is too short."""
    if len(key) < MIN_KEY:
        raise ConfigError(f"{place}: {len(key)} bytes are too short for a key of {MIN_KEY}; {fix}")
    return key


def new_key() -> bytes:
    """A random key, as text."""
    return secrets.token_hex(MIN_KEY).encode()


def key_hash(key: bytes) -> str:
    """What a run keeps of a key, to know it again."""
    return hashlib.sha256(b"jaxrec id key\0" + key).hexdigest()
