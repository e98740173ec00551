"""What pre-training leaves: a checkpoint in Hugging Face's format, and progress to continue."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jaxrec.artifacts.files import refuse_file_on_the_way, refuse_url
from jaxrec.data.text import CHECKPOINT_FILES
from jaxrec.errors import RunError
from jaxrec.models.text.checkpoint import config_entries
from jaxrec.models.text.language_model import LanguageModel, language_model_weights
from jaxrec.runtime import atomic_path

PROGRESS = "progress.npz"
POOLING_FILES = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")


def write_checkpoint(model: LanguageModel, source: Path, out: Path) -> None:
    """Write the model with the configuration and tokenizer of `source`; removes the progress.

    `config.json` comes last, so that a directory with it is complete.
    """
    patterns = [name for name in CHECKPOINT_FILES if "safetensors" not in name]
    for name in (*patterns, *POOLING_FILES):
        if (source / name).is_file() and name != "config.json":
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, out / name)
    weights = language_model_weights(model, source)
    with atomic_path(out / "model.safetensors") as draft:
        # save_file leaves a file that no other user can read
        draft.write_bytes(save(weights, metadata={"format": "pt"}))
    config = config_entries(source)
    if any(name.startswith("cls.") for name in weights):
        config["architectures"] = ["BertForMaskedLM"]
    with atomic_path(out / "config.json") as draft:
        draft.write_text(json.dumps(config, indent=2) + "\n")
    (out / PROGRESS).unlink(missing_ok=True)


def save_progress(out: Path, options: dict[str, Any], history: list[dict], state: Any) -> None:
    """Save the leaves of a state, and the options that they belong to."""
    leaves: dict[str, Any] = {
        f"leaf{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state))
    }
    notes = json.dumps({"options": options, "history": history})
    with atomic_path(out / PROGRESS) as draft, draft.open("wb") as file:
        np.savez(file, notes=np.array(notes), **leaves)


def refuse_filled(out: Path) -> None:
    """Raise a RunError if an output directory holds anything but the progress of a pre-training."""
    refuse_url(out)
    refuse_file_on_the_way(out)
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; name a directory as --out")
    if (out / "config.json").exists():
        raise RunError(f"{out} holds a checkpoint; name another directory as --out")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    # a process that was killed while it saved leaves a hidden draft
    others = {n for n in names if n != ".lock" and not n.startswith(f".{PROGRESS}.")}
    if others and PROGRESS not in names:
        raise RunError(f"{out} is not empty; name another directory as --out")


def open_progress(
    out: Path, options: dict[str, Any], state: Any
) -> tuple[Any, list[dict[str, float]]]:
    """The saved state and losses; `state` itself and no losses in a new directory.

    Raises:
        RunError: the directory holds something else, or the progress of other options.
    """
    if not (out / PROGRESS).is_file():
        refuse_filled(out)  # another process may have written to it
        return state, []
    with np.load(out / PROGRESS) as saved:
        notes = json.loads(str(saved["notes"]))
        leaves, structure = jax.tree.flatten(state)
        if notes["options"] != json.loads(json.dumps(options)):
            raise RunError(
                f"{out} holds an interrupted pre-training with other options or data; repeat its "
                "command, or name another directory as --out"
            )
        loaded = [jnp.asarray(saved[f"leaf{n}"]) for n in range(len(leaves))]
    return jax.tree.unflatten(structure, loaded), notes["history"]
