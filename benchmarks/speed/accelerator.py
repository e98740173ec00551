"""Measure jaxrec on one accelerator in a single call, and print a table.

    python benchmarks/speed/accelerator_inputs.py INPUTS --config beauty --data path/to/tables
    python benchmarks/speed/accelerator.py INPUTS --out DIR [--seconds 450] [--commit HASH]
    python benchmarks/speed/accelerator.py INPUTS --out DIR --parts step training
    python benchmarks/speed/accelerator.py INPUTS --out DIR --tiny   # tries everything, on a CPU

The first line runs where jaxrec is installed with all packages. The others need JAX, Flax,
jaxtyping, NumPy, SciPy and rich, and torch for the peers (`--torch` if another Python has it).

Every part is a process of its own, in order of importance: ceilings of the card, one LSTM layer and
that of torch, a training step by batch size, ranking a million users and the same in torch, a step
of SASRec in torch, and training with validation, which gets the time that is left. What the time
does not suffice for gets a row that says so. LSTM and step are measured in the forms that the
platform gets, and in others (`jaxrec/models/forms.py`). Times are medians of repeats; errors are
relative, beside higher precision. Every row goes to DIR/accelerator.jsonl at once.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from accelerator_rows import NO_TIME, PACKAGES, TINY, Rows, Sizes, read_inputs
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[2]
PARTS = {
    "ceilings": 30,
    "lstm": 90,
    "lstm-torch": 30,
    "step": 150,
    "ranking": 45,
    "ranking-torch": 30,
    "step-torch": 25,
    "training": 600,
}
"""The most seconds of each part."""
LATE = 1.5  # times its seconds, after which a part is ended


def main() -> None:
    """Run all parts one after another, or a single one in this process."""
    options = read_options()
    if options.part:
        sys.path[:0] = [str(REPOSITORY)]
        sys.path += [str(options.inputs / PACKAGES)]  # last: what is installed comes first
        run_part(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path, start = options.out / "accelerator.jsonl", time.monotonic()
    path.write_text("")
    with tempfile.TemporaryDirectory() as cache:
        # training then finds the program that a step of the same size compiled
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        for part in options.parts:
            left = options.seconds - (time.monotonic() - start)
            most = options.seconds if options.tiny else PARTS[part]
            if left <= 0:
                Rows(path, part, 0, {"commit": options.commit}).add("", "", note=NO_TIME)
                continue
            problem = start_part(options, part, min(left, most), left, environment)
            if problem:
                Rows(path, part, 0, {"commit": options.commit}).add("", "", note=problem)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    Console(width=170).print(table(rows))
    print(f"{len(rows)} rows in {path}, {time.monotonic() - start:.0f} s")


def read_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=Path, help="what accelerator_inputs.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="a directory for the rows")
    parser.add_argument("--seconds", type=float, default=450, help="for all parts together")
    parser.add_argument("--commit", default="unknown", help="to be written into every row")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the script")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def start_part(
    options: argparse.Namespace, part: str, seconds: float, left: float, environment: dict[str, str]
) -> str:
    """Run a part in a process of its own; returns what went wrong."""
    python = options.torch if part.endswith("torch") else sys.executable
    command = [python, __file__, str(options.inputs), "--out", str(options.out), "--part", part]
    command += ["--seconds", str(seconds), "--commit", options.commit]
    command += ["--tiny"] if options.tiny else []
    try:
        result = subprocess.run(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            timeout=min(LATE * seconds, left + 15),
        )
    except subprocess.TimeoutExpired:
        return f"ended after {LATE * seconds:.0f} s; the rest is {NO_TIME}"
    if result.returncode == 0:
        return ""
    print(result.stderr[-4000:], file=sys.stderr)
    errors = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", result.stderr, re.MULTILINE)
    return f"failed: {errors[-1][:200] if errors else f'exit code {result.returncode}'}"


def run_part(options: argparse.Namespace) -> None:
    """Measure one part in this process."""
    sizes, path = TINY if options.tiny else Sizes(), options.out / "accelerator.jsonl"
    rows = Rows(path, options.part, options.seconds, {"commit": options.commit})
    if options.part.endswith("torch"):
        run_torch(rows, sizes, options.inputs)
        return
    import jax

    rows.fixed |= {"card": jax.devices()[0].device_kind, "jax": jax.__version__}
    import accelerator_parts
    import accelerator_training

    match options.part:
        case "ceilings":
            accelerator_parts.ceilings(rows, sizes)
        case "lstm":
            accelerator_parts.lstm(rows, sizes)
        case "ranking":
            accelerator_parts.ranking(rows, sizes)
        case "step":
            accelerator_training.step(rows, sizes, read_inputs(options.inputs))
        case "training":
            accelerator_training.train(rows, sizes, read_inputs(options.inputs))


def run_torch(rows: Rows, sizes: Sizes, inputs: Path) -> None:
    """Measure a peer, if this Python has torch."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        rows.add("", "torch", note="not measured: no torch")
        return
    import accelerator_torch

    rows.fixed |= accelerator_torch.versions()
    match rows.part:
        case "lstm-torch":
            accelerator_torch.lstm(rows, sizes)
        case "ranking-torch":
            accelerator_torch.ranking(rows, sizes)
        case "step-torch":
            accelerator_torch.sasrec(rows, sizes, inputs)


def table(rows: list[dict]) -> Table:
    """All rows; shares are those of the card's bf16 product, whatever the precision of the row."""
    peaks = [
        row["flops"] / row["seconds"]
        for row in rows
        if row["part"] == "ceilings" and row["system"] == "bf16" and "flops" in row
    ]
    cards = ", ".join(sorted({row["card"] for row in rows if "card" in row}))
    result = Table(title=cards, title_justify="left")
    for heading in ("part", "case", "system", "ms", "range", "TFLOP/s", "of bf16", "", "error"):
        left = heading in ("part", "case", "system", "")
        result.add_column(heading, justify="left" if left else "right")
    for row in rows:
        seconds = row.get("seconds")
        rate = row["flops"] / seconds if seconds and "flops" in row else None
        result.add_row(
            row["part"],
            row["case"],
            row["system"],
            f"{seconds * 1e3:,.3f}" if seconds else "",
            f"{row['fastest'] * 1e3:,.3f}-{row['slowest'] * 1e3:,.3f}" if seconds else "",
            f"{rate / 1e12:,.1f}" if rate else "",
            f"{rate / peaks[0]:.1%}" if rate and peaks else "",
            figures(row),
            f"{row['error']:.1e}" if "error" in row else "",
        )
    return result


def figures(row: dict) -> str:
    """The figures of a row that few parts have."""
    parts = [row["note"]] if "note" in row else []
    if "moved" in row:
        parts.append(f"{row['moved'] / row['seconds'] / 1e9:,.0f} GB/s")
    if "targets" in row:
        parts.append(f"{row['targets'] / row['seconds']:,.0f} events/s")
    if "users_per_second" in row:
        parts.append(f"{row['users_per_second']:,.0f} users/s of {row['users']:,}")
    if "recall" in row:
        parts.append(f"{row['recall']:.2%} of the exact lists")
    if "launches" in row:
        parts.append(f"{row['launches'] or 'unknown'} kernels")
    if "compile_seconds" in row:
        parts.append(f"compiled in {row['compile_seconds']:.0f} s")
    if "ndcg" in row:
        trained, checked = row["trained_seconds"], row["validation_seconds"]
        parts.append(f"N@10 {row['ndcg']:.4f} after {trained:.1f} s; validated in {checked:.1f} s")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
