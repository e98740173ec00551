"""The weights of a Hugging Face checkpoint, by the name table of a text encoder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxrec.errors import CheckpointError
from jaxrec.models.text.encoder import TextEncoder

Encoder = TypeVar("Encoder", bound=TextEncoder)


def load_weights(encoder: Encoder, directory: Path) -> Encoder:
    """The encoder with the weights of a checkpoint directory.

    Args:
        encoder: shapes are enough, as `nnx.eval_shape` makes them.
        directory: holds safetensors weights, in one file or in shards.

    Raises:
        CheckpointError: there is no safetensors file, or weights are missing, left over or of
            another shape.
    """
    graphdef, state = nnx.split(encoder)
    params = dict(nnx.to_flat_state(state))
    names = {path: _checkpoint_name(path, encoder.weight_names) for path in params}
    weights = _read_weights(directory)
    _check_names(set(names.values()), set(weights), directory)
    loaded = []
    for path, param in params.items():
        weight = weights[names[path]]
        if path[-1] == "kernel":  # PyTorch stores [outputs, inputs]
            weight = weight.T
        if weight.shape != param.shape:
            raise CheckpointError(
                f"{directory}: {names[path]} has the shape {weight.shape}, but config.json says "
                f"{param.shape}: they belong to different models"
            )
        loaded.append((path, param.replace(jnp.asarray(weight, param.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def _checkpoint_name(path: tuple[object, ...], names: Mapping[str, str]) -> str:
    """The name in a checkpoint of the encoder's parameter at `path`."""
    *module, parameter = path
    key = ".".join("{}" if isinstance(part, int) else str(part) for part in module)
    layer = [part for part in module if isinstance(part, int)]
    return names[key].format(*layer) + (".bias" if parameter == "bias" else ".weight")


def _read_weights(directory: Path) -> dict[str, np.ndarray]:
    """Weights of the encoder, under the names of the present transformers library."""
    weights = {}
    for shard in _shards(directory):
        try:
            for name, weight in load_file(shard).items():
                weights[_current_name(name)] = weight
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read {shard}: {error}. Fetch a damaged file again; convert a pickle "
                "(pytorch_model.bin) where PyTorch is installed, with AutoModel.from_pretrained"
                f"({str(directory)!r}).save_pretrained({str(directory)!r})"
            ) from error
    # leave out poolers, heads of pretraining or of a task, and a constant of old versions
    return {
        name: weight
        for name, weight in weights.items()
        if name.startswith(("embeddings.", "encoder.")) and name != "embeddings.position_ids"
    }


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    return [directory / name for name in set(json.loads(index.read_text())["weight_map"].values())]


def _current_name(name: str) -> str:
    """The name without the prefix of models with a head and TensorFlow's LayerNorm names."""
    name = name.removeprefix("bert.")
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _check_names(expected: set[str], present: set[str], directory: Path) -> None:
    for problem, names in (("lacks", expected - present), ("holds unknown", present - expected)):
        if names:
            raise CheckpointError(
                f"{directory} {problem} weights: {', '.join(sorted(names)[:5])}"
                f"{' ...' if len(names) > 5 else ''}. It is incomplete, or its config.json belongs "
                "to another model: fetch it again"
            )
