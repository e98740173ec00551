"""Modules import only what they need."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("jaxrec", ("jax", "polars", "jaxrec.training.loop")),
        (
            "jaxrec.inference.loading",
            ("jaxrec.training.loop", "jaxrec.training.objective", "matplotlib"),
        ),
        ("jaxrec.serving.batch", ("uvicorn", "fastapi", "jaxrec.serving.http", "jaxrec.training")),
        (
            "jaxrec.training.losses.full_softmax",
            ("jaxrec.data", "jaxrec.models", "jaxrec.training.loop"),
        ),
        ("jaxrec.data.dataset", ("jaxrec.models", "jaxrec.training.loop")),
        (
            "jaxrec.models.recommender",
            ("jaxrec.data", "jaxrec.training.losses", "jaxrec.training.loop"),
        ),
    ],
)
def test_imports_flow_down_only(module, absent):
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == []


@pytest.mark.parametrize("module", ["jaxrec.training.state", "jaxrec.training.loop"])
def test_training_imports_no_plotting_and_no_tensorboard(module):
    modules = ("matplotlib", "tensorboardX", "rich.progress")
    absent = modules if module.endswith("state") else modules[:2]
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
