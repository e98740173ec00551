"""Files of batch jobs."""

import json

import polars as pl

from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.partitions import read_manifest

BLOCK = ["--block", "50"]


def read(directory):
    return pl.concat(pl.read_parquet(path) for path in sorted(directory.glob("part-*.parquet")))


def holding(directory, text):
    """The names of the files below a directory that hold a text, also in compressed columns."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.name for path in files if text.encode() in _plain(path)}


def _plain(path):
    content = path.read_bytes()
    if path.suffix == ".parquet":
        columns = pl.read_parquet(path).select(pl.selectors.by_dtype(pl.String, pl.Int64))
        content += columns.write_ndjson().encode()
        content += json.dumps(pl.read_parquet_metadata(path)).encode()
    return content


def manifest(directory):
    return read_manifest(open_directory(directory))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}
