"""`jaxrec train`: a recipe and data to a run directory."""

import argparse
from collections.abc import Sequence

from jaxrec import api
from jaxrec.cli.parser import Parser
from jaxrec.config import parse, read_recipe
from jaxrec.config.help import escaped
from jaxrec.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Train as the arguments say."""
    options, overrides = _parser().parse_known_args(arguments)
    if options.help:
        _parser().print_help()
        parse(["--help"])
    others = (options.config, options.run, options.base, options.init_parts)
    short = {
        "warm_start.since": options.since,
        "data.id_key": options.id_key,
        "train.init": options.init,
    }
    if options.resume is not None and (overrides or any((*others, *short.values()))):
        raise ConfigError("--resume keeps the options of the run; only --data goes with it")
    if options.since is not None and options.base is None:
        raise ConfigError("--since needs --from RUN, the run to go on from")
    if options.init_parts is not None and not _names_init(options, overrides):
        raise ConfigError("--init-parts needs --init RUN, the run to take parameters from")
    for name, value in short.items():
        if value is not None:
            overrides += [f"--{name}", escaped(value)]
    if options.init_parts is not None:
        overrides += ["--train.init_parts", *options.init_parts]
    if options.distributed or options.coordinator is not None:
        from jaxrec import processes  # slow to import

        processes.join(options.coordinator, options.processes, options.process)
    elif options.processes is not None or options.process is not None:
        raise ConfigError("--processes and --process need --coordinator HOST:PORT")
    data = options.data or [None]
    api.fit(
        options.config,
        data=data[0] if len(data) == 1 else api.named_shops(data),
        run=options.run,
        resume=options.resume,
        base=options.base,
        arguments=overrides,
    )


def _names_init(options: argparse.Namespace, overrides: Sequence[str]) -> bool:
    """Whether the arguments or the recipe name the run that a training begins with."""
    given = any(argument.partition("=")[0] == "--train.init" for argument in overrides)
    recipe = read_recipe(options.config) if options.config else {}
    return given or bool(options.init or recipe.get("train.init"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "jaxrec train",
        description="Train a recommender, evaluate it, and leave a run directory. "
        "--section.option VALUE overrides an option of the recipe.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--config", help="a YAML recipe, or the name of a shipped one")
    parser.add_argument(
        "--data",
        action="append",
        help="short for --data.source; given several times, each is a shop and all train one model",
    )
    parser.add_argument(
        "--id-key", metavar="FILE", help="make user ids keyed hashes; short for --data.id_key"
    )
    parser.add_argument("--run", help="directory to write; it must not exist")
    parser.add_argument("--resume", metavar="RUN", help="continue a run from its last checkpoint")
    parser.add_argument(
        "--from",
        dest="base",
        metavar="RUN",
        help="go on from an earlier run, with its options and weights, on newer data",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="with --from: events after this time are new (by default after the newest event that "
        "RUN was trained on)",
    )
    parser.add_argument(
        "--init",
        metavar="RUN",
        help="begin a new training with the parameters of another run; short for --train.init",
    )
    parser.add_argument(
        "--init-parts",
        nargs="+",
        metavar="PART",
        help="with --init: what to take of text, graph, sequence and ids (by default all)",
    )
    _add_cluster_options(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show every option")
    return parser


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("training on several hosts, with one process a host or GPU")
    cluster.add_argument(
        "--distributed",
        action="store_true",
        help="find the other processes of this job on Cloud TPU, Slurm, Open MPI or Kubernetes",
    )
    cluster.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="elsewhere: an address of the host of process 0, with a free port",
    )
    cluster.add_argument(
        "--processes", type=int, metavar="N", help="with --coordinator: number of processes"
    )
    cluster.add_argument(
        "--process", type=int, metavar="NUMBER", help="with --coordinator: number of this one"
    )
