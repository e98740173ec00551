"""A soak: two processes are killed twenty times while they train, and nothing is lost."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import pods
from helpers.training import scalars

import jaxrec

KILLS = 20
SEED = int(os.environ.get("JAXREC_SOAK_SEED", 0))
OPTIONS = {
    "model.experts": ["id"],
    "train.batch_size": 64,
    "train.sequence_length": 64,
    "train.epochs": 12,
    "train.patience": 99,
}
PHASES = ("start", "step", "validation", "save")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@pytest.mark.slow
def test_a_training_survives_twenty_kills(tmp_path):
    """The parameters, the log of every step and the figures are those of a training in peace."""
    choice, logs = random.Random(SEED), tmp_path / "logs"
    whole, run = tmp_path / "whole", tmp_path / "run"
    pods.train(new_run(whole), logs, devices=1)
    expected = scalars(whole)
    ends = [row["step"] for row in expected if "validation/ndcg@10" in row]
    kills: Counter[tuple[str, str]] = Counter()
    for number in range(KILLS):
        phase, kind = PHASES[number % len(PHASES)], choice.choice(SIGNALS)
        begun = (run / "config.yaml").exists()
        arguments = ["--resume", str(run)] if begun else new_run(run)
        with pods.started(arguments, logs, devices=1) as processes:
            reached = wait_for(phase, run, processes, ends, choice)
            killed = choice.choice((processes[:1], processes[1:], processes))
            # before they have met, one waits five minutes for the other
            for process in processes if phase == "start" else killed:
                process.send_signal(kind)
            codes = pods.exit_codes(processes)
        kills[phase, kind.name] += reached
        # one that got its signal before the first step dies as by itself
        if kind == signal.SIGTERM and phase != "start":
            assert codes == [143, 143], (phase, codes, shown(logs))
        assert 0 not in codes and 1 not in codes and 2 not in codes, (phase, codes, shown(logs))
        print(f"kill {number + 1}: {kind.name}, {phase}, exit codes {codes}, step {last_step(run)}")
    assert kills.total() == KILLS, kills
    pods.train(["--resume", str(run)], logs, devices=1)
    assert scalars(run) == expected  # every step once, with the same loss
    models = (jaxrec.load(path).model.params for path in (run, whole))
    jax.tree.map(np.testing.assert_array_equal, *models)
    figures = (json.loads((path / "metrics.json").read_text()) for path in (run, whole))
    assert next(figures) == next(figures)


def new_run(run: Path) -> list[str]:
    return pods.new_run(Path("ml-100k"), run, **OPTIONS)


def wait_for(
    phase: str,
    run: Path,
    processes: list[subprocess.Popen],
    ends: list[int],
    choice: random.Random,
) -> bool:
    """Wait for a random moment of a phase; whether the processes still run then."""
    first = last_step(run)
    end = next(step for step in ends if step > first)

    def is_reached() -> bool:
        match phase:
            case "start":
                return True
            case "step":
                return last_step(run) > first
            case "validation":
                return last_step(run) >= end
            case _:
                return any(run.glob("checkpoints/*.orbax-checkpoint-tmp*"))

    while not is_reached() and all(process.poll() is None for process in processes):
        time.sleep(0.005)
    longest = {"start": 15.0, "step": 2.0, "validation": 0.5, "save": 0.05}[phase]
    time.sleep(choice.uniform(0, longest))
    return all(process.poll() is None for process in processes)


def last_step(run: Path) -> int:
    """The last step that was logged."""
    return max((int(row["step"]) for row in scalars(run)), default=0)


def shown(logs: Path) -> list[str]:
    return [path.read_text()[-3000:] for path in sorted(logs.iterdir())]
