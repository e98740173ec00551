"""The files of what validation fitted after training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxrec.artifacts.files import write_json
from jaxrec.artifacts.run_directory import CALIBRATION, reading
from jaxrec.evaluation.calibration import Calibration, Correction
from jaxrec.evaluation.reliability import Reliability
from jaxrec.inference.loading import refuse_unfinished
from jaxrec.inference.neighbours_file import write_neighbours
from jaxrec.training.context import TrainContext


def calibration_fields(
    calibration: Calibration, reliability: Reliability | None = None
) -> dict[str, Any]:
    """The content of `calibration.json`."""
    measured = {} if reliability is None else {"reliability": reliability.as_dict()}
    return {**asdict(calibration), **measured}


def copied_calibration(run: Path) -> dict[str, Any]:
    """The content of `calibration.json` of another run.

    Raises:
        RunError: it has none, because its training has not ended.
    """
    refuse_unfinished(run)
    with reading(run, CALIBRATION):
        return json.loads((run / CALIBRATION).read_text())


def write_calibration(context: TrainContext, run: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Write the item neighbours and `calibration.json`, the last file, which completes a run.

    Returns:
        The fields of the `Correction`.
    """
    write_neighbours(run, context.neighbours(Correction.of(fields["correction"])))
    write_json(run / CALIBRATION, fields)
    return fields["correction"]
