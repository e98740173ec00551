"""Prepare the inputs of `accelerator.py`, on a machine that has all packages and the data.

    python benchmarks/speed/accelerator_inputs.py INPUTS --config beauty --data path/to/data

Options of `train.py` may follow. The directory INPUTS gets what a machine with an accelerator may
lack: events, validation queries, graph and text vectors as arrays, a packed batch for the peers,
and the packages optax, jraph and annotated_types, which hold Python code alone.
"""

import argparse
import shutil
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from accelerator_files import write
from accelerator_rows import BATCH, INPUTS, PACKAGES, Inputs, Sizes

from jaxrec.api import configure
from jaxrec.data.dataset import prepare
from jaxrec.data.packing import Packing, pack_windows
from jaxrec.training.context import TrainContext, make_context

CARRIED = ("optax", "jraph", "annotated_types")
NOT_RUN = shutil.ignore_patterns("__pycache__", "*_test.py", "*.ipynb")
MIB = 2**20


def main() -> None:
    """Write the inputs of a recipe and a data set."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("inputs", type=Path, help="a new directory")
    parser.add_argument("--config", default="beauty", help="a YAML recipe or a shipped one's name")
    parser.add_argument("--data", help="short for --data.source")
    options, overrides = parser.parse_known_args()
    if options.inputs.exists():
        parser.error(f"{options.inputs} exists; name a new directory")
    config = configure(options.config, options.data, arguments=overrides)
    if config.text.mode == "finetune":
        parser.error("fine-tuned text layers are not measured; use --text.mode frozen")
    context = make_context(config, prepare(config))
    options.inputs.mkdir(parents=True)
    write(options.inputs / INPUTS, inputs_of(context))
    np.savez_compressed(options.inputs / BATCH, **peers_batch(context))
    for name in CARRIED:
        copy_package(name, options.inputs / PACKAGES / name)
    size = sum(path.stat().st_size for path in options.inputs.rglob("*") if path.is_file())
    print(f"{options.inputs}: {size / MIB:.1f} MiB")


def inputs_of(context: TrainContext) -> Inputs:
    """The inputs of a context, without tables and ids."""
    dataset, config = context.dataset, context.config
    split = dataset.split
    arrays = jax.tree.map(np.asarray, context.arrays)
    nodes = replace(arrays.catalog.nodes, text=context.padded_text.astype(np.float16))
    return Inputs(
        config=config,
        sizes=context.sizes,
        log=replace(split.log, user_ids=None),
        train_lengths=split.train_lengths,
        weights=dataset.target_weights,
        queries=split.validation,
        target_event_type=dataset.target_event_type,
        arrays=replace(arrays, catalog=replace(arrays.catalog, nodes=nodes)),
    )


def peers_batch(context: TrainContext) -> dict[str, np.ndarray]:
    """The largest batch, and the sizes of a peer that reads its rows."""
    config, split = context.config, context.dataset.split
    train, weights = config.train, context.dataset.target_weights
    packed = pack_windows(
        split.log, split.train_lengths, weights, train.sequence_length, train.burn_in
    )
    shape = {"batch_size": max(Sizes.batch_sizes), "sequence_length": train.sequence_length}
    packing = Packing(split.log, weights, packed, **shape, seed=train.seed)
    batch = asdict(packing.batch(0, 0))
    names = ("items", "starts", "targets", "weights")
    sizes = {"num_items": len(context.valid), "width": config.model.hidden_size}
    return (
        {name: batch[name] for name in names}
        | {name: np.asarray(size) for name, size in sizes.items()}
        | {"num_layers": np.asarray(config.model.num_layers)}
    )


def copy_package(name: str, target: Path) -> None:
    """Copy an installed package that holds Python code alone."""
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, target, ignore=NOT_RUN)


if __name__ == "__main__":
    main()
