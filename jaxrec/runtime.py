"""What a process asks of the operating system before it computes."""

import ctypes
import os
import sys
from pathlib import Path

# parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Have freed memory kept for the next step, where the C library is glibc.

    By default arrays of 32 MiB and more go back to the kernel and come anew, zeroed page by page:
    without that a training step on two CPU cores takes .75 of the time. Call it before other
    imports, as it does not reach what threads use that have begun. The process stays as large as
    it ever was, so this is for programs of their own, not for `import jaxrec`.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)  # further arenas cannot grow beyond 64 MiB
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cache_dir() -> Path:
    """Where downloads stay: `$JAXREC_CACHE`, `$XDG_CACHE_HOME/jaxrec` or `~/.cache/jaxrec`."""
    if own := os.environ.get("JAXREC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrec"
