"""Recommend on a device from the directory of `jaxrec export`, with NumPy and ONNX Runtime alone.

    jaxrec export runs/shop --to edge
    python examples/edge.py edge

Each line of the standard input is an event, `ITEM [EVENT TYPE [TIME IN SECONDS]]`. A list follows
every event. Nothing leaves the device; `Shopper` holds all that is known of the user.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

MASKED = -1e30
UNKNOWN = -1  # a time that is not known


@dataclass
class Shopper:
    """All that is kept of a user."""

    state: np.ndarray
    last_time: int = UNKNOWN
    recent: list[tuple[int, int]] = field(default_factory=list)  # items and event types
    masked: set[int] = field(default_factory=set)  # items that lists leave out


class EdgeModel:
    """The programs and tables of an exported model."""

    def __init__(self, directory: Path):
        self.manifest = json.loads((directory / "manifest.json").read_text())
        names = json.loads((directory / "items.json").read_text())
        self.item_ids = names["item_id"]
        self.titles = names.get("title", self.item_ids)
        self.item_number = {name: number for number, name in enumerate(self.item_ids)}
        # an operating system reads the rows that are used alone
        self.vectors = np.load(directory / "item_vectors.npy", mmap_mode="r")
        self.repeat_bias = np.array(self.manifest["repeat_bias"], np.float32)
        self.neighbours = [
            (
                part,
                *(np.load(directory / part[name], mmap_mode="r") for name in ("items", "amounts")),
            )
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
        number = self.manifest["event_types"].index(event_type)
        gap = UNKNOWN
        if self.manifest["has_time"] and shopper.last_time != UNKNOWN:
            gap = max(moment - shopper.last_time, 0)
        inputs = {
            "state": shopper.state,
            "item_vector": self.vectors[[item]].astype(np.float32),
            "event_type": np.array([number]),
            "gap": np.array([gap]),
        }
        [shopper.state] = self.update.run(None, inputs)
        shopper.last_time = moment
        ages = self.repeat_bias.shape[-1]
        shopper.recent = [(item, number), *shopper.recent][:ages]
        if item and number in self.manifest["masked_event_types"]:
            shopper.masked.add(item)

    def recommend(
        self, shopper: Shopper, k: int = 10, now: int | None = None
    ) -> list[tuple[str, float]]:
        """The ids and scores of the k best items."""
        target = self.manifest["target_event_type"]
        bias = self.repeat_bias[target + 1]
        repeats = [(item, bias[kind, age]) for age, (item, kind) in enumerate(shopper.recent)]
        masked = ((item, MASKED) for item in shopper.masked)
        adjusted = [*repeats, *self.related(shopper), *masked]
        seconds = UNKNOWN
        if now is not None and self.manifest["has_time"] and shopper.last_time != UNKNOWN:
            seconds = max(now - shopper.last_time, 0)
        inputs = {
            "state": shopper.state,
            "target_event_type": np.array([target]),
            "time_since_last": np.array([seconds]),
            "adjusted_items": np.array([item for item, _ in adjusted], np.int64),
            "adjustments": np.array([amount for _, amount in adjusted], np.float32),
            "k": np.array([min(k, len(self.item_ids) - 1)]),
        }
        items, scores = self.ranking.run(None, inputs)
        listed = zip(items.tolist(), scores.tolist(), strict=True)
        return [(self.item_ids[item], score) for item, score in listed if score > MASKED / 2]

    def related(self, shopper: Shopper) -> Iterator[tuple[int, float]]:
        """What the newest events add to the scores of the neighbours of their items."""
        for part, items, amounts in self.neighbours:
            for age, (item, kind) in enumerate(shopper.recent[: part["newest"]]):
                if kind in part["event_types"]:
                    decayed = part["unit"] * 0.5 ** (age / part["half_life"]) * amounts[item]
                    yield from zip(items[item].tolist(), decayed.tolist(), strict=True)


def main() -> None:
    """Read events from the standard input, and print a list after each of them."""
    model = EdgeModel(Path(sys.argv[1]))
    shopper = model.new_shopper()
    for line in sys.stdin:
        item, *rest = line.split()
        event_type = rest[0] if rest else model.manifest["event_types"][0]
        moment = int(rest[1]) if len(rest) > 1 else int(time.time())
        model.read(shopper, item, event_type, moment)
        for rank, (item_id, score) in enumerate(model.recommend(shopper), 1):
            title = model.titles[model.item_number[item_id]] or item_id
            print(f"{rank:>2}  {score:7.3f}  {item_id}  {title}")
        print(flush=True)


if __name__ == "__main__":
    main()
