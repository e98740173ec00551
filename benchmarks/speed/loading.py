"""From a Parquet file of events with text ids to an event log: seconds, and memory over imports.

python benchmarks/loading.py [--events 3000000] [--users 200000] [--items 50000]
python benchmarks/loading.py --events 100000000 --users 5000000 --items 1000000
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
from jaxrec.data.files import read_table
from jaxrec.data.tables import validate_tables

MIB = 2**20
PART = 5_000_000


def main() -> None:
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
        # a process of its own, whose peak does not hold what made the file
        subprocess.run([sys.executable, __file__, "--file", str(path)], check=True)


def write_events(path: Path, options: argparse.Namespace) -> None:
    """Random events, made in parts so that 100,000,000 of them need no more memory than some."""
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
    before = peak()
    start = time.perf_counter()
    tables = validate_tables(read_table(path), None, None)
    item_ids = pl.concat([pl.Series([None], dtype=pl.String), tables.items["item_id"]])
    log = build_event_log(tables.events, item_ids)
    taken = time.perf_counter() - start
    print(
        f"{len(log.items):,} events of {log.num_users:,} users: {taken:.2f} s, "
        f"{(peak() - before) / MIB:,.0f} MiB above the imports"
    )


def peak() -> int:
    """Bytes; of this process alone, whereas `getrusage` remembers the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
