"""Queries that a database answers, as streams of Arrow batches."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module

import duckdb
import pyarrow

from jaxrec.data.spec import TableSpec
from jaxrec.data.sql import literal
from jaxrec.errors import DataError

DRIVERS = {
    "sqlite": "adbc_driver_sqlite.dbapi",
    "postgresql": "adbc_driver_postgresql.dbapi",
    "postgres": "adbc_driver_postgresql.dbapi",
}
ROWS_PER_BATCH = 100_000


@contextmanager
def answer(spec: TableSpec) -> Iterator[pyarrow.RecordBatchReader]:
    """The rows of a query of a database.

    Args:
        spec: its `database` is a URL: `duckdb:///shop.duckdb`, `sqlite:///shop.db` (files relative
            to `base`, or `sqlite:////absolute`) or `postgresql://user@host/shop`. Variables of the
            environment, such as `$SHOP_URL`, are filled in: a file need not hold a password.
            Messages do not show the URL.

    Raises:
        DataError: the scheme is unknown, the driver is not installed, the file is missing, or the
            database refuses the query.
    """
    name, sql = spec.origin, spec.sql
    scheme, _, rest = os.path.expandvars(spec.database).partition("://")
    path = spec.base / rest.removeprefix("/")
    if scheme in ("duckdb", "sqlite") and not path.is_file():
        raise DataError(f"{name}: {path}: no such file")
    if scheme == "duckdb":
        with duckdb.connect(str(path), read_only=True) as connection:
            if spec.memory_limit:
                connection.execute(f"SET memory_limit = {literal(spec.memory_limit)}")
            yield connection.sql(sql).to_arrow_reader(ROWS_PER_BATCH)
        return
    if scheme not in DRIVERS:
        known = ", ".join(("duckdb", *DRIVERS))
        raise DataError(f"{name}: `database` must begin with one of {known}, and ://")
    try:
        driver = import_module(DRIVERS[scheme])
    except ImportError:
        raise DataError(f"{name}: needs a driver; pip install 'jaxrec[database]'") from None
    target = str(path) if scheme == "sqlite" else f"{scheme}://{rest}"
    try:
        with closing(driver.connect(target)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            yield cursor.fetch_record_batch()
    except driver.Error as error:
        raise DataError(f"{name}: {' '.join(str(error).split())}") from error
