"""Load a Parquet file of random events with text ids into an event log.

    python benchmarks/speed/loading.py [--events 3000000] [--users 200000] [--items 50000]
    python benchmarks/speed/loading.py --events 100000000 --users 5000000 --items 1000000

Printed are the seconds, and the peak memory above that of the imports.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.data.events import build_event_log
from jaxrec.data.opener import read_table
from jaxrec.data.tables import validate_tables

MIB = 2**20
PART = 5_000_000  # events


def main() -> None:
    """Measure seconds and peak memory of loading random events."""
    parser = argparse.ArgumentParser()
    for name, default in (("events", 3_000_000), ("users", 200_000), ("items", 50_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file:
        load(options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.parquet")
        write_events(path, options)
        # in a new process, so that the peak leaves out the memory for writing the file
        subprocess.run([sys.executable, __file__, "--file", str(path)], check=True)


def write_events(path: Path, options: argparse.Namespace) -> None:
    """Random events, written in parts, so that memory does not grow with their number."""
    random = np.random.default_rng(0)
    parts = path.parent / "parts"
    parts.mkdir()
    for begin in range(0, options.events, PART):
        count = min(PART, options.events - begin)
        users, items = random.integers(0, options.users, count), random.zipf(1.3, count)
        pl.DataFrame(
            {
                "user_id": "u" + pl.Series(users).cast(pl.String),
                "item_id": "i" + pl.Series(items % options.items).cast(pl.String),
                "timestamp": random.integers(1_600_000_000, 1_700_000_000, count),
            }
        ).write_parquet(parts / f"{begin:012}.parquet")
    pl.scan_parquet(parts / "*.parquet").sink_parquet(path)
    shutil.rmtree(parts)


def load(path: Path) -> None:
    """Load the file and print seconds and memory."""
    before = peak()
    start = time.perf_counter()
    tables = validate_tables(read_table(path), None, None)
    item_ids = pl.concat([pl.Series([None], dtype=pl.String), tables.items["item_id"]])
    log = build_event_log(tables.events, item_ids)
    seconds = time.perf_counter() - start
    print(
        f"{len(log.items):,} events of {log.num_users:,} users: {seconds:.2f} s, "
        f"{(peak() - before) / MIB:,.0f} MiB above the imports"
    )


def peak() -> int:
    """Peak memory of this process in bytes; that of `getrusage` may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
