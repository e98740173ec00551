"""A directory with everything that a device needs to recommend without a server."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int16

from jaxrec.artifacts.files import refuse_file_on_the_way
from jaxrec.data.graph import ITEM
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.edge.page import write_page
from jaxrec.inference.edge.programs import PLATFORMS, export_programs
from jaxrec.inference.encoding import initial_states, state_shapes
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.runtime import atomic_path
from jaxrec.types import ANY_EVENT_TYPE, NEG_INF

FORMAT = 3  # of the directory; it changes when readers must change
MANIFEST, VECTORS, ITEMS = "manifest.json", "item_vectors.npy", "items"
ExportFormat = Literal["jax", "onnx", "page"]
VectorPrecision = Literal["float32", "int16", "int8"]


@dataclass(frozen=True)
class VectorFile:
    """The file of the item vectors, to whose bytes an ONNX graph refers."""

    name: str
    offset: int  # of the first vector
    vectors: Float[np.ndarray, "n F"] | Int16[np.ndarray, "n F"]
    unit: float  # the vectors are the numbers of the file times this


@dataclass(frozen=True)
class Manifest:
    """What a reader needs to know beside the programs.

    Attributes:
        model: version of the model; states of another version do not fit.
        target_event_type: number of the event type that the run predicts, or -1 for any.
        masked_event_types: numbers of the event types whose items a list leaves out.
        repeat_bias: [1 + target event type][event type][age], added to the score of a past event's
            item; age 0 is the newest event.
        vector_unit: item vectors are the numbers of their file times this.
        neighbours: how events raise related items, for each relation: its name, the files of the
            neighbours of every item and of what an event adds to their scores, the weights of the
            latter by the age of the event, and the numbers of the event types that count.
        state_parts: the arrays that a state consists of, in their order, with their shapes.
        has_time: False: times are positions, so every gap is -1.
        programs: file -> formats, platforms, inputs and outputs.
    """

    model: str
    step: int
    event_types: tuple[str, ...]
    target_event_type: int
    masked_event_types: list[int]
    has_time: bool
    num_items: int
    vector_width: int
    vector_unit: float
    item_precision: VectorPrecision
    state_size: int
    state_parts: dict[str, tuple[int, ...]]
    initial_state: list[float]
    repeat_bias: list[list[list[float]]]
    neighbours: list[dict[str, Any]]
    programs: dict[str, Any]


def write_directory(
    model: TrainedModel,
    path: Path,
    formats: Sequence[ExportFormat] = ("jax", "onnx"),
    item_precision: VectorPrecision = "int16",
    page_runtime: Path | None = None,
) -> None:
    """Write the directory `path`, which appears whole or not at all.

    Args:
        item_precision: of the item vectors. `int16` rounds them to multiples of one unit, and so
            what events add to related items. `int8` searches by 8-bit codes and scores what it
            finds by these vectors; it concerns ONNX alone.
        page_runtime: see `write_page`.

    Raises:
        ConfigError: a package is missing, or the format does not know the model.
        FetchError: what the page runs on cannot be downloaded.
        RunError: the directory exists and is not empty.
    """
    if not formats:
        raise ConfigError("--formats: give one or more of jax, onnx, page")
    if "page" in formats and "onnx" not in formats:
        raise ConfigError("--formats: the page runs the programs of onnx; give that too")
    refuse_file_on_the_way(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunError(f"{path} exists and is not overwritten; name another directory")
    with atomic_path(path) as draft:
        draft.mkdir()
        file = _write_items(model, draft, item_precision)
        width = file.vectors.shape[1]
        programs: dict[str, Any] = {}
        state = np.asarray(initial_states(model.model, 1))[0]
        if "jax" in formats:
            exported = export_programs(model.model, len(state), width)
            for name, content in exported.items():
                (draft / f"{name}.jax").write_bytes(content)
            programs |= jax_programs()
        if "onnx" in formats:
            _write_onnx(model, draft, file, item_precision)
            programs |= onnx_programs()
        if "page" in formats:
            write_page(draft, page_runtime)
        neighbours = [
            _write_neighbours(model, name, draft, item_precision) for name in model.neighbours
        ]
        manifest = _manifest(model, state, file, item_precision, programs, neighbours)
        about = {"format": FORMAT, "jaxrec": version("jaxrec"), "jax": version("jax")}
        (draft / MANIFEST).write_text(json.dumps(about | asdict(manifest), allow_nan=False))


def jax_programs() -> dict[str, Any]:
    """The inputs and outputs of the programs of `export_programs`."""
    common = {"format": "jax.export", "platforms": PLATFORMS}
    state = ["state float32 [B, state_size]"]
    update = [*state, "item_vector float32 [B, vector_width]", "event_type int32 [B]"]
    many = ["item_vectors float32 [B, T, vector_width]", "event_types int32 [B, T]"]
    many += ["gaps int32 [B, T]", "valid bool [B, T]"]
    target = [*state, "target_event_type int32 [B]", "time_since_last int32 [B]"]
    return {
        "update.jax": common | {"inputs": [*update, "gap int32 [B]"], "outputs": state},
        "update_many.jax": common | {"inputs": [*state, *many], "outputs": state},
        "user_vector.jax": common
        | {"inputs": target, "outputs": ["user_vector float32 [B, vector_width]"]},
    }


def onnx_programs() -> dict[str, Any]:
    """The inputs and outputs of the ONNX graphs."""
    common, state = {"format": "onnx"}, "float32 [B, state_size]"
    update = [f"state {state}", "item_vector float32 [B, vector_width]", "event_type int64 [B]"]
    recommend = [
        *("state float32 [1, state_size]", "target_event_type int64 [1]"),
        *("time_since_last int64 [1]", "adjusted_items int64 [X]"),
        *("adjustments float32 [X]", "k int64 [1]"),
    ]
    return {
        "update.onnx": common
        | {"inputs": [*update, "gap int64 [B]"], "outputs": [f"new_state {state}"]},
        "recommend.onnx": common
        | {"inputs": recommend, "outputs": ["items int64 [k]", "scores float32 [k]"]},
    }


def _manifest(
    model: TrainedModel,
    state: Float[np.ndarray, " S"],
    file: VectorFile,
    item_precision: VectorPrecision,
    programs: dict[str, Any],
    neighbours: list[dict[str, Any]],
) -> Manifest:
    names = model.artifacts.event_type_names
    bias, masked = model.ranker.history_bias, model.config.evaluation.mask
    return Manifest(
        model=model.version,
        step=model.step,
        event_types=names,
        target_event_type=model.encoder.target_event_type,
        masked_event_types=np.flatnonzero(masked_event_types(masked, names)).tolist(),
        has_time=model.config.data.time == "timestamp",
        num_items=len(file.vectors),
        vector_width=file.vectors.shape[1],
        vector_unit=file.unit,
        item_precision=item_precision,
        state_size=len(state),
        state_parts=state_shapes(model.model),
        initial_state=state.tolist(),
        repeat_bias=[bias[target].repeats.tolist() for target in range(ANY_EVENT_TYPE, len(names))],
        neighbours=neighbours,
        programs=programs,
    )


def _write_neighbours(
    model: TrainedModel, name: str, directory: Path, item_precision: VectorPrecision
) -> dict[str, Any]:
    """Write the neighbours of every item; returns an entry of the manifest."""
    neighbours, count = model.neighbours[name], model.catalog.num_items
    amounts, unit = neighbours.amounts, 1.0
    if item_precision != "float32":
        amounts, unit = in_units(amounts, np.uint16)
    ages = np.arange(neighbours.newest)
    items = neighbours.items.astype(np.uint16 if count <= 2**16 else np.int32)
    parts = {"items": items, "amounts": amounts}
    files = {part: f"{name}_{part}.npy" for part in parts}
    for part, rows in parts.items():
        new = max(count - len(rows), 0)  # items that training has not seen
        np.save(directory / files[part], np.pad(rows[:count], ((0, new), (0, 0))))
    return files | {
        "name": name,
        "weights": (unit * 0.5 ** (ages / neighbours.half_life)).tolist(),
        "event_types": np.flatnonzero(neighbours.event_types).tolist(),
    }


def in_units(values: np.ndarray, dtype: type[np.integer]) -> tuple[np.ndarray, float]:
    """Values as whole multiples of a unit, and the unit, with which the largest one just fits.

    Scores are sums, so all values get the same step; float16 has wider steps for large values.
    """
    unit = float(np.abs(values).max(initial=0)) / np.iinfo(dtype).max or 1.0
    return np.rint(values / unit).astype(dtype), unit


def _write_items(
    model: TrainedModel, directory: Path, item_precision: VectorPrecision
) -> VectorFile:
    """Write names, biases and vectors of the items in the order of their numbers."""
    count, unit = model.catalog.num_items, 1.0
    vectors = model.index.host_vectors(ITEM)[:count]
    if item_precision != "float32":
        vectors, unit = in_units(vectors, np.int16)
    np.save(directory / VECTORS, vectors)
    names = model.index.names(ITEM, np.arange(count))
    # readers without Parquet, such as a page, read the same names from JSON
    (directory / f"{ITEMS}.json").write_text(json.dumps(names.to_dict(as_series=False)))
    numbered = names.with_columns(bias=pl.Series(item_bias(model))).with_row_index("item")
    numbered.write_parquet(directory / f"{ITEMS}.parquet")
    offset = (directory / VECTORS).stat().st_size - vectors.nbytes
    return VectorFile(VECTORS, offset, vectors, unit)


def item_bias(model: TrainedModel) -> Float[np.ndarray, " n"]:
    """The bias of every item for its popularity; that of row 0, the unknown item, leaves it out."""
    items, count = model.index.items, model.catalog.num_items
    biases = np.where(items.valid, items.biases, NEG_INF)[:count]
    return np.maximum(biases, NEG_INF).astype(np.float32)


def _write_onnx(
    model: TrainedModel,
    directory: Path,
    file: VectorFile,
    item_precision: VectorPrecision,
) -> None:
    # imports onnx, an extra
    from jaxrec.inference.edge.onnx_model import (
        check_supported,
        recommend_model,
        update_model,
    )

    config, recommender = model.config.model, model.model.merge()
    check_supported(config)
    update = update_model(recommender, config, file.vectors.shape[1])
    (directory / "update.onnx").write_bytes(update)
    recommend = recommend_model(
        recommender, config, file, item_bias(model), search_codes=item_precision == "int8"
    )
    (directory / "recommend.onnx").write_bytes(recommend)
