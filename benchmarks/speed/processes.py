"""A training by one process on two cores, beside one by two processes with a core each.

    python benchmarks/speed/processes.py [--config ml100k] [--rounds 3] [--out FILE.jsonl]

The processes find each other on this machine, and every one has one device. Both trainings read the
same batches. They take turns, and a round is one training of each. Printed are the median events
per second of the epochs after the first, which compiles, and the ratio of the times of a step: how
much longer two processes take. Run it on an idle machine with two cores or more.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import append_row, commit

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0))[:2]


def main() -> None:
    """Compare the two trainings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="ml100k")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file that the row is added to")
    parser.add_argument("options", nargs="*", help="further options of train.py")
    options = parser.parse_args()
    commit()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(options.rounds):
        for count, of_count in speeds.items():
            of_count.append(training(count, options))
            print(f"round {number + 1}, {count} process(es): {of_count[-1]:,.0f} events/s")
    ratios = [one / two for one, two in zip(speeds[1], speeds[2], strict=True)]
    row = {
        "config": options.config,
        "events_per_second": speeds,
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(f"a step of two processes takes {row['ratio'][1]:.2f} times as long ({row['ratio']})")
    if options.out:
        append_row(options.out, row)


def training(count: int, options: argparse.Namespace) -> float:
    """Events per second of a training by `count` processes, which share the cores."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "train.py", "--config", options.config, "--run", str(run)]
        command += ["--train.epochs", str(options.epochs), "--train.refit", "none"]
        command += options.options
        address = f"localhost:{free_port()}"
        processes = [
            subprocess.Popen(
                [
                    *taskset(number, count),
                    *command,
                    *options.options,
                    *place(address, number, count),
                ],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit(f"the training of {count} process(es) ended with {codes}")
        return events_per_second(run)


def taskset(number: int, count: int) -> list[str]:
    """Binds a process to its share of the cores."""
    cores = CORES if count == 1 else [CORES[number]]
    return ["taskset", "--cpu-list", ",".join(map(str, cores))]


def place(address: str, number: int, count: int) -> list[str]:
    """The options of a process among several."""
    several = ["--coordinator", address, "--processes", str(count), "--process", str(number)]
    return several if count > 1 else []


def events_per_second(run: Path) -> float:
    """The median over the epochs after the first one."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = {row["epoch"]: row["events_per_second"] for row in rows if "events_per_second" in row}
    return statistics.median([speed for epoch, speed in last.items() if epoch])


def free_port() -> int:
    """A port that no process of this machine listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
