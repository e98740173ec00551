"""The page of the command line, from the `--help` of every command."""

import contextlib
import io
import os
import re
import sys
import textwrap
from unittest.mock import patch

from jaxrec.cli import main

COMMANDS = {
    "validate": "Print what a data set holds, with warnings, before anybody trains. "
    "[Read your files](../how-to/your-files.md) tells how to describe them.",
    "plan": "Say whether a training fits accelerators, before they are rented. "
    "[Plan before you rent](../how-to/plan.md) shows how to read it.",
    "train": "Train a recipe on a data set. `python train.py` is the same command. "
    "[Options of a recipe](options.md) lists what `--section.option VALUE` can change.",
    "pretrain": "Train a text encoder further on the texts of a data set. "
    "[Train the text encoder further](../how-to/pretrain.md) says when.",
    "refit": "Train a finished run again on more events. [Train every night](../how-to/nightly.md) "
    "says when.",
    "transfer": "Make a run for another shop from a trained one, without training. "
    "[Start in another shop](../how-to/other-shops.md) tells more.",
    "add-forecast": "Train a decoder for the [forecast](../concepts/forecast.md) of a "
    "finished run.",
    "compare": "Tell whether a new run is worse than the last one, before it is served.",
    "recommend": "Recommend to every user of an events file. "
    "`python serve.py RUN --events FILE --out DIRECTORY` is the same command.",
    "serve": "Serve a run over HTTP. `python serve.py RUN --http :8080` is the same command.",
    "explain": "Say why a user gets an item. [Explain a list](../how-to/explain.md) tells more.",
    "audience": "Find the users who most likely choose an item, or an item of a brand, next.",
    "profile": "Write what every user is interested in, and how that changed.",
    "similar": "List the items (or brands ...) that are most similar to one.",
    "replay": "Measure what live updates gain on a held-out period.",
    "plot": "Draw how the interest of one user changed.",
    "embed": "Encode the images of items as a column of vectors. [Images, audio, "
    "numbers](../how-to/modalities.md) tells more.",
    "forget": "Remove users from stores, outputs, states and runs. "
    "[Forget a user](../how-to/forget.md) tells what is removed.",
    "export": "Write a directory that recommends on a device. "
    "[Recommend on the device](../how-to/edge.md) tells how to use it.",
}
INTRODUCTION = """# Command line

`pip install -e .` installs one command, `jaxrec`, with nineteen sub-commands.

| exit code | means |
|---|---|
| 0 | done |
| 1 | an internal error, with its traceback on stderr; or a training has diverged, with a message |
| 2 | the input cannot be used; the message names the place and the correction |
| 3 | `jaxrec validate` warns, `jaxrec plan` does not fit, or `jaxrec compare` finds a worse run |
| 130, 143 | stopped by Ctrl-C or SIGTERM; `jaxrec train` has saved its state |

This page is generated from the `--help` of every command.
"""
WIDTH = 76  # characters
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def page() -> str:
    """The page as Markdown."""
    sections = [
        f"## jaxrec {name}\n\n{summary}\n\n```text\n{help_of(name)}\n```\n"
        for name, summary in COMMANDS.items()
    ]
    return "\n".join([INTRODUCTION, *sections])


def help_of(command: str) -> str:
    """What `jaxrec COMMAND --help` prints on a narrow, colourless terminal."""
    console = io.StringIO()
    environment = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    with (
        patch.object(sys, "argv", ["jaxrec", command, "--help"]),
        patch.dict(os.environ, environment),
        contextlib.redirect_stdout(console),
    ):
        try:
            main()
        except SystemExit as stop:
            if stop.code not in (0, None):
                raise ValueError(f"jaxrec {command} --help exits with {stop.code}") from None
    # `train` also prints the options of recipes, which have a page of their own
    text = ESCAPE.sub("", console.getvalue()).strip().split("\nusage:")[0]
    return "\n".join(
        textwrap.fill(line, WIDTH) if line[:1].strip() else line.rstrip()
        for line in text.splitlines()
    )
