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


@pytest.mark.parametrize("module", ["jaxrec.training.state", "jaxrec.training.fit"])
def test_training_imports_no_plotting_and_no_tensorboard(module):
    modules = ("matplotlib", "tensorboardX", "rich.progress")
    absent = modules if module.endswith("state") else modules[:2]
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


def test_training_step_and_ranking_need_no_tables_and_no_command_line():
    """A machine with an accelerator may lack the packages that read data and options."""
    absent = ("polars", "duckdb", "sqlglot", "tyro", "tokenizers", "transformers", "tensorboardX")
    program = f"""
import sys
sys.modules |= dict.fromkeys({absent!r})  # makes their import fail
import jaxrec.evaluation.metrics, jaxrec.inference.encoding, jaxrec.ranking.top_k
import jaxrec.training.optimizer, jaxrec.training.step
"""
    subprocess.run([sys.executable, "-c", program], check=True)
