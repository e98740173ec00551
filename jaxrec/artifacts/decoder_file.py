"""The file of a forecast's decoder in a run directory, beside the checkpoint it belongs to."""

from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxrec.artifacts.run_directory import DECODER, reading
from jaxrec.errors import RunError
from jaxrec.models.sequence.decoder import Decoder, abstract_params
from jaxrec.runtime import atomic_path

STEP, STEPS = "checkpoint", "steps"  # keys in the metadata: of the checkpoint, of a forecast


def write_decoder(run: Path, decoder: Decoder, step: int) -> None:
    """Write the decoder of the checkpoint of a step, whole or not at all."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(decoder.params)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    with atomic_path(run / DECODER) as draft:
        # `save_file` would let its owner alone read the file
        draft.write_bytes(save(arrays, {STEP: str(step), STEPS: str(decoder.steps)}))


def read_decoder(run: Path, step: int | None, width: int) -> Decoder | None:
    """The decoder of a run, None if it has none.

    Args:
        step: of the checkpoint that it must belong to; None: any.
        width: of the user vectors.

    Raises:
        RunError: the file is damaged, or belongs to another checkpoint or other options.
    """
    path = run / DECODER
    if not path.is_file():
        return None
    with reading(run, DECODER), safe_open(path, "numpy") as file:
        metadata = file.metadata()
        trained_with, steps = metadata[STEP], int(metadata[STEPS])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected, structure = jax.tree_util.tree_flatten_with_path(abstract_params(width))
    shapes = {jax.tree_util.keystr(name): leaf.shape for name, leaf in expected}
    is_other = step is not None and trained_with != str(step)
    if is_other or {n: a.shape for n, a in arrays.items()} != shapes:
        raise RunError(
            f"{path} belongs to another checkpoint or to other options; copy the whole run again, "
            "or remove the file to do without a forecast"
        )
    params = jax.tree_util.tree_unflatten(structure, [arrays[name] for name in shapes])
    return Decoder(width, steps, params)
