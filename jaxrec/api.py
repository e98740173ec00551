"""The entry points of training; `load` is in `jaxrec.inference.loading`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrec.artifacts.files import explained_disk_full
from jaxrec.artifacts.run_directory import read_config
from jaxrec.config import Config, ForecastConfig, parse, read_recipe
from jaxrec.config.train import RefitEvents
from jaxrec.data.listing import is_pattern
from jaxrec.data.sources import NAMED_SOURCES
from jaxrec.data.spec import SPEC_FILE
from jaxrec.data.tables import Tables
from jaxrec.errors import ConfigError, Interrupted
from jaxrec.runtime import enable_compilation_cache

if TYPE_CHECKING:
    from jaxrec.training.pretraining.options import PretrainOptions

OWN_DATA_RECIPE, SHOPS_RECIPE = "shopping", "shops"
DEFAULT_RECIPE = "ml100k"
IN_MEMORY = "memory"


def configure(
    recipe: str | Path | None = None,
    data: str | Path | Mapping[str, str | Path] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> Config:
    """The configuration of a recipe, with another data source and other options.

    >>> import jaxrec
    >>> config = jaxrec.configure("ml100k", overrides={"model.hidden_size": 32})
    >>> config.model.hidden_size, config.data.source
    (32, 'ml-100k')

    Args:
        recipe: a YAML file or the name of a shipped one; by default `ml100k`, or `shopping` if
            `data` is given, or `shops` if that names several shops.
        data: replaces `data.source`; several shops by their names replace `data.shops`.
        overrides: dotted or nested options, such as `{"model.hidden_size": 128}`.
        arguments: the same as command-line flags; they win.

    Raises:
        ConfigError: unknown recipe or option, or a value that does not fit.
    """
    _refuse_empty(recipe=recipe, data=data)
    own = SHOPS_RECIPE if isinstance(data, Mapping) else OWN_DATA_RECIPE
    recipe = recipe or (own if data else DEFAULT_RECIPE)
    layers = [read_recipe(recipe), _places(data), overrides or {}]
    return _with_absolute_paths(parse(arguments, layers))


def fit(
    recipe: str | Path | None = None,
    *,
    data: str | Path | Tables | Mapping[str, str | Path | Tables] | None = None,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    base: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as `python train.py` does and return what `metrics.json` holds.

    >>> import jaxrec, polars
    >>> from jaxrec.data.tables import validate_tables
    >>> pairs = [(user, day) for user in range(20) for day in range(6)]
    >>> events = polars.DataFrame(
    ...     {
    ...         "user_id": [f"user{user}" for user, day in pairs],
    ...         "item_id": [f"item{(user + day) % 8}" for user, day in pairs],
    ...         "timestamp": [86_400 * (20_000 + day) for user, day in pairs],
    ...     }
    ... )
    >>> options = {"model.experts": ["id"], "model.hidden_size": 8, "train.epochs": 1}
    >>> options["split.scheme"] = "leave_one_out"
    >>> tables = validate_tables(events, None, None)
    >>> results = jaxrec.fit(data=tables, run="runs/tiny", overrides=options)
    20 users, 8 items, 120 events...
    >>> 0 <= results["test"]["model"]["ndcg@10"] <= 1
    True
    >>> jaxrec.load("runs/tiny").recommend(events, k=1, mask=("none",)).columns
    ['user_id', 'rank', 'item_id', 'score']

    Args:
        recipe: as in `configure`.
        data: as in `configure`, or tables in memory. Several shops by their names train one model
            together; `run/shops/NAME` is then the run directory of a shop.
        run: the directory to write, by default `runs/` and the name of the data.
        resume: a run directory to continue instead, with the options that it has. `data` is needed
            only for tables in memory, or if the files have moved.
        base: a run directory to go on from, with its options and weights, on newer data: a warm
            start. `recipe` is not needed then.
        overrides, arguments: as in `configure`.

    Raises:
        ConfigError, DataError, RunError: the options, the data or the directory cannot be used.
        Interrupted: Ctrl-C or SIGTERM; the run is saved and can be resumed.
    """
    from jaxrec.training.fit import fit as train  # imports the whole training stack

    _refuse_empty(recipe=recipe, data=data, run=run, resume=resume, base=base)
    enable_compilation_cache()
    tables, source = _in_memory(data)
    if resume is not None:
        target, config = Path(resume), _moved(read_config(Path(resume)), source)
    else:
        config = _new_config(recipe, source, base, overrides, arguments)
        target = Path(run) if run else Path("runs", _run_name(config))
    with _resumable(target):
        results = train(config, target, tables=tables, resume=resume is not None)
        return refit(target, data=data) if config.train.refit != "none" else results


@contextmanager
def _resumable(target: Path) -> Iterator[None]:
    """Make a full disk and an interruption say how to continue the run."""

    def begun() -> bool:
        return (target / "config.yaml").is_file()

    def how_to_continue() -> str:
        return f"continue with --resume {target}" if begun() else "start again"

    try:
        with explained_disk_full(target, how_to_continue):
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        if begun():
            stop.add_note(how_to_continue())
        raise


def refit(
    run: str | Path,
    *,
    events: RefitEvents | None = None,
    data: str | Path | Tables | Mapping[str, str | Path | Tables] | None = None,
) -> dict[str, Any]:
    """Train a finished run again on more events, as `jaxrec refit` does; that model serves then.

    Args:
        run: a run directory.
        events: as `train.refit`; None: what that option of the run says, or else all events.
        data: needed only for tables in memory, or if the files have moved; it may hold newer events
            than the run has seen.

    Returns:
        The content of `metrics.json`: the figures of the selected model, and under `refit` those of
        the refit if the test events are left out.

    Raises:
        RunError: the directory cannot be used, or training has not ended.
        DataError: the data cannot be used.
        Interrupted: Ctrl-C or SIGTERM; call it again to continue.
    """
    from jaxrec.training.refit import refit as train_again  # imports the whole training stack

    _refuse_empty(run=run, data=data)
    enable_compilation_cache()
    tables, source = _in_memory(data)
    config = _moved(read_config(Path(run)), source)
    return train_again(config, Path(run), tables=tables, events=events)


def add_forecast(
    run: str | Path,
    forecast: ForecastConfig | None = None,
    *,
    data: str | Path | Tables | None = None,
) -> None:
    """Train a decoder for the model that a finished run serves, as `jaxrec add-forecast` does.

    Args:
        run: a run directory.
        forecast: by default a forecast of 10 steps.
        data: needed only for tables in memory, or if the files have moved.

    Raises:
        ConfigError: the options do not fit.
        RunError: the directory cannot be used, training has not ended, or the data are others.
        DataError: the data cannot be used.
    """
    from jaxrec.training.add_forecast import add_forecast as train  # imports the training stack

    _refuse_empty(run=run, data=data)
    enable_compilation_cache()
    tables, source = (data, None) if isinstance(data, Tables) else (None, data)
    place = _absolute(str(source)) if source else ""
    train(Path(run), forecast or ForecastConfig(steps=10), source=place, tables=tables)


def pretrain(
    out: str | Path,
    options: "PretrainOptions | None" = None,
    *,
    data: str | Path | Tables | None = None,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
) -> list[dict[str, float]]:
    """Train a text encoder further on a shop's texts, as `jaxrec pretrain` does.

    The checkpoint `text.pretrained` is where it begins.

    Args:
        out: the directory to write: a checkpoint in Hugging Face's format.
        options: tasks, epochs and so on; by default those of the command.
        data: as in `fit`.
        recipe: as in `configure`.
        overrides: as in `configure`; data, split and text options of the training that follows.
        arguments: as in `configure`.

    Returns:
        The held-out loss of every task before training and after each epoch.

    Raises:
        ConfigError, DataError, RunError, CheckpointError: the input cannot be used.
        Interrupted: Ctrl-C or SIGTERM; call it again to continue.
    """
    from jaxrec.training.pretraining.loop import pretrain as train  # imports the training stack
    from jaxrec.training.pretraining.options import PretrainOptions

    _refuse_empty(out=out, data=data, recipe=recipe)
    enable_compilation_cache()
    tables, source = _in_memory(data)
    config = configure(recipe, source, overrides, arguments)
    return train(config, options or PretrainOptions(), Path(out), tables=tables)


def named_shops(sources: Sequence[str]) -> dict[str, str]:
    """Data sets by the names of their directories; raises a ConfigError if two have the same."""
    shops = {_place_name(source): source for source in sources}
    if len(shops) < len(sources):
        raise ConfigError(
            f"the shops {', '.join(sources)} need different names; give them: --config shops "
            f"--data.shops first {sources[0]} second {sources[1]}"
        )
    return shops


def _in_memory(data: Any) -> tuple[Any, Any]:
    """The tables in memory, if any, and where the data are."""
    if isinstance(data, Tables):
        return data, IN_MEMORY
    if not isinstance(data, Mapping):
        return None, data
    tables = {name: shop for name, shop in data.items() if isinstance(shop, Tables)}
    return tables, {name: IN_MEMORY if name in tables else shop for name, shop in data.items()}


def _places(source: Any) -> dict[str, Any]:
    """The options that name the data."""
    if isinstance(source, Mapping):
        return {"data.shops": {name: str(shop) for name, shop in source.items()}}
    return {"data.source": str(source), "data.shops": {}} if source else {}


def _new_config(
    recipe: str | Path | None,
    source: str | Path | Mapping[str, str | Path] | None,
    base: str | Path | None,
    overrides: Mapping[str, Any] | None,
    arguments: Sequence[str],
) -> Config:
    """The configuration of a new run; that of a warm start begins with the options of its base."""
    if base is None:
        return configure(recipe, source, overrides, arguments)
    if recipe is not None:
        raise ConfigError("a warm start keeps the options of its base; give no recipe with it")
    read_config(Path(base))  # for its errors
    layer = {"warm_start.base": _absolute(str(base)), "warm_start.since": "", "train.init": ""}
    layers = [read_recipe(Path(base, "config.yaml")), layer, _places(source), overrides or {}]
    return _with_absolute_paths(parse(arguments, layers))


def _refuse_empty(**arguments: object) -> None:
    """Raise a ConfigError for empty text, such as an unset variable of the shell gives."""
    for name, value in arguments.items():
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{name} is empty; give a value, or leave it out")


def _run_name(config: Config) -> str:
    return "-".join(config.data.shops) or _place_name(config.data.source)


def _place_name(source: str) -> str:
    path = Path(source).resolve()
    if is_pattern(path.name) or path.name == SPEC_FILE:
        path = path.parent
    return path.stem if path.is_file() else path.name


def _moved(config: Config, source: Any) -> Config:
    """The configuration of a run whose files are now elsewhere, if `source` says so.

    Raises a ConfigError if it names other shops than the run has.
    """
    if source is None or source == IN_MEMORY:
        return config
    if not isinstance(source, Mapping) and not config.data.shops:
        data = replace(config.data, source=str(source))
        return _with_absolute_paths(replace(config, data=data))
    names = list(source) if isinstance(source, Mapping) else [_place_name(str(source))]
    if names != list(config.data.shops):
        raise ConfigError(
            f"the run was trained on {', '.join(config.data.shops) or 'one shop'}, not on "
            f"{', '.join(names)}; name the same shops in the same order"
        )
    data = replace(config.data, shops={name: str(place) for name, place in source.items()})
    return _with_absolute_paths(replace(config, data=data))


def _with_absolute_paths(config: Config) -> Config:
    """The configuration of a run, which must not depend on the directory where it began."""
    data = replace(
        config.data,
        source=_absolute(config.data.source),
        shops={name: _absolute(place) for name, place in config.data.shops.items()},
        layout=_absolute(config.data.layout),
        forgotten=_absolute(config.data.forgotten),
        id_key=_absolute(config.data.id_key),
    )
    text = replace(config.text, pretrained=_absolute(config.text.pretrained))
    train = replace(config.train, init=_absolute(config.train.init))
    return replace(config, data=data, text=text, train=train)


def _absolute(source: str) -> str:
    """The absolute path of files or a directory; other names stay as they are."""
    if not source or source in NAMED_SOURCES:
        return source
    path = Path(source)
    return str(path.absolute()) if path.exists() or is_pattern(source) else source
