"""What notebooks, services and the command line call: `fit` a recipe to data, `load` a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec.artifacts.run_directory import read_config
from jaxrec.config import Config, parse, read_recipe
from jaxrec.data.tables import Tables
from jaxrec.runtime import cache_dir

OWN_DATA_RECIPE = "shopping"
DEFAULT_RECIPE = "ml100k"


def configure(
    recipe: str | Path | None = None,
    data: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> Config:
    """The configuration of a recipe, with a data source and options put over it.

    Args:
        recipe: a YAML file or the name of a shipped one; by default `ml100k`, or `shopping` if
            `data` is given.
        data: over `data.source`.
        overrides: dotted or nested options, such as `{"model.hidden_size": 128}`.
        arguments: the same as command-line flags; they win.

    Raises:
        ConfigError: unknown recipe or option, or a value that does not fit.
    """
    recipe = recipe or (OWN_DATA_RECIPE if data else DEFAULT_RECIPE)
    source = {"data.source": str(data)} if data else {}
    return parse(arguments, [read_recipe(recipe), source, overrides or {}])


def fit(
    recipe: str | Path | None = None,
    *,
    data: str | Path | Tables | None = None,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as `python train.py` does and return what `metrics.json` holds.

    Args:
        recipe, data, overrides, arguments: as `configure` takes them; `data` may also be tables
            in memory.
        run: the directory to write, by default `runs/` and the name of the data.
        resume: a run directory to continue instead; its own configuration holds, and `data` is
            needed only for tables in memory.

    Raises:
        ConfigError, DataError, RunError: what was given cannot be used; the message says why.
    """
    from jaxrec.training.loop import fit as train  # brings in the whole training stack

    enable_compilation_cache()
    tables = data if isinstance(data, Tables) else None
    if resume is not None:
        return train(read_config(Path(resume)), Path(resume), tables=tables, resume=True)
    config = configure(recipe, "memory" if isinstance(data, Tables) else data, overrides, arguments)
    target = Path(run) if run else Path("runs", run_name(config.data.source))
    return train(config, target, tables=tables)


def run_name(source: str) -> str:
    """The name of the data: that of a set or a directory, or of a file without its suffix."""
    path = Path(source).resolve()
    return path.stem if path.is_file() else path.name


def enable_compilation_cache() -> None:
    """Keep compiled programs across processes, so that only the first run waits for them."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
