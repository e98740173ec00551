"""A run directory -> the trained model that scores."""

import json
from pathlib import Path
from typing import Any

from flax import nnx

from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.config import TextConfig
from jaxrec.data.text import resolve_pretrained
from jaxrec.errors import RunError
from jaxrec.evaluation.calibration import Correction, with_prior
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.recommender import Recommender, split
from jaxrec.models.text.bert import Bert, BertConfig
from jaxrec.models.text.finetuned import TextTower
from jaxrec.models.text.whitening import Whitening
from jaxrec.sharding import laid_out, make_mesh, replicated


def load(run: str | Path, item_shards: int = 1) -> TrainedModel:
    """The best checkpoint of a run directory.

    >>> import jaxrec
    >>> model = jaxrec.load("runs/shop")
    >>> model.recommend(events, k=3).columns
    ['user_id', 'rank', 'item_id', 'score', 'title']

    Args:
        item_shards: devices along the `items` axis of the mesh; the others go along `users`.

    Raises:
        RunError: not a run directory, one of another version, or one without a finished
            checkpoint.
    """
    run = Path(run)
    config, trained = checkpoint.read_config(run), checkpoint.read_artifacts(run)
    model = nnx.eval_shape(
        lambda: Recommender(
            config.model, trained.sizes, nnx.Rngs(0), _tower(config.text, trained.whitening)
        )
    )
    definition, shapes = split(model)
    mesh = make_mesh(item_shards)
    vectors = checkpoint.vector_targets(config, trained.sizes, replicated(mesh))
    step, saved = _best_checkpoint(run, laid_out(shapes, replicated(mesh)), vectors)
    inverse_temperature, correction = _calibration(run)
    return TrainedModel(
        config=config,
        step=step,
        trained=trained,
        catalog=trained.catalog,
        definition=definition,
        params=nnx.to_pure_dict(saved["params"]),
        vectors=with_prior(saved["vectors"]["nodes"], correction.prior(trained.counts)),
        text=saved["vectors"]["text"],
        inverse_temperature=inverse_temperature,
        correction=correction,
        mesh=mesh,
    )


def _best_checkpoint(run: Path, params: Any, vectors: Any) -> tuple[int, dict[str, Any]]:
    """The best step of a run, and what of it has the shapes and shardings of the arguments."""
    with checkpoint.open_checkpoints(run, read_only=True) as manager:
        best = manager.best_step()
        if best is None:
            raise RunError(f"{run} holds no validated checkpoint yet; train it with --resume {run}")
        try:
            return best, checkpoint.restore(manager, best, params=params, vectors=vectors)
        except (ValueError, OSError, KeyError) as error:
            raise RunError(
                f"the checkpoint of step {best} in {run} cannot be read, as if it were incomplete "
                f"({str(error).splitlines()[0]}). Copy the run again, or resume its training"
            ) from error


def _calibration(run: Path) -> tuple[float, Correction]:
    """The inverse temperature and the correction, once a run has been calibrated."""
    path = run / checkpoint.CALIBRATION
    if not path.exists():
        return 1.0, Correction()
    fitted = json.loads(path.read_text())
    return fitted["inverse_temperature"], Correction(**fitted["correction"])


def _tower(config: TextConfig, whitening: Whitening | None) -> TextTower | None:
    if config.mode == "frozen" or whitening is None:
        return None
    bert = BertConfig.from_file(resolve_pretrained(config.pretrained))
    return TextTower(Bert(bert, rngs=nnx.Rngs(0)), config.finetune_layers)
