"""The directory of a run and its Orbax checkpoints.

run/config.yaml            the resolved configuration
run/catalog/               items, training counts, node types, edges, event types, the whitening of
                           text vectors and the maps of other features (Parquet, JSON, NumPy)
run/refit/                 the model that serves, if there is one: a run fitted on more events
run/checkpoints/STEP/      params; rest: step and optimiser state; vectors: of all nodes, and of
                           the items' text; progress: data position, validation history and
                           checksums (JSON)
"""

import json
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import polars as pl
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy
from safetensors import SafetensorError

from jaxrec.artifacts import checksums
from jaxrec.artifacts.catalog_files import RunArtifacts, read_catalog, write_catalog
from jaxrec.artifacts.files import refuse_file_on_the_way, refuse_url
from jaxrec.config import Config, parse, read_recipe, to_yaml
from jaxrec.data.pseudonyms import key_hash, read_key
from jaxrec.errors import ConfigError, InputError, RunError
from jaxrec.models.inputs import Sizes
from jaxrec.runtime import atomic_path

FORMAT = 5  # of the files in `catalog`
CALIBRATION, DECODER = "calibration.json", "forecast.safetensors"
COOCCURRENCE, SIMILAR_TEXT = "cooccurrence", "similar_text"  # why items are neighbours
NEIGHBOURS = {name: f"{name}.safetensors" for name in (COOCCURRENCE, SIMILAR_TEXT)}
FITTED = (CALIBRATION, DECODER, *NEIGHBOURS.values())  # written when training ends
REFIT = "refit"  # a run directory inside a run, fitted on more events; CALIBRATION comes last
SHOPS = "shops"  # in a run on several shops: a run directory of every shop
SELECTED_BY = "ndcg@10"
KEY_ADVICE = "put its file back there, or name it with --id-key if the command has that option"
WILDCARDS = set("*?[")  # of glob, with which Orbax looks for what it has written
# what damaged files raise in json, NumPy, polars, Orbax and safetensors
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile),
    *(pl.exceptions.PolarsError, SafetensorError),
)


@dataclass(frozen=True)
class Progress:
    """The position of a training run in its data, and its validation results."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the current epoch
    history: tuple[dict[str, float], ...] = ()  # validation metrics, one entry per finished epoch

    @property
    def epochs_since_best(self) -> int:
        """Epochs after the best one. Among equal epochs the last counts, as in Orbax."""
        scores = [metrics[SELECTED_BY] for metrics in self.history]
        return int(np.argmax(scores[::-1])) if scores else 0


def served(run: Path) -> Path:
    """The directory that serves: the refit of a run where it is complete, else the run itself."""
    refit = run / REFIT
    return refit if (refit / CALIBRATION).is_file() else run


@contextmanager
def reading(run: Path, what: str = "the run") -> Iterator[None]:
    """Turn what readers of a run's files raise for unexpected content into a RunError."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{run}: {what} is incomplete or damaged ({reason}); copy it again"
        ) from error


def refuse_existing(run: Path) -> None:
    """Raise a RunError if the path `run` exists, lies in a file, is a URL, or has wildcards."""
    refuse_url(run)
    refuse_file_on_the_way(run)
    _refuse_wildcards(run)
    if run.exists():
        raise RunError(
            f"{run} exists; continue it with --resume {run}, or name another --run directory"
        )


def _refuse_wildcards(run: Path) -> None:
    if found := sorted(WILDCARDS & set(str(run.absolute()))):
        raise RunError(
            f"{run}: Orbax loses the checkpoints that it writes below a path with "
            f"{' and '.join(found)}; name another directory"
        )


def create_run(run: Path, config: Config, artifacts: RunArtifacts) -> None:
    """Write the files of a new run atomically; raises a RunError if the run exists."""
    refuse_existing(run)
    with atomic_path(run) as draft:
        (draft / "catalog").mkdir(parents=True)
        (draft / "config.yaml").write_text(to_yaml(config))
        write_catalog(draft / "catalog", artifacts, FORMAT)


def refuse_other_data(run: Path, artifacts: RunArtifacts) -> None:
    """Raise a RunError unless a run was trained on the data that `artifacts` describe.

    Item numbers and counts depend on the data, so a checkpoint fits no other data.
    """
    old, new = _comparable(read_artifacts(run)), _comparable(artifacts)
    if different := ", ".join(name for name in new if old[name] != new[name]):
        raise RunError(
            f"{run} was trained on other data (they differ in {different}); name its own data, or "
            "start a new run"
        )


def read_config(run: Path) -> Config:
    """The configuration of a run; raises a RunError for other directories and other versions."""
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} is not a run directory: it holds no config.yaml")
    _read_layout(run)  # first, because the options of another version have other names
    return parse(layers=[read_recipe(run / "config.yaml")])


def read_artifacts(run: Path) -> RunArtifacts:
    """The artifacts of a run; raises a RunError if they are missing or of another version."""
    layout = _read_layout(run)
    with reading(run):
        return read_catalog(run / "catalog", layout)


def uses_id_key(run: Path) -> bool:
    """Whether the user ids of a run are keyed hashes."""
    return bool(_read_layout(run).get("id_key_hash"))


def read_id_key(run: Path, given: Path | None = None) -> bytes:
    """The key of the user ids of a run; empty for a run without one.

    Args:
        given: the file of the key, by default the one of training.

    Raises:
        ConfigError: the key is missing, cannot be used, or is another than that of training.
    """
    trained_with = Path(read_config(run).data.id_key)
    expected = _read_layout(run).get("id_key_hash", "")
    if not expected and given is not None:
        raise ConfigError(f"{run} was trained without a key of user ids; leave --id-key out")
    if not expected:
        return b""
    path = given or trained_with
    key = read_key(path, f"{run} was trained with a key of user ids: {KEY_ADVICE}")
    if key_hash(key) != expected:
        raise ConfigError(
            f"{path} holds another key than the one that {run} was trained with: {KEY_ADVICE}, or "
            "train again"
        )
    return key


def _comparable(artifacts: RunArtifacts) -> dict[str, Any]:
    """Parts of the artifacts that depend on the data, as values that `==` compares."""
    graph = artifacts.catalog.graph
    return {
        "nodes": [(node_type.name, node_type.ids.to_list()) for node_type in graph.types],
        "relations": graph.relations,
        "edges": [a.tobytes() for a in (graph.heads, graph.edge_relations, graph.tails)],
        "event types": artifacts.event_type_names,
        "training events": [artifacts.counts.tobytes(), artifacts.has_trained_id.tobytes()],
        "text vector size": artifacts.sizes.text_width,
        "vector columns": artifacts.features.raw_widths,
        "numeric columns": artifacts.sizes.numbers,
        "key of user ids": artifacts.id_key_hash,
    }


def _read_layout(run: Path) -> dict[str, Any]:
    path = run / "catalog" / "layout.json"
    if not path.is_file():
        raise RunError(f"{run} is not a complete run directory: it holds no catalog/layout.json")
    with reading(run, "catalog/layout.json"):
        layout = json.loads(path.read_text())
        number = layout["format"]
    if number != FORMAT:
        raise RunError(
            f"{run} has format {number}; this version reads format {FORMAT}. Train "
            "again, or use the version of jaxrec that wrote it"
        )
    return layout


def open_checkpoints(run: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """An Orbax manager that keeps the best and the last checkpoint of a run.

    Raises:
        RunError: the path has wildcards, and is not only read.
    """
    if not read_only:
        _refuse_wildcards(run)
    score = itemgetter(SELECTED_BY)
    policies = [
        preservation_policy.LatestN(1),
        preservation_policy.BestN(n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False),
    ]
    logger = logging.getLogger("absl")
    level = logger.level
    if read_only:  # Orbax would warn of every option that needs to write
        logger.setLevel(logging.ERROR)
    try:
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=score,
            # or, after a failed save, threads wait 20 minutes for what it did not create
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager((run / "checkpoints").absolute(), options=options)
    finally:
        logger.setLevel(level)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    params: Any,
    rest: Any,
    vectors: dict[str, jax.Array],
    progress: Progress,
    metrics: dict[str, float] | None = None,
) -> None:
    """Begin to save a checkpoint, unless its step is saved already; a thread writes it.

    It appears when it is complete. The arrays may be donated as soon as this returns. What fails in
    the thread comes out of `raise_failed_save`, `all_saved` or the next save.

    Args:
        metrics: None for a state that is not validated, which cannot be the best one.
    """
    if manager.latest_step() == step:
        return
    sums = {
        "params": checksums.of_tree(params),
        "vectors": checksums.of_tree(vectors),
        "catalog": _catalog_checksum(Path(manager.directory).parent),
    }
    arrays = {"params": params, "rest": rest, "vectors": vectors}
    if jax.process_count() == 1:
        arrays = jax.device_get(arrays)  # Orbax saves NumPy arrays in half the time
    # Orbax logs the traceback of what it raises, some threads only later
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    manager.save(
        step,
        metrics=metrics,
        args=ocp.args.Composite(
            **{name: ocp.args.StandardSave(part) for name, part in arrays.items()},
            progress=ocp.args.JsonSave({**asdict(progress), "checksums": sums}),
        ),
    )


def raise_failed_save(manager: ocp.CheckpointManager) -> None:
    """Raise the error of the last save if it has failed by now."""
    if not manager.is_saving_in_progress():
        manager.wait_until_finished()


@contextmanager
def all_saved(manager: ocp.CheckpointManager) -> Iterator[None]:
    """A block that ends, even by an error, when the last checkpoint is written."""
    try:
        yield
    finally:
        manager.wait_until_finished()


def unfinished(run: Path) -> tuple[str, ...]:
    """Notes on the incomplete checkpoints of a killed process; they are not read."""
    ends = ocp.utils.TMP_DIR_SUFFIX
    names = sorted(path.name.split(ends)[0] for path in run.glob(f"checkpoints/*{ends}*"))
    return tuple(
        f"the checkpoint of step {name} was not complete when training ended, so it is deleted"
        for name in names
    )


def vector_targets(
    config: Config, sizes: Sizes, sharding: Sharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and sharding of a checkpoint's `vectors`, as `restore` takes them."""
    shapes = {
        "nodes": (sizes.num_nodes, config.model.hidden_size * len(config.model.experts)),
        "text": (sizes.num_items, sizes.text_width),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        for name, shape in shapes.items()
    }


def restore(manager: ocp.CheckpointManager, step: int, **targets: Any) -> dict[str, Any]:
    """Parts of a checkpoint by name, each with the shapes and shardings of its target."""
    arguments = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**arguments))
    return {name: restored[name] for name in targets}


def restore_progress(manager: ocp.CheckpointManager, step: int) -> Progress:
    """The data position and the validation history of a checkpoint."""
    saved = _progress(manager, step)
    return Progress(saved["epoch"], saved["step"], tuple(saved["history"]))


def restore_best(run: Path, **targets: Any) -> tuple[int, dict[str, Any]]:
    """The best step of a run and parts of its checkpoint, whole and of the run's catalogue.

    Raises:
        RunError: there is no validated checkpoint, or it is incomplete, damaged or of another
            catalogue.
    """
    with open_checkpoints(run, read_only=True) as manager:
        best = _best_step(manager, run)
        try:
            restored = restore(manager, best, **targets)
            expected = _progress(manager, best).get("checksums", {})
        except (ValueError, OSError, KeyError) as error:
            raise RunError(
                f"the checkpoint of step {best} in {run} cannot be read, as if it were incomplete "
                f"({str(error).splitlines()[0]}). Copy the run again, or resume its training"
            ) from error
    actual = {name: checksums.of_tree(part) for name, part in restored.items()}
    actual["catalog"] = _catalog_checksum(run)
    if different := [name for name, value in actual.items() if expected.get(name, value) != value]:
        raise RunError(
            f"the checkpoint of step {best} in {run} does not fit its checksums "
            f"({', '.join(different)}): it is damaged, or belongs to another catalogue. Copy the "
            "whole run again"
        )
    return best, restored


def identity(run: Path) -> str:
    """What is served from a run: it changes with the best checkpoint's content and calibration.

    Raises a RunError if there is no validated checkpoint.
    """
    with open_checkpoints(run := served(run), read_only=True) as manager:
        best = _best_step(manager, run)
        progress = _progress(manager, best)
    fitted = checksums.of_files([path for name in FITTED for path in run.glob(name)])
    return json.dumps([best, progress.get("checksums"), _catalog_checksum(run), fitted])


def file_states(run: Path) -> set[tuple[str, int, int]]:
    """Path, size and time of change (ns) of every file that `load` reads."""
    run = served(run)
    files = [run / name for name in ("config.yaml", *FITTED)]
    for root in (run / "checkpoints", run / "catalog"):
        files += [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    states = set()
    for path in files:
        with suppress(FileNotFoundError):  # training deletes old checkpoints meanwhile
            state = path.stat()
            states.add((str(path), state.st_size, state.st_mtime_ns))
    return states


def _best_step(manager: ocp.CheckpointManager, run: Path) -> int:
    best = manager.best_step()
    if best is None:
        raise RunError(f"{run} holds no validated checkpoint yet; train it with --resume {run}")
    return best


def _progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(progress=ocp.args.JsonRestore())
    return manager.restore(step, args=args).progress


def _catalog_checksum(run: Path) -> str:
    return checksums.of_files(path for path in (run / "catalog").iterdir() if path.is_file())
