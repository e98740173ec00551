"""Loads the trained model of a run directory."""

import json
from dataclasses import replace
from pathlib import Path

from flax import nnx
from jax.sharding import NamedSharding

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.decoder_file import read_decoder
from jaxrec.artifacts.mapped import restore_mapped
from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.config import Config, TextConfig
from jaxrec.errors import RunError
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.catalog_index import CatalogIndex, padded_bias
from jaxrec.inference.neighbours_file import read_neighbours
from jaxrec.inference.text_features import trained_encoder
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.build import build_model
from jaxrec.models.recommender import Model, ModelDef, split
from jaxrec.models.text.build import build_text_encoder
from jaxrec.models.text.finetuned import TextTower
from jaxrec.partitioning import BY_ITEM
from jaxrec.sharding import laid_out, make_mesh, refuse_fork, replicated, shardings


def load(
    run: str | Path,
    item_shards: int = 1,
    *,
    shared: bool = False,
    id_key: str | Path | None = None,
    selected: bool = False,
) -> TrainedModel:
    """The model that a run directory serves: its refit, or else its best checkpoint.

    >>> import jaxrec
    >>> model = jaxrec.load("runs/shop")
    >>> model.recommend(events, k=3).columns
    ['user_id', 'rank', 'item_id', 'score', 'title']

    Args:
        item_shards: devices along the `items` axis of the mesh; the others go along `users`.
        shared: map the arrays from files of the cache directory, so that the processes of a
            machine hold them once. CPUs alone can share.
        id_key: the file of the key of user ids, by default the one of training. User ids in
            results are pseudonyms then.
        selected: load the best checkpoint even if a refit serves. A refit has learned from the
            held-out events, so they do not test it.

    Raises:
        ConfigError: the key is missing, or is not the one of training.
        RunError: not a run directory, one of another version, a damaged one, or one without a
            validated checkpoint; or its text encoder has changed; or this process is a fork of one
            that has used JAX.
    """
    refuse_fork()
    directory = Path(run) if selected else run_directory.served(Path(run))
    key = run_directory.read_id_key(directory, None if id_key is None else Path(id_key))
    model = load_directory(directory, item_shards, shared=shared)
    return replace(model, id_key=key)


def load_directory(run: Path, item_shards: int = 1, *, shared: bool = False) -> TrainedModel:
    """The best checkpoint of this very directory, even if its refit serves; see `load`."""
    config, artifacts = run_directory.read_config(run), run_directory.read_artifacts(run)
    definition, shapes = abstract_model(config, artifacts)
    mesh = make_mesh(item_shards)
    rows, places = replicated(mesh), replicated(mesh)
    if item_shards > 1:
        rows, places = NamedSharding(mesh, BY_ITEM), shardings(shapes, mesh)
    targets = run_directory.vector_targets(config, artifacts.sizes, rows)
    params = laid_out(shapes, places)
    mapped = None
    if shared:
        step, saved, mapped = restore_mapped(run, params=params, vectors=targets)
    else:
        step, saved = run_directory.restore_best(run, params=params, vectors=targets)
    inverse_temperature, correction = read_calibration(run)
    catalog, vectors = artifacts.catalog, saved["vectors"]
    bias = padded_bias(correction, artifacts.counts, catalog.graph.types[0].padded_size)
    index = CatalogIndex(catalog, vectors["nodes"], bias, vectors["text"], artifacts.counts, mapped)
    # JAX flattens a plain dict of parameters faster, which counts in small calls
    return TrainedModel(
        config=config,
        step=step,
        artifacts=artifacts,
        model=Model(definition, nnx.to_pure_dict(saved["params"])),
        index=index,
        inverse_temperature=inverse_temperature,
        correction=correction,
        neighbours=read_neighbours(run),
        mesh=mesh,
        decoder=read_decoder(run, step, vectors["nodes"].shape[1]),
    )


def abstract_model(config: Config, artifacts: RunArtifacts) -> tuple[ModelDef, nnx.State]:
    """The definition of a trained model, and the shapes of its parameters."""
    return split(
        nnx.eval_shape(lambda: build_model(config, artifacts.sizes, _tower(config.text, artifacts)))
    )


def read_calibration(run: Path) -> tuple[float, Correction]:
    """The inverse temperature and the correction; neutral before a run is calibrated."""
    path = run / run_directory.CALIBRATION
    if not path.exists():
        return 1.0, Correction()
    with run_directory.reading(run, run_directory.CALIBRATION):
        fitted = json.loads(path.read_text())
        return float(fitted["inverse_temperature"]), Correction.of(fitted["correction"])


def refuse_unfinished(run: Path) -> None:
    """Raise a RunError unless the training of a run has ended, with its calibration."""
    if not (run / run_directory.CALIBRATION).is_file():
        raise RunError(f"{run}: its training has not ended; continue it with --resume {run}")


def _tower(config: TextConfig, artifacts: RunArtifacts) -> TextTower | None:
    if config.mode == "frozen" or artifacts.whitening is None:
        return None
    directory = trained_encoder(config.pretrained, artifacts.text_encoder)
    encoder = build_text_encoder(directory, config.pooling, rngs=nnx.Rngs(0))
    return TextTower(encoder, config.finetune_layers)
