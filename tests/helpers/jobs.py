"""Files of batch jobs."""

import polars as pl

from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.partitions import read_manifest

BLOCK = ["--block", "50"]


def read(directory):
    return pl.concat(pl.read_parquet(path) for path in sorted(directory.glob("part-*.parquet")))


def manifest(directory):
    return read_manifest(open_directory(directory))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}
