"""The commands `jaxrec train` and `jaxrec serve`, which train.py and serve.py share."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxrec.errors import FetchError
from jaxrec.runtime import keep_freed_memory

COMMANDS = "usage: jaxrec {train,serve} [options]; --help after a command documents it"


# Libraries are imported inside the commands: `keep_freed_memory` comes before they start threads,
# whose memory it would not reach.


def main() -> None:
    """The console script: `jaxrec train ...` or `jaxrec serve ...`."""
    match sys.argv[1:]:
        case ["train", *arguments]:
            train(arguments)
        case ["serve", *arguments]:
            serve(arguments)
        case _:
            sys.exit(COMMANDS)


def train(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say; bad input exits with 2 and a message."""
    keep_freed_memory()
    from jaxrec import api
    from jaxrec.config import parse

    parser = argparse.ArgumentParser(
        "train.py",
        description="Train a recommender, evaluate it, and leave a run directory. Every option of "
        "a recipe can be overridden: --section.option VALUE.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--config", help="a YAML recipe or the name of a shipped one")
    parser.add_argument("--data", help="short for --data.source")
    parser.add_argument("--run", help="directory to write; it must not exist")
    parser.add_argument("--resume", metavar="RUN", help="continue a run from its last checkpoint")
    parser.add_argument("-h", "--help", action="store_true", help="show every option")
    options, overrides = parser.parse_known_args(arguments)
    if options.help:
        parser.print_help()
        parse(["--help"])
    if options.resume and (overrides or options.config or options.data or options.run):
        parser.error("--resume continues a run as it was configured; give no other options")
    _run(
        lambda: api.fit(
            options.config,
            data=options.data,
            run=options.run,
            resume=options.resume,
            arguments=overrides,
        )
    )


def serve(arguments: Sequence[str] | None = None) -> None:
    """Score users in batches; bad input exits with 2 and a message."""
    keep_freed_memory()
    import tyro

    from jaxrec import api
    from jaxrec.serving.batch import ServeOptions
    from jaxrec.serving.batch import serve as run

    def command() -> None:
        options = tyro.cli(
            ServeOptions,
            prog="serve.py",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        api.enable_compilation_cache()
        run(options)

    _run(command)


def _run(command: Callable[[], object]) -> None:

    try:
        command()
    except (ValueError, OSError, FetchError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
