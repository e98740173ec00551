"""A checkpoint to change."""

import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import TINY, TINY_GPT


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A copy of a tiny checkpoint, which a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


@pytest.fixture
def gpt_checkpoint(tmp_path) -> Path:
    """A copy of a tiny GPT checkpoint, which a test may damage."""
    return Path(shutil.copytree(TINY_GPT, tmp_path / "gpt"))
