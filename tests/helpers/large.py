"""A run with a large catalogue and no training, and the memory of a process that loads it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress, RunArtifacts
from jaxrec.config import parse
from jaxrec.data.graph import build_graph
from jaxrec.models.inputs import Sizes
from jaxrec.models.recommender import Recommender, split
from jaxrec.types import Catalog

WIDTH = 192


def write_large_run(run: Path, num_items: int) -> None:
    """A run of items without text and graph, with random vectors of size WIDTH."""
    config = parse(
        layers=[{"model.experts": ["id"], "model.hidden_size": WIDTH, "model.num_layers": 1}]
    )
    items = pl.DataFrame({"item_id": [None, *(f"item-{n}" for n in range(num_items))]})
    catalog = Catalog(items, build_graph(items, None))
    [item_type] = catalog.graph.types
    size = item_type.padded_size
    sizes = Sizes(size, size, len(catalog.graph.relations), 1, 1)
    counts = np.ones(num_items + 1, np.float32)
    artifacts = RunArtifacts(catalog, counts, counts > 0, ("view",), sizes, None)
    run_directory.create_run(run, config, artifacts)
    _, params = split(Recommender(config.model, sizes, nnx.Rngs(0), None))
    vectors = {
        "nodes": jax.random.normal(jax.random.key(0), (size, WIDTH)),
        "text": jnp.zeros((size, 1)),
    }
    with run_directory.open_checkpoints(run) as manager:
        run_directory.save(manager, 1, params, {"step": 1}, vectors, Progress(1), {"ndcg@10": 0.5})


def private_bytes() -> int:
    """Memory of this process that it shares with no file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])
