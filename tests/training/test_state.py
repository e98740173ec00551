import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["jaxrec.training.state", "jaxrec.training.loop"])
def test_training_imports_no_plotting_and_no_tensorboard(module):
    modules = ("matplotlib", "tensorboardX", "rich.progress")
    absent = modules if module.endswith("state") else modules[:2]
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
