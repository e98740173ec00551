"""Files of batch jobs."""

import polars as pl

BLOCK = ["--block", "50"]


def read(directory):
    return pl.concat(pl.read_parquet(path) for path in sorted(directory.glob("part-*.parquet")))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.glob("part-*")}
