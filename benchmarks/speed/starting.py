"""Seconds from the start of `python train.py` to its first training step.

    python benchmarks/speed/starting.py [--repeats 5] [options of train.py]

The first start fills the caches. Printed are the median, the least and the most seconds of the
starts after it, and the seconds of the first one.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[2] / "train.py"


def main() -> None:
    """Measure the seconds from the start of a process to its first step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    options, arguments = parser.parse_known_args()
    cold, *warm = (seconds_to_first_step(arguments) for _ in range(1 + options.repeats))
    print(
        f"{statistics.median(warm):.1f} s to the first step (median of {options.repeats}, "
        f"{min(warm):.1f} to {max(warm):.1f}); {cold:.1f} s the first time"
    )


def seconds_to_first_step(arguments: list[str]) -> float:
    """Seconds until the log of a new process holds its first step; the process is then stopped."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, str(TRAIN), "--run", str(run), *arguments]
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            while not ((log := run / "log.jsonl").exists() and log.stat().st_size):
                if process.poll() is not None:
                    assert process.stderr
                    sys.exit(f"train.py ended before its first step:\n{process.stderr.read()}")
                time.sleep(0.02)
            seconds = time.perf_counter() - start
            process.kill()
    return seconds


if __name__ == "__main__":
    main()
