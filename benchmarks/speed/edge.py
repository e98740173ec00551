"""Export a run for devices, and measure the files and ONNX Runtime on the CPU.

    python benchmarks/speed/edge.py runs/ml-100k [--events 500]

Printed for each precision of the item vectors: megabytes of what a device loads, and the median
milliseconds of an event and of a list of 10.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime

from jaxrec.inference.edge.directory import VectorPrecision, write_directory
from jaxrec.inference.loading import load

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from edge import EdgeModel

NOT_ON_DEVICE = (".parquet", ".jax")


def main() -> None:
    """Measure one run in every precision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--events", type=int, default=500)
    options = parser.parse_args()
    trained = load(options.run)
    print(f"{options.run}: {trained.catalog.num_items - 1:,} items, ONNX Runtime", end=" ")
    print(onnxruntime.__version__)
    for precision in get_args(VectorPrecision):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "edge")
            write_directory(trained, directory, ["onnx"], precision)
            files = (f for f in directory.iterdir() if f.suffix not in NOT_ON_DEVICE)
            size = sum(file.stat().st_size for file in files)
            event, made = times(EdgeModel(directory), options.events)
        print(f"{precision}: {size / 1e6:.2f} MB, {event:.3f} ms an event, {made:.3f} ms a list")


def times(model: EdgeModel, count: int) -> tuple[float, float]:
    """Median milliseconds of an event and of a list, for one user of many events."""
    shopper, random = model.new_shopper(), np.random.default_rng(0)
    items = random.integers(1, len(model.item_ids), count)
    kind = model.manifest["event_types"][0]
    events, lists = [], []
    for moment, item in enumerate(items.tolist()):
        name = model.item_ids[item]
        events.append(seconds(lambda name=name, t=moment: model.read(shopper, name, kind, t)))
        lists.append(seconds(lambda: model.recommend(shopper)))
    return 1e3 * float(np.median(events)), 1e3 * float(np.median(lists))


def seconds(call: Callable[[], object]) -> float:
    """The time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
