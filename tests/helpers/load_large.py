"""Prints by how many bytes the private memory of a process grows when it loads a run."""

import sys
from pathlib import Path

from helpers.large import private_bytes
from jaxrec.artifacts import run_directory
from jaxrec.data.graph import ITEM
from jaxrec.inference import loading
from jaxrec.serving.live.state_updater import StateUpdater

run, shared = Path(sys.argv[1]), sys.argv[2] == "shared"
run_directory.identity(run)  # loads Orbax
before = private_bytes()
model = loading.load(run, shared=shared)
kept = [
    model.version,
    model.index.items,
    model.encoder.items,
    StateUpdater(model, window=64).items,
    model.index.unit_vectors(ITEM).sum(),
]
print(private_bytes() - before)
