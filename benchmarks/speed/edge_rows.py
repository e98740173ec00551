"""What `edge.py` and `edge_page.py` have in common: the start of a row, and sizes."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxrec.inference.trained_model import TrainedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import BENCHMARKS, append_row, commit

RESULTS = BENCHMARKS / "results" / "edge.jsonl"
NOT_LOADED = (".parquet", ".jax")  # neither by a page nor by the example


def add(row: dict[str, Any]) -> None:
    """Add a row to the results, and print it."""
    append_row(RESULTS, row)
    print(json.dumps(row), flush=True)


def about(run: Path, model: TrainedModel, reader: str, precision: str) -> dict[str, Any]:
    """The start of a row; ends the program if the code has changes that no commit holds."""
    return {
        "reader": reader,
        "run": run.name,
        "data": Path(model.config.data.source).name,
        "items": model.catalog.num_items - 1,
        "precision": precision,
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def megabytes(directory: Path) -> float:
    """What a device loads of a directory, in millions of bytes."""
    files = (f for f in directory.rglob("*") if f.is_file() and f.suffix not in NOT_LOADED)
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)
