"""Prepare random events with text ids for training, from Parquet files to packed batches.

    python benchmarks/speed/loading.py [--events 3000000] [--users 200000] [--items 50000]
    python benchmarks/speed/loading.py --events 100000000 --users 5000000 --items 1000000 --validate
    python benchmarks/speed/loading.py --revision cacee9a --repeats 3

Printed are the seconds without imports, the peak memory of the process, and a checksum of the
event log. `--revision` runs another version of jaxrec in turn on the same files. `--validate` runs
`jaxrec validate` too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.runtime import keep_freed_memory

keep_freed_memory()  # as the commands do, before the imports

from jaxrec.config import Config, DataConfig  # noqa: E402
from jaxrec.data.dataset import prepare  # noqa: E402
from jaxrec.training.batches import make_packing  # noqa: E402

GIB = 2**30
PART = 5_000_000  # events
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Measure seconds and peak memory on random events."""
    parser = argparse.ArgumentParser()
    sizes = {"events": 3_000_000, "users": 200_000, "items": 50_000, "repeats": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--revision", help="also measure this revision of git")
    parser.add_argument("--validate", action="store_true", help="also run `jaxrec validate`")
    parser.add_argument("--keep", type=Path, help="directory of the files, which stay")
    parser.add_argument("--step", choices=("prepare", "validate"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = (options.keep or Path(folder)) / "events.parquet"
        if not path.exists():
            write_events(path, options)
        versions = {"here": ROOT}
        if options.revision:
            versions[options.revision] = Path(folder, "jaxrec")
            git(["worktree", "add", "--detach", str(versions[options.revision]), options.revision])
        try:
            for _ in range(options.repeats):
                for name, root in versions.items():
                    run("prepare", path, name, root)
                if options.validate:
                    run("validate", path, "here", ROOT)
        finally:
            if options.revision:
                git(["worktree", "remove", "--force", str(versions[options.revision])])


def git(arguments: list[str]) -> None:
    """Run git in the repository."""
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


def write_events(path: Path, options: argparse.Namespace) -> None:
    """Random events, written in parts, so that memory does not grow with their number.

    With `--revision` the parts become one file, as older versions read no directories.
    """
    random = np.random.default_rng(0)
    parts = path.with_name("parts.parquet")
    parts.mkdir(parents=True)
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
    if options.revision:
        pl.scan_parquet(parts / "*.parquet").sink_parquet(path)
    else:
        parts.rename(path)


def run(step: str, path: Path, version: str, root: Path) -> None:
    """Measure a step in a new process, so that the peak leaves out the writing of the files."""
    command = [sys.executable, __file__, "--step", step, "--keep", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    answer = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    print(f"{version}, {step}: {answer.stdout.splitlines()[-1]}", flush=True)


def measure(step: str, path: Path) -> None:
    """Run a step and print seconds and memory."""
    before, start = peak(), time.perf_counter()
    what = validate(path) if step == "validate" else load(path)
    seconds = time.perf_counter() - start
    print(f"{what}: {seconds:.2f} s, {peak() / GIB:.2f} GiB ({before / GIB:.2f} for the imports)")


def load(path: Path) -> str:
    """Prepare the files up to the packed batches, and say what they hold."""
    config = Config(data=DataConfig(source=str(path)))
    dataset = prepare(config)
    packing = make_packing(config, dataset)
    log, checksum = dataset.split.log, 0
    for values in (log.offsets, log.items, log.event_types, log.times):
        checksum = zlib.crc32(values.data, checksum)
    return (
        f"{len(log.items):,} events of {log.num_users:,} users in {packing.num_rows:,} packed rows "
        f"(checksum {checksum:08x})"
    )


def validate(path: Path) -> str:
    """Run `jaxrec validate`, and say so."""
    from jaxrec.cli import validate  # which an older version lacks

    try:
        validate.run(["--data", str(path)])
    except SystemExit as warnings:
        return f"exit code {warnings.code}"
    return "exit code 0"


def peak() -> int:
    """Peak memory of this process in bytes; that of `getrusage` may be its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
