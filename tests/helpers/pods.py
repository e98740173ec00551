"""Trainings by processes on this machine, each with some emulated devices."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import ROOT
from helpers.training import TINY
from jaxrec.data.tables import Tables
from jaxrec.training import logging as report

HANGS = 400  # seconds


def write_data(tables: Tables, directory: Path) -> Path:
    """The tables as files that `jaxrec train` reads."""
    directory.mkdir()
    for name in ("events", "items"):
        getattr(tables, name).write_parquet(directory / f"{name}.parquet")
    return directory


def new_run(data: Path, run: Path, **options) -> list[str]:
    """Arguments of a new run with the options of tests."""
    arguments = ["--data", str(data), "--run", str(run)]
    for name, value in (TINY | options).items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *map(str, values)]
    return arguments


@contextmanager
def started(
    arguments: list[str],
    logs: Path,
    count: int = 2,
    devices: int = 2,
    last: Sequence[str] = (),
) -> Iterator[list[subprocess.Popen]]:
    """The processes of a training, which write their output to `logs`.

    Args:
        last: more arguments of the last process.
    """
    coordinator, environment = free_address(), with_devices(devices)
    logs.mkdir(exist_ok=True)
    processes = []
    for number in range(count):
        place = ["--coordinator", coordinator, "--processes", str(count), "--process", str(number)]
        with (logs / f"{number}.txt").open("w") as output:
            command = [sys.executable, "-m", "jaxrec", "train", *arguments]
            own = last if number == count - 1 else ()
            processes.append(
                subprocess.Popen(
                    [*command, *own, *(place if count > 1 else [])],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=ROOT,
                )
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_address() -> str:
    """An address of this machine for a coordinator."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process with so many emulated devices."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={count}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def exit_codes(processes: list[subprocess.Popen], within: float = HANGS) -> list[int]:
    end = time.monotonic() + within
    return [process.wait(max(end - time.monotonic(), 0)) for process in processes]


def train(arguments: list[str], logs: Path, count: int = 2, devices: int = 2) -> None:
    """Train to the end."""
    with started(arguments, logs, count, devices) as processes:
        codes = exit_codes(processes)
    assert codes == [0] * count, [path.read_text()[-3000:] for path in sorted(logs.iterdir())]


def train_until(
    run: Path, step: int, arguments: list[str], logs: Path, count: int = 1, devices: int = 2
) -> None:
    """Train until a step is logged, then stop with SIGTERM; the state is saved."""
    with started(arguments, logs, count, devices) as processes:
        wait_for_step(run, step)
        processes[0].send_signal(signal.SIGTERM)
        codes = exit_codes(processes)
    assert codes == [143] * count, [path.read_text()[-3000:] for path in sorted(logs.iterdir())]


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a training has logged a step."""
    end = time.monotonic() + HANGS
    while not any(row["step"] >= step for row in report.read_log(run)):
        assert time.monotonic() < end, f"no step {step}"
        time.sleep(0.05)
