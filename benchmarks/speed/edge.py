"""Export a run for devices, and measure the files, ONNX Runtime on the CPU, and what differs.

    python benchmarks/speed/edge.py runs/ml-100k [--events 500] [--users 200]

For each precision of the item vectors: megabytes of what a device loads, the median milliseconds of
an event and of a list of 10, and how the lists of test users differ from those of the live service:
the mean share of its ten items that the device lists too, the share of users with the same ten
items, and the largest difference of the score of an item that both list. The data of the run are
read. A row for each precision is added to `benchmarks/results/edge.jsonl`.
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
from edge_rows import about, add, megabytes

from jaxrec.data.dataset import prepare
from jaxrec.data.graph import ITEM
from jaxrec.inference.edge.directory import VectorPrecision, write_directory
from jaxrec.inference.loading import load
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.base import LiveEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from edge import EdgeModel

K = 10
Lists = list[dict[str, float]]  # of every user: the scores of the best items by id


def main() -> None:
    """Measure one run in every precision."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--events", type=int, default=500, help="timed, each with a list")
    parser.add_argument("--users", type=int, default=200, help="whose lists are compared")
    options = parser.parse_args()
    trained = load(options.run)
    rows = {
        precision: about(options.run, trained, "python", precision)
        for precision in get_args(VectorPrecision)
    }
    histories = histories_of_test_users(trained, options.users)
    served = lists_of_the_service(trained, histories)
    for precision, row in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "edge")
            write_directory(trained, directory, ["onnx"], precision)
            device = EdgeModel(directory)
            row |= {"runtime": onnxruntime.__version__, "mb": megabytes(directory)}
            row |= times(device, options.events)
            row["events"] = options.events
            add(row | agreement(served, [list_of(device, own) for own in histories]))


def times(model: EdgeModel, count: int) -> dict[str, float]:
    """Median milliseconds of an event and of a list, for one user of many events."""
    shopper, random = model.new_shopper(), np.random.default_rng(0)
    items = random.integers(1, len(model.item_ids), count)
    kind = model.manifest["event_types"][0]
    events, lists = [], []
    for moment, item in enumerate(items.tolist()):
        name = model.item_ids[item]
        events.append(seconds(lambda name=name, t=moment: model.read(shopper, name, kind, t)))
        lists.append(seconds(lambda: model.recommend(shopper, K)))
    named = {"event_ms": events, "list_ms": lists}
    return {name: round(1e3 * float(np.median(values)), 4) for name, values in named.items()}


def seconds(call: Callable[[], object]) -> float:
    """The time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def histories_of_test_users(model: TrainedModel, users: int) -> list[list[LiveEvent]]:
    """The events of random test users before their last one."""
    split = prepare(model.config).split
    queries, log = split.test["last"], split.log
    random = np.random.default_rng(0)
    drawn = random.choice(len(queries), min(users, len(queries)), replace=False)
    return [
        [
            LiveEvent(moment, item, log.event_type_names[event_type])
            for moment, item, event_type in zip(
                log.times[events].tolist(),
                model.index.names(ITEM, log.items[events])["item_id"],
                log.event_types[events].tolist(),
                strict=True,
            )
        ]
        for user, position in zip(queries.users[drawn], queries.positions[drawn], strict=True)
        for events in [slice(log.offsets[user], position)]
    ]


def lists_of_the_service(model: TrainedModel, histories: list[list[LiveEvent]]) -> Lists:
    """What a live engine without a strategy lists after the events."""
    engine = LiveEngine(model, SQLiteStore(":memory:"), strategy=())
    users = [str(number) for number in range(len(histories))]
    for user, events in zip(users, histories, strict=True):
        engine.record([UserEvent(user, event) for event in events])
    tables = (made.table for made in engine.recommend(users, K))
    return [dict(zip(table["item_id"], table["score"], strict=True)) for table in tables]


def list_of(model: EdgeModel, events: list[LiveEvent]) -> dict[str, float]:
    """What the device lists after the events."""
    shopper = model.new_shopper()
    for event in events:
        model.read(shopper, event.item_id, event.event_type, event.time)
    return dict(model.recommend(shopper, K))


def agreement(served: Lists, listed: Lists) -> dict[str, float]:
    """How the lists of devices agree with those of the service."""
    pairs = list(zip(served, listed, strict=True))
    shared = [own.keys() & other.keys() for own, other in pairs]
    differences = [
        abs(own[item] - other[item])
        for (own, other), items in zip(pairs, shared, strict=True)
        for item in items
    ]
    return {
        "users": len(pairs),
        "shared_items": round(float(np.mean([len(items) / K for items in shared])), 4),
        "same_items": float(np.mean([own.keys() == other.keys() for own, other in pairs])),
        "largest_difference": round(max(differences), 6),
    }


if __name__ == "__main__":
    main()
