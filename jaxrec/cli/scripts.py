"""The scripts `train.py` and `serve.py`."""

import sys
from collections.abc import Sequence

from jaxrec.cli import main


def train(arguments: Sequence[str] | None = None) -> None:
    """`python train.py ...`: the command `train`."""
    main(["train", *(sys.argv[1:] if arguments is None else arguments)])


def serve(arguments: Sequence[str] | None = None) -> None:
    """`python serve.py RUN ...`: the command `serve` with `--http`, otherwise `recommend`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    live = any(argument.partition("=")[0] == "--http" for argument in arguments)
    main(["serve" if live else "recommend", *arguments])
