"""Random conditions in a process of its own, which may crash or hang."""

import subprocess
import sys

import pytest
from helpers.fuzzing import COUNT, SEED
from helpers.paths import TESTS

PROGRAM = """
import sys
from pathlib import Path
import polars as pl
from random import Random
from helpers.conditions import condition, table
from helpers.fuzzing import in_time
from jaxrec.errors import DataError
from jaxrec.ranking.conditions import where

def outcome(text):
    try:
        assert where(items, text).shape == (len(items),)
    except DataError as error:
        assert "cannot be used" in str(error)
        return False
    return True

items = pl.concat([table(900), table(100)], rechunk=False)  # as in a live catalogue
random, used = Random(int(sys.argv[1])), 0
for number in range(int(sys.argv[2])):
    text = condition(random)
    sys.stderr.write(f"\\n{number} {text!r}\\n")  # the last one is that at fault
    used += in_time(outcome, text)
# the peak of this program alone: `ru_maxrss` begins with that of the parent
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
peak = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(used, peak // 1024)
"""
MOST_MEMORY = 2000  # MiB of the process, most of it for the libraries


def run(seed, count, log):
    with log.open("w") as errors:  # a long log must not stay in memory
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(seed), str(count)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=TESTS,
        )
    assert process.returncode == 0, log.read_bytes()[-9000:].decode(errors="replace")
    used, memory = map(int, process.stdout.split())
    assert used > count / 10
    assert memory < MOST_MEMORY


@pytest.mark.thorough
def test_random_conditions_are_used_or_refused_in_time(tmp_path):
    run(0, 500, tmp_path / "log")


@pytest.mark.slow
def test_very_many_random_conditions_are_used_or_refused_in_time(tmp_path):
    run(SEED, COUNT, tmp_path / "log")
