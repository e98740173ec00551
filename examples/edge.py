"""Recommend on a device from the directory of `jaxrec export`, with NumPy and ONNX Runtime alone.

    jaxrec export runs/shop --to edge
    python examples/edge.py edge

Each line of the standard input is an event, `ITEM [EVENT TYPE [TIME IN SECONDS]]`. A list follows
every event. Nothing leaves the device; `Shopper` holds all that is known of the user.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

MASKED = -1e30


@dataclass
class Shopper:
    """All that is kept of a user."""

    state: np.ndarray
    last_time: int | None = None
    recent: list[tuple[int, int]] = field(default_factory=list)  # items and event types
    masked: set[int] = field(default_factory=set)  # items that lists leave out


class EdgeModel:
    """The programs and tables of an exported model."""

    def __init__(self, directory: Path):
        rows = partial(np.load, mmap_mode="r")
        self.manifest = json.loads((directory / "manifest.json").read_text())
        names = json.loads((directory / "items.json").read_text())
        self.item_ids = names["item_id"]
        self.titles = dict(zip(self.item_ids, names.get("title", self.item_ids), strict=True))
        self.item_number = {name: number for number, name in enumerate(self.item_ids)}
        self.vectors = rows(directory / "item_vectors.npy")
        self.neighbours = [
            (part, rows(directory / part["items"]), rows(directory / part["amounts"]))
            for part in self.manifest["neighbours"]
        ]
        self.update = onnxruntime.InferenceSession(directory / "update.onnx")
        self.ranking = onnxruntime.InferenceSession(directory / "recommend.onnx")

    def new_shopper(self) -> Shopper:
        """A user without events."""
        return Shopper(np.array([self.manifest["initial_state"]], np.float32))

    def read(self, shopper: Shopper, item_id: str, event_type: str, moment: int) -> None:
        """Read an event into the state; an item that the model lacks is item 0."""
        item = self.item_number.get(item_id, 0)
        kind = self.manifest["event_types"].index(event_type)
        vector = self.manifest["vector_unit"] * self.vectors[[item]].astype(np.float32)
        inputs = {"state": shopper.state, "item_vector": vector, "event_type": np.array([kind])}
        inputs["gap"] = self.seconds_since(shopper, moment)
        [shopper.state] = self.update.run(None, inputs)
        shopper.last_time = moment
        shopper.recent = [(item, kind), *shopper.recent][: len(self.manifest["repeat_bias"][0][0])]
        if item and kind in self.manifest["masked_event_types"]:
            shopper.masked.add(item)

    def recommend(self, shopper: Shopper, k: int = 10, now: int | None = None):
        """The ids and scores of the k best items."""
        target = self.manifest["target_event_type"]
        bias = self.manifest["repeat_bias"][target + 1]
        added = [(item, bias[kind][age]) for age, (item, kind) in enumerate(shopper.recent)]
        for part, items, amounts in self.neighbours:
            for weight, (item, kind) in zip(part["weights"], shopper.recent, strict=False):
                if kind in part["event_types"]:
                    added += zip(items[item].tolist(), weight * amounts[item], strict=True)
        added += ((item, MASKED) for item in shopper.masked)
        inputs = {
            "state": shopper.state,
            "target_event_type": np.array([target]),
            "time_since_last": self.seconds_since(shopper, now),
            "adjusted_items": np.array([item for item, _ in added], np.int64),
            "adjustments": np.array([amount for _, amount in added], np.float32),
            "k": np.array([min(k, len(self.item_ids) - 1)]),
        }
        best = zip(*(out.tolist() for out in self.ranking.run(None, inputs)), strict=True)
        return [(self.item_ids[item], score) for item, score in best if score > MASKED / 2]

    def seconds_since(self, shopper: Shopper, now: int | None) -> np.ndarray:
        """The time since the last event; -1 if it is not known."""
        known = self.manifest["has_time"] and None not in (now, shopper.last_time)
        return np.array([max(now - shopper.last_time, 0) if known else -1])


if __name__ == "__main__":
    model = EdgeModel(Path(sys.argv[1]))
    shopper = model.new_shopper()
    for line in filter(str.strip, sys.stdin):
        defaults = ["", model.manifest["event_types"][0], time.time()]
        fields = line.split()[:3]
        item, event_type, moment = fields + defaults[len(fields) :]
        try:
            model.read(shopper, item, event_type, int(moment))
        except ValueError as error:
            print(f"This event is not read: {error}", file=sys.stderr)
            continue
        for rank, (item_id, score) in enumerate(model.recommend(shopper), 1):
            print(f"{rank:>2}  {score:7.3f}  {item_id}  {model.titles[item_id] or ''}")
        print(flush=True)
