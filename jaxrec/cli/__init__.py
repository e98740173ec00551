"""The command line: `jaxrec COMMAND ...`.

Exit codes: 0 success; 1 an internal error, with its traceback, or a training that has diverged,
with a message; 2 bad input, with a message; 3 a warning: `jaxrec validate` has some, `jaxrec plan`
finds that a program does not fit, or `jaxrec compare` that the new run is worse; 130 after Ctrl-C;
143 after SIGTERM. Results go to stdout, errors and notes to stderr.
"""

import os
import signal
import sys
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from threading import Timer
from typing import Any

from jaxrec.errors import ConfigError, Diverged, InputError, Interrupted, Refused
from jaxrec.runtime import DEBUG, SafeStream, keep_freed_memory, safe_console

WARNED = 3  # exit code
_hook = sys.unraisablehook
COMMANDS = {
    "validate": "print what a data set holds, with warnings, before anybody trains",
    "plan": "say whether a training fits accelerators, before they are rented",
    "train": "train a recommender, evaluate it, and leave a run directory",
    "pretrain": "train a text encoder further on a shop's own texts",
    "refit": "train a finished run again on more events, and serve that model",
    "transfer": "make a run for another shop from a trained one, without training",
    "add-forecast": "train a decoder that forecasts the next events for a finished run",
    "compare": "tell whether a new run is worse than the last one on the newest events",
    "recommend": "write recommendations for every user of an events file",
    "serve": "serve recommendations over HTTP and update the user's state with each event",
    "explain": "say why a user gets an item",
    "audience": "find the users most likely to choose an item next",
    "profile": "write every user's interests and how they changed",
    "similar": "show the nodes most similar to an item, a brand and so on",
    "replay": "measure what live updates gain on held-out events",
    "plot": "draw how a user's interest changed, or what made a list",
    "embed": "encode the images of items as a column of vectors",
    "forget": "remove users from stores, outputs, states and runs",
    "export": "write a directory that recommends on a device, without a server",
}

# commands with a module of their own; the others are in `commands`
OWN_MODULES = (
    "validate",
    "plan",
    "train",
    "pretrain",
    "refit",
    "transfer",
    "add-forecast",
    "embed",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `jaxrec COMMAND ...`."""
    sys.unraisablehook = _without_writers  # not reset, as writers may end after the block
    with _process():
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        for argument in arguments:
            if argument.encode(errors="replace").decode() != argument:
                raise ConfigError(f"{argument!r} is not UTF-8; rename the file")
        if "--debug" in arguments:
            os.environ[DEBUG] = "1"
            arguments = [argument for argument in arguments if argument != "--debug"]
        match arguments:
            case [command, *rest] if command in COMMANDS:
                _run(command, rest)
            case ["--help" | "-h"]:
                print(_usage())
            case ["--version"]:
                from importlib.metadata import version  # slow to import

                print(version("jaxrec"))
            case []:
                raise ConfigError(f"a command is missing\n{_usage()}")
            case [unknown, *_]:
                known = ", ".join(COMMANDS)
                raise ConfigError(f"there is no command {unknown!r}; give one of {known}")


def _run(command: str, arguments: Sequence[str]) -> None:
    keep_freed_memory()  # before the imports, as libraries start threads
    if command in OWN_MODULES:
        import_module(f"jaxrec.cli.{command.replace('-', '_')}").run(arguments)
    else:
        import_module("jaxrec.cli.commands").run(command, arguments)


def _usage() -> str:
    rows = "\n".join(f"  {name:<13}{does}" for name, does in COMMANDS.items())
    return (
        f"usage: jaxrec COMMAND [options]\n\n{rows}\n\n"
        "jaxrec COMMAND --help shows the options of a command; jaxrec --version the version. With "
        "--debug, messages and logs of any command show ids of users and values of events."
    )


@contextmanager
def _process() -> Iterator[None]:
    """Set the exit codes above, and make the console safe."""
    with safe_console() as console:
        try:
            with _signals():
                yield
        except (InputError, OSError, MemoryError) as error:
            sys.stderr.write(f"error: {_message(error)}\n")
            code = 1 if isinstance(error, Diverged) else 2
            if processes := sys.modules.get("jaxrec.processes"):  # slow to import
                processes.leave(code)
            sys.exit(code)
        except Refused as refusal:
            sys.stderr.write(f"refused: {refusal}\n")
            sys.exit(WARNED)
        except Interrupted as stop:
            sys.stderr.write("; ".join(["interrupted", *getattr(stop, "__notes__", ())]) + "\n")
            raise
        except SystemExit as done:
            if not done.code:  # the help was printed
                _refuse_lost_output(console)
            raise
        _refuse_lost_output(console)


@contextmanager
def _signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise `Interrupted`, if only at the end."""
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise Interrupted(128 + number)

    def unraisable(lost: Any) -> None:
        """Send a signal again if it came in a `__del__` or a callback, which drop exceptions."""
        if isinstance(lost.exc_value, Interrupted):
            Timer(0.01, interrupt_main, [received[-1]]).start()
        else:
            hook(lost)

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    except SystemExit as done:
        if done.code or not received:
            raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:  # whatever ran has caught the exception
        raise Interrupted(128 + received[-1])


def _without_writers(lost: Any) -> None:
    """Drop what TensorStore's writers of a checkpoint raise behind the first one that failed."""
    if str(lost.exc_value) != "Event loop is closed":
        _hook(lost)


def _refuse_lost_output(console: SafeStream) -> None:
    """Exit with 2 if stdout could not be written, unless its reader has gone."""
    console.flush()
    if console.failure and not isinstance(console.failure, BrokenPipeError):
        sys.stderr.write(f"error: stdout: {_message(console.failure)}\n")
        sys.exit(2)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return str(error) or "not enough memory"
