import os
import subprocess
import sys

import pytest

from jaxrec.runtime import call_in_process

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


def test_a_function_in_a_process_of_its_own_tells_how_it_ended():
    call_in_process(int, "3")
    with pytest.raises(ValueError, match="invalid literal") as failure:
        call_in_process(int, "three")
    assert "Traceback" in failure.value.__notes__[0]
    with pytest.raises(ChildProcessError, match="_exit ended with exit code 3"):
        call_in_process(os._exit, 3)
