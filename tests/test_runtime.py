import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from jaxrec.runtime import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
array = np.ones(2**23)
del array
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs malloc of glibc")
def test_keep_freed_memory_keeps_memory_in_the_process():
    def left(mode: str) -> int:
        shown = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True
        )
        return int(shown.stdout)

    size = 8 * 2**23
    assert left("return") < size / 2
    assert left("keep") > size / 2
