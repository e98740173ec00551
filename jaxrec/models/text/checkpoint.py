"""The configuration and weights of a text encoder's checkpoint in Hugging Face's format."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxrec.errors import CheckpointError
from jaxrec.models.text.encoder import TextEncoder

Encoder = TypeVar("Encoder", bound=TextEncoder)
Supported = Mapping[str, tuple[Any, ...]]
"""Entry of config.json -> the values that an encoder implements; the first one if it is missing."""


@dataclass(frozen=True)
class EncoderConfig:
    """Base of dataclasses with the entries of config.json that an encoder reads."""

    supported: ClassVar[Supported]


Settings = TypeVar("Settings", bound=EncoderConfig)


def config_entries(directory: Path) -> dict[str, Any]:
    """The entries of `config.json` of a checkpoint directory.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no config.json: it is not a checkpoint")
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}. Fetch it again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} holds no JSON object. Fetch it again")
    return entries


def read_config(settings: type[Settings], directory: Path) -> Settings:
    """The dataclass `settings` with the entries of `config.json` that it has fields for.

    Raises:
        CheckpointError: the file cannot be read, or describes another architecture.
    """
    entries = config_entries(directory)
    for name, values in settings.supported.items():
        if (value := entries.get(name, values[0])) not in values:
            raise CheckpointError(
                f"{directory / 'config.json'}: {name} is {value!r}, but only "
                f"{' or '.join(map(repr, values))} is supported"
            )
    names = {field.name for field in fields(settings)}
    return settings(**{name: entries[name] for name in names & entries.keys()})


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
    weights = _read_weights(encoder, directory)
    _check_names(set(names.values()), set(weights), directory)
    loaded = []
    for path, param in params.items():
        weight = turned(path, weights[names[path]])
        if weight.shape != param.shape:
            raise CheckpointError(
                f"{directory}: {names[path]} has the shape {weight.shape}, but config.json says "
                f"{param.shape}: they belong to different models"
            )
        loaded.append((path, param.replace(jnp.asarray(weight, param.dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def checkpoint_weights(encoder: TextEncoder) -> dict[str, np.ndarray]:
    """The encoder's weights as a checkpoint in Hugging Face's format names and stores them."""
    weights = {}
    for path, param in nnx.to_flat_state(nnx.state(encoder)):
        name = _checkpoint_name(path, encoder.weight_names)
        weights[name] = turned(path, np.asarray(param[...]))
    return encoder.stored_entries(weights)


def turned(path: tuple[Any, ...], weight: np.ndarray) -> np.ndarray:
    """The parameter at `path` as PyTorch stores it, or back: its kernels are [outputs, inputs]."""
    return weight.T if path[-1] == "kernel" else weight


def modern_name(name: str) -> str:
    """The name of a weight whose norms may have the names of TensorFlow."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _checkpoint_name(path: tuple[object, ...], names: Mapping[str, str]) -> str:
    """The name in a checkpoint of the encoder's parameter at `path`."""
    *module, parameter = path
    key = ".".join("{}" if isinstance(part, int) else str(part) for part in module)
    layer = [part for part in module if isinstance(part, int)]
    return names[key].format(*layer) + (".bias" if parameter == "bias" else ".weight")


def _read_weights(encoder: TextEncoder, directory: Path) -> dict[str, np.ndarray]:
    """Weights of the encoder, under the names of its table."""
    weights: dict[str, np.ndarray] = {}
    for name, weight in checkpoint_entries(directory).items():
        weights.update(encoder.checkpoint_entries(name, weight))
    return weights


def checkpoint_entries(directory: Path) -> dict[str, np.ndarray]:
    """All weights of a checkpoint directory under the names of its files.

    Raises:
        CheckpointError: there is no safetensors file, or one that is damaged.
    """
    entries: dict[str, np.ndarray] = {}
    for shard in _shards(directory):
        try:
            entries |= load_file(shard)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read {shard}: {error}. Fetch a damaged file again; convert a pickle "
                "(pytorch_model.bin) where PyTorch is installed, with AutoModel.from_pretrained"
                f"({str(directory)!r}).save_pretrained({str(directory)!r})"
            ) from error
    return entries


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    return [directory / name for name in set(json.loads(index.read_text())["weight_map"].values())]


def _check_names(expected: set[str], present: set[str], directory: Path) -> None:
    for problem, names in (("lacks", expected - present), ("holds unknown", present - expected)):
        if names:
            raise CheckpointError(
                f"{directory} {problem} weights: {', '.join(sorted(names)[:5])}"
                f"{' ...' if len(names) > 5 else ''}. It is incomplete, or its config.json belongs "
                "to another model: fetch it again"
            )
