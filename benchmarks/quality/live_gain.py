"""What live updates are worth on the last tenth of the time.

    python benchmarks/quality/live_gain.py runs/online_retail runs/ml-1m-by-time

The runs are split by time. `jaxrec.serving.replay` ranks every event of the period before the live
state reads it. The weight of the present session is the one with the highest NDCG@10 in the tenth
before (the validation period), where 0 stands for no session. Every run is a row of
`benchmarks/results/live_gain.jsonl`, with the gain over states that stay as they were when the
period began and its 95 % interval, from a bootstrap over the events.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from jaxtyping import Float
from numpy import ndarray
from rich.console import Console
from rows import BENCHMARKS, append_row, commit

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.data.dataset import filtered
from jaxrec.evaluation.metrics import bootstrap_interval, ndcg, recall
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.serving.replay import FROZEN, SAMPLES, replay
from jaxrec.types import EventLog

RESULTS = BENCHMARKS / "results" / "live_gain.jsonl"
WEIGHTS = (0.25, 0.5, 1.0)


def main() -> None:
    """Measure the runs, and print their rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    for run in options.runs:
        model = jaxrec.load(run)
        log = model.encoder.validated_log(filtered(model.config).events)
        row = {
            "data": Path(model.config.data.source).name,
            "code": commit(),
            "date": datetime.now(UTC).date().isoformat(),
            **gain(model, log),
        }
        append_row(RESULTS, row)
        Console(width=120).print(row)


def gain(model: TrainedModel, log: EventLog) -> dict:
    """The figures of frozen states, live states, and live states with the chosen session."""
    weight = chosen_weight(model, log)
    ranks = replay(model, log, since=0.9, weights=[weight] if weight else []).ranks
    systems = {FROZEN: ranks[FROZEN], "live": ranks["live"]}
    if weight:
        systems["live, session"] = ranks[f"live, session {weight:g}"]
    return {
        "events": len(ranks[FROZEN]),
        "session_weight": weight,
        **{name: figures(of_system, ranks[FROZEN]) for name, of_system in systems.items()},
    }


def chosen_weight(model: TrainedModel, log: EventLog) -> float:
    """The weight of the session with the highest NDCG@10 in the validation period; 0: none."""
    ranks = replay(model, log, since=0.8, until=0.9, weights=WEIGHTS).ranks
    names = {0.0: "live", **{weight: f"live, session {weight:g}" for weight in WEIGHTS}}
    return max(names, key=lambda weight: ndcg(ranks[names[weight]], 10).mean())


def figures(ranks: Float[ndarray, " Q"], frozen: Float[ndarray, " Q"]) -> dict:
    """NDCG@10 and recall@10, and the interval of the lead over frozen states."""
    interval = bootstrap_interval(ndcg(ranks, 10), ndcg(frozen, 10), samples=SAMPLES, seed=0)
    return {
        "ndcg@10": round(float(ndcg(ranks, 10).mean()), 5),
        "recall@10": round(float(recall(ranks, 10).mean()), 5),
        "interval": [round(float(limit), 5) for limit in interval],
    }


if __name__ == "__main__":
    main()
