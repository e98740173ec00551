"""What a process asks of the operating system: memory, a console, a cache directory."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from io import TextIOBase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

DEBUG = "JAXREC_DEBUG"  # environment variable, which processes inherit
HIDDEN = "(hidden; --debug shows it)"

# parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
"""What `keep_freed_memory` sets, as environment variables for other programs."""


def keep_freed_memory() -> None:
    """Keep freed memory for the next step, where the C library is glibc.

    By default glibc returns arrays of 32 MiB and more to the kernel, which zeroes their pages when
    they are allocated again. Without that, a training step on two CPU cores takes 0.75 of the time.
    Call this before other imports, as it does not reach running threads. The process stays at its
    largest size, so this is for programs, not for `import jaxrec`.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)  # further arenas cannot grow beyond 64 MiB
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class SafeStream:
    """A text stream that never fails, so that the console cannot stop a job.

    It replaces characters that its encoding lacks. When writing fails (`| head -1`), it discards
    all later output.
    """

    def __init__(self, stream: TextIOBase | TextIO):
        self.stream = stream
        self.failure: OSError | None = None  # why output was discarded
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        with self._discard_on_failure():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard what it holds."""
        with self._discard_on_failure():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _discard_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            # the interpreter flushes the stream again when it exits
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


@contextlib.contextmanager
def safe_console() -> Iterator[SafeStream]:
    """Make stdout and stderr `SafeStream`s; yields that of stdout."""
    before = sys.stdout, sys.stderr
    # a stream that was closed before the process began is None
    streams: list[Any] = [SafeStream(stream or Path(os.devnull).open("w")) for stream in before]  # noqa: SIM115
    sys.stdout, sys.stderr = streams
    try:
        yield streams[0]
    finally:
        streams[0].flush()
        sys.stdout, sys.stderr = before


def personal(value: object) -> str:
    """A user's id or event for a message: hidden unless `--debug` (JAXREC_DEBUG=1) shows it."""
    is_empty = value is None or value == ""
    return repr(value) if is_empty or os.environ.get(DEBUG) else HIDDEN


def cache_dir() -> Path:
    """Directory of downloads: `$JAXREC_CACHE`, `$XDG_CACHE_HOME/jaxrec` or `~/.cache/jaxrec`."""
    if own := os.environ.get("JAXREC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrec"


def call_in_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a process of its own, whose memory is free afterwards.

    Raises:
        Exception: what the function raises.
        ChildProcessError: the process ended before the function did.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy running threads' locks
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_call_and_report, args=(sender, function, arguments), daemon=True
    )
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(
            f"{function.__name__} ended with exit code {process.exitcode}"
        ) from None
    finally:
        process.terminate()
        process.join()
    if error is not None:
        raise error


def _call_and_report(sender: Connection, function: Callable[..., None], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    try:
        function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())  # a traceback does not travel
        sender.send(error)
    else:
        sender.send(None)


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that later processes need not compile them again."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    # a service compiles some hundred small programs, none of which takes the second of the default
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


_compiled_for: ContextVar[str] = ContextVar("compiled_for", default="")


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Trace programs as for devices of this platform ("tpu", "gpu"), which may be elsewhere."""
    token = _compiled_for.set(platform)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def target_platform(own: str = "") -> str:
    """The platform to trace for; outside `compiling_for`, `own` or JAX's default."""
    import jax

    return _compiled_for.get() or own or jax.default_backend()


def compute_in_calling_thread() -> None:
    """Run programs on CPUs in the thread that calls them; must come before the first of them.

    JAX hands each program to another thread, which takes 0.05 ms, a third of a small program, and
    more where threads wait for a core.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A draft path to write to; the draft replaces `path` when the `with` block ends.

    What was written survives a power cut once the block has ended.

    The draft has the name of `path` and lies in a hidden directory beside it, because a rename is
    atomic within one file system only. If the block raises, the draft is removed and `path` stays
    as it was; a killed process leaves the hidden directory `.NAME.*` behind. Missing parent
    directories are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as hidden:
        draft = Path(hidden, path.name)
        yield draft
        for written in (draft, *draft.rglob("*")):
            sync(written)
        draft.replace(path)
    sync(path.parent)


def path_exists(path: Path | str) -> bool:
    """Whether there is such a file or directory; a text that is too long for a name is none."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def sync(path: Path) -> None:
    """Write a file, or the names in a directory, from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
