"""What a run leaves behind: Orbax checkpoints, its configuration and its vocabularies.

run/config.yaml            the resolved configuration
run/catalog/               items and how often they were chosen, node types, edges, event types and
                           the whitening of text (Parquet, JSON, NumPy)
run/checkpoints/STEP/      params; rest: optimiser state; vectors: of all nodes, and of the
                           items' text; progress: data position and validation history (JSON)
"""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import polars as pl
from jax.sharding import Sharding
from jaxtyping import Bool, Float
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxrec.config import Config, parse, read_recipe, to_yaml
from jaxrec.errors import RunError
from jaxrec.models.recommender import Sizes
from jaxrec.models.text.whitening import Whitening
from jaxrec.types import Catalog, KnowledgeGraph, NodeType

FORMAT = 4
CALIBRATION = "calibration.json"  # what validation corrects; written when training ends
SELECTED_BY = "ndcg@10"


@dataclass(frozen=True)
class Progress:
    """Where in the data a checkpoint stands; `history` holds a row a validated epoch."""

    epoch: int = 0
    step: int = 0  # batches of the epoch that are done
    history: tuple[dict[str, float], ...] = ()

    @property
    def epochs_since_best(self) -> int:
        """Validated epochs after the best one: of equals the last, which Orbax keeps."""
        scores = [row[SELECTED_BY] for row in self.history]
        return int(np.argmax(scores[::-1])) if scores else 0


def refuse_existing(run: Path) -> None:
    """Raise RunError if there is something at `run` already."""
    if run.exists():
        raise RunError(
            f"{run} exists; continue it with --resume {run}, or name another --run directory"
        )


@dataclass(frozen=True)
class RunArtifacts:
    """What a run knows beside its parameters."""

    catalog: Catalog
    counts: Float[np.ndarray, " I"]  # how often every item was chosen in training
    with_ids: Bool[np.ndarray, " I"]  # items whose own id was trained, by events of any event_type
    event_type_names: tuple[str, ...]
    sizes: Sizes
    whitening: Whitening | None  # None where the model reads no text


def create_run(run: Path, config: Config, trained: RunArtifacts) -> None:
    """Write the files of a new run; the directory appears whole or not at all.

    Raises:
        RunError: it exists already.
    """
    refuse_existing(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    draft = run.with_name(f".{run.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "catalog").mkdir(parents=True)
    (draft / "config.yaml").write_text(to_yaml(config))
    _write_artifacts(draft / "catalog", trained)
    draft.rename(run)


def refuse_other_data(run: Path, trained: RunArtifacts) -> None:
    """Raise RunError if a run was begun with other data: its numbers would mean other things."""
    begun = read_artifacts(run)
    before, now = begun.catalog.graph, trained.catalog.graph
    alike = {
        "nodes": [(t.name, t.ids.to_list()) for t in before.types]
        == [(t.name, t.ids.to_list()) for t in now.types],
        "relations": before.relations == now.relations,
        "edges": all(
            np.array_equal(getattr(before, part), getattr(now, part))
            for part in ("heads", "edge_relations", "tails")
        ),
        "event types": begun.event_type_names == trained.event_type_names,
        "training events": np.array_equal(begun.counts, trained.counts)
        and np.array_equal(begun.with_ids, trained.with_ids),
        "width of text": begun.sizes.text_width == trained.sizes.text_width,
    }
    if not all(alike.values()):
        other = ", ".join(name for name, same in alike.items() if not same)
        raise RunError(
            f"{run} was begun with other data (they differ in {other}); resume it with those, or "
            "begin a new run"
        )


def read_config(run: Path) -> Config:
    """The configuration of a run.

    Raises:
        RunError: it is not a run directory.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise RunError(f"{run} is not a run directory: it holds no config.yaml")
    return parse(layers=[read_recipe(path)])


def read_artifacts(run: Path) -> RunArtifacts:
    """The catalogue of a run and what belongs to it.

    Raises:
        RunError: they are missing, or were written by another version.
    """
    updater = run / "catalog"
    if not (updater / "layout.json").is_file():
        raise RunError(f"{run} is not a whole run directory: it holds no catalog/layout.json")
    layout = json.loads((updater / "layout.json").read_text())
    if layout["format"] != FORMAT:
        raise RunError(
            f"{run} has format {layout['format']}; this version reads {FORMAT}. Train it anew, or "
            "use the version of jaxrec that wrote it"
        )
    names = pl.read_parquet(updater / "nodes.parquet").partition_by("type", as_dict=True)
    edges = pl.read_parquet(updater / "edges.parquet")
    types = tuple(
        NodeType(name, names[(name,)]["id"], offset) for name, offset in layout["types"].items()
    )
    graph = KnowledgeGraph(
        types,
        tuple(layout["relations"]),
        *(edges[column].to_numpy() for column in ("head", "relation", "tail")),
    )
    whitening = updater / "whitening.npz"
    return RunArtifacts(
        catalog=Catalog(pl.read_parquet(updater / "items.parquet"), graph),
        counts=np.load(updater / "counts.npy", allow_pickle=False),
        with_ids=np.load(updater / "with_ids.npy", allow_pickle=False),
        event_type_names=tuple(layout["event_types"]),
        sizes=Sizes(**layout["sizes"]),
        whitening=Whitening(**np.load(whitening)) if whitening.exists() else None,
    )


def open_checkpoints(run: Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """The manager that keeps a run's best and last checkpoints."""
    policies = [
        preservation_policy.LatestN(1),
        preservation_policy.BestN(
            n=1,
            get_metric_fn=lambda metrics: metrics[SELECTED_BY],
            keep_checkpoints_without_metrics=False,
        ),
    ]
    options = ocp.CheckpointManagerOptions(
        read_only=read_only,
        create=not read_only,
        save_interval_steps=0 if read_only else 1,
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        best_fn=lambda metrics: metrics[SELECTED_BY],
        # the arrays of a step are donated to the next one, so a save must have read them all
        enable_async_checkpointing=False,
        cleanup_tmp_directories=not read_only,
    )
    logger = logging.getLogger("absl")
    level = logger.level
    if read_only:  # Orbax warns that it will only read
        logger.setLevel(logging.ERROR)
    try:
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
    """Save atomically, unless this step is saved already."""
    if manager.latest_step() == step:
        return
    manager.save(
        step,
        metrics=metrics,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            rest=ocp.args.StandardSave(rest),
            vectors=ocp.args.StandardSave(vectors),
            progress=ocp.args.JsonSave(
                {"epoch": progress.epoch, "step": progress.step, "history": progress.history}
            ),
        ),
    )


def vector_targets(
    config: Config, sizes: Sizes, sharding: Sharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """What to restore the part `vectors` of a checkpoint to."""
    shapes = {
        "nodes": (sizes.num_nodes, 1 + config.model.hidden_size * len(config.model.experts)),
        "text": (sizes.num_items, sizes.text_width),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        for name, shape in shapes.items()
    }


def restore(manager: ocp.CheckpointManager, step: int, **targets: Any) -> dict[str, Any]:
    """Partitions of a checkpoint by name, each laid out like its target (shapes with shardings)."""
    parts = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**parts))
    return {name: restored[name] for name in targets}


def restore_progress(manager: ocp.CheckpointManager, step: int) -> Progress:
    """The data position of a checkpoint and the validation history up to it."""
    args = ocp.args.Composite(progress=ocp.args.JsonRestore())
    place = manager.restore(step, args=args).progress
    return Progress(place["epoch"], place["step"], tuple(place["history"]))


def _write_artifacts(updater: Path, trained: RunArtifacts) -> None:
    graph = trained.catalog.graph
    layout = {
        "format": FORMAT,
        "types": {node_type.name: node_type.offset for node_type in graph.types},
        "relations": graph.relations,
        "event_types": trained.event_type_names,
        "sizes": asdict(trained.sizes),
    }
    (updater / "layout.json").write_text(json.dumps(layout, indent=2))
    trained.catalog.items.write_parquet(updater / "items.parquet")
    np.save(updater / "counts.npy", trained.counts)
    np.save(updater / "with_ids.npy", trained.with_ids)
    if trained.whitening is not None:
        np.savez(updater / "whitening.npz", **vars(trained.whitening))
    pl.concat(
        pl.DataFrame({"id": node_type.ids}).select(pl.lit(node_type.name).alias("type"), "id")
        for node_type in graph.types
    ).write_parquet(updater / "nodes.parquet")
    pl.DataFrame(
        {"head": graph.heads, "relation": graph.edge_relations, "tail": graph.tails}
    ).write_parquet(updater / "edges.parquet")
