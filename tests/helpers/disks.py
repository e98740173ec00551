"""Small file systems in memory."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A file system of a size such as `1m`; skips the test if none can be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def remount(directory: Path, options: str) -> None:
    """Change a mounted file system, such as its `size=9m`, or make it read-only (`ro`)."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)


def fill(ballast: Path) -> None:
    """Write a file that leaves no space."""
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**12))
            file.flush()
