"""Random conditions in a process of its own, which may crash or hang."""

import subprocess
import sys

from helpers.paths import TESTS

PROGRAM = """
import sys
from random import Random
from helpers.conditions import condition, table
from jaxrec.errors import DataError
from jaxrec.ranking.conditions import where

random, items = Random(int(sys.argv[1])), table(1000)
for number in range(int(sys.argv[2])):
    text = condition(random)
    sys.stderr.write(f"\\n{text!r}\\n")  # the last one is that at fault
    try:
        print(where(items, text).sum())
    except DataError as error:
        assert "cannot be used" in str(error)
        print("refused")
"""


def test_random_conditions_are_used_or_refused_in_time():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "0", "500"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TESTS,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    results = run.stdout.split()
    assert len(results) == 500
    assert len(results) - results.count("refused") > 50
