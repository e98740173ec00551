"""Ranking quality of the recipes over seeds, beside published figures and peers on the same split.

    python benchmarks/quality.py beauty ml-100k --folder path/to/data --seeds 0 1 2
    python benchmarks/quality.py scientific --folder path/to/data --ablation --segments
    python benchmarks/quality.py taobao online_retail --folder path/to/data --event_types --segments
    python benchmarks/quality.py scientific --folder path/to/data --peers --python python3.11

`--folder` holds the data sets that jaxrec does not fetch, under the names that `CASES` gives. Every
finished run is a row of `results/quality.jsonl` and a run directory under `runs/quality`; a run
whose configuration has a row already is not repeated, and one that was stopped is resumed. Models
are selected on validation; the table gives the mean over seeds and, from three seeds on, the
standard deviation. `--peers` trains RecTools' SASRec and eSASRec on the same histories and prints
the difference with a 95 % interval of a bootstrap over users.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from training import PEERS, SYSTEMS, export, python_of

from jaxrec.api import configure, enable_compilation_cache
from jaxrec.config import Config, to_yaml
from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables
from jaxrec.evaluation import metrics
from jaxrec.runtime import cache_dir
from jaxrec.training.loop import fit

RESULTS = Path(__file__).parent.parent / "results" / "quality.jsonl"
RUNS = Path("runs") / "quality"
FETCHED = ("ml-100k", "ml-1m")  # data sets that jaxrec downloads


@dataclass(frozen=True)
class Variant:
    """What of a recipe is changed."""

    options: dict = field(default_factory=dict)
    event_type: str = ""  # of event that is read, empty for all


@dataclass(frozen=True)
class Case:
    """A data set under a protocol, and what others have reached there.

    `published` maps a system to its NDCG@10 and recall@10 (of last and of every event where the
    split is by time: NDCG@10 of both).
    """

    recipe: str
    source: str
    options: dict = field(default_factory=dict)
    published: dict[str, tuple[float, float]] = field(default_factory=dict)
    event_type: str = ""  # of event that is predicted, where there are others
    peer_history: int = 50  # events that a peer reads, as its authors set it
    extra: dict[str, Variant] = field(default_factory=dict)  # reported apart by --ablation


BY_TIME = {
    "split.scheme": "global_time",
    "data.min_user_events": 5,
    "data.min_item_events": 5,
    "evaluation.history": 128,
}
CASES = {
    "beauty": Case(
        "beauty",
        "amazon_beauty",
        {},
        {
            "WEARec, best test row": (0.0614, 0.1041),
            "BSARec": (0.0611, 0.1008),
            "SASRec, full softmax": (0.0597, 0.0986),
            "EnsRec": (0.0565, 0.0980),
            "eSASRec": (0.0523, 0.0928),
            "HSTU": (0.0439, 0.0788),
            "TIGER": (0.0384, 0.0648),
        },
        # these may hold purchases that are still to come
        extra={"with also_bought and the like": Variant({"data.relations": []})},
    ),
    "beauty by time": Case(
        "beauty",
        "amazon_beauty",
        BY_TIME | {"data.drop_repeats": True},
        {"SASRec+": (0.0240, 0.0298), "GRU4Rec": (0.0090, 0.0)},
    ),
    "ml-100k": Case(
        "ml100k",
        "ml-100k",
        {"data.min_item_events": 5},
        {"WEARec": (0.1023, 0.1930)},
        peer_history=200,
    ),
    "ml-1m": Case(
        "ml1m",
        "ml-1m",
        {},
        {
            "ICSRec, own file": (0.2007, 0.3369),
            "LRURec": (0.1930, 0.3264),
            "WEARec": (0.1904, 0.3334),
            "HSTU-large": (0.1893, 0.3294),
            "SASRec+": (0.1858, 0.3207),
            "GRU4Rec, full softmax": (0.1679, 0.2887),
        },
        peer_history=200,
    ),
    "ml-1m by time": Case(
        "ml1m",
        "ml-1m",
        BY_TIME,  # nobody rates a film twice
        {"SASRec+": (0.0948, 0.1083), "GRU4Rec": (0.0830, 0.0988)},
        peer_history=200,
    ),
    "scientific": Case(
        "shopping",
        "amazon_scientific",
        {"data.time": "order", "split.scheme": "leave_one_out"},
    ),
    # it has no titles; narrower than the recipe, as it has 31,000 items
    "taobao": Case(
        "shopping",
        "taobao",
        {
            "model.experts": ["id+graph"],
            "model.hidden_size": 64,
            "split.target_event_types": ["buy"],
            "evaluation.mask": ["buy"],
        },
        event_type="buy",
    ),
    "online_retail": Case("online_retail", "online_retail/online_retail.parquet", event_type="buy"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["ml-100k"], choices=CASES, metavar="CASE")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the data sets are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ablation", action="store_true", help="leave out a part at a time")
    parser.add_argument(
        "--event_types", action="store_true", help="read the predicted event_type alone, too"
    )
    parser.add_argument("--segments", action="store_true", help="cold items and short histories")
    parser.add_argument("--peers", action="store_true", help="train RecTools' models as well")
    parser.add_argument("--epochs", type=int, default=60, help="of a peer at most")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="for the environments of peers")
    options = parser.parse_args()
    enable_compilation_cache()
    console = Console(width=120)
    for name in options.cases:
        case = CASES[name]
        data = case.source if case.source in FETCHED else str(options.folder / case.source)
        wanted = {"full": Variant()}
        if options.ablation:
            wanted |= ablations(configuration(case, data, Variant(), 0)) | case.extra
        if options.event_types:
            wanted[f"{case.event_type} alone"] = Variant(event_type=case.event_type)
        rows = [
            result(name, label, variant, configuration(case, data, variant, seed))
            for label, variant in wanted.items()
            for seed in options.seeds
        ]
        console.print(quality_table(name, rows))
        if options.segments:
            console.print(segment_table(name, rows))
        if options.peers:
            config = configuration(case, data, Variant(), options.seeds[0])
            console.print(peer_table(name, config, options))


def configuration(case: Case, data: str, variant: Variant, seed: int) -> Config:
    """A recipe on a data set with one seed."""
    return configure(case.recipe, data, {**case.options, **variant.options, "train.seed": seed})


def ablations(config: Config) -> dict[str, Variant]:
    """The recipe without one part of it at a time."""
    experts = config.model.experts

    def without(source: str) -> Variant:
        left = ("+".join(s for s in e.split("+") if s != source) for e in experts)
        return Variant({"model.experts": list(dict.fromkeys(e for e in left if e))})

    everything = "+".join(dict.fromkeys(s for e in experts for s in e.split("+")))
    variants = {
        "without graph": without("graph"),
        "without text": without("text"),
        "without ids": without("id"),
        "ids alone": Variant({"model.experts": ["id"] * len(experts)}),
        "bare LSTM": Variant({"model.sequence": "bare_lstm"}),
        "one expert": Variant({"model.experts": [everything]}),
        "without traces": Variant({"model.memory_decays": 0}),
    }
    if config.data.time == "timestamp":
        variants["without time gaps"] = Variant({"model.time_gaps": False})
    return variants


def result(case: str, label: str, variant: Variant, config: Config) -> dict:
    """The row of a run, from the results file or from training it now."""
    key = run_key(variant, config)
    for row in read_results():
        if row["key"] == key:
            return row | {"variant": label}
    Console().print(f"{case}, {label}, seed {config.train.seed}: {key}")
    began = time.perf_counter()
    run = RUNS / key
    found = fit(config, run, tables=read_tables(variant, config), resume=run.exists())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    row = {
        "case": case,
        "variant": label,
        "seed": config.train.seed,
        "key": key,
        "code": code_version(),
        "epochs": sum("validation/ndcg@10" in entry for entry in log),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        **{name: scores(found[name]) for name in found if name != "protocol"},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def scores(found: dict) -> dict:
    """Of one set of queries: the model's NDCG@10 and recall@10, and those of its segments."""
    model = found.get("model", found)
    kept = {name: round(model[name], 5) for name in ("ndcg@10", "recall@10")}
    segments = {
        name: [values["count"], round(values["ndcg@10"], 5), round(values["recall@10"], 5)]
        for name, values in found.get("segments", {}).items()
        if values["count"]
    }
    return kept | ({"segments": segments} if segments else {})


def read_tables(variant: Variant, config: Config) -> Tables | None:
    """The tables with the one event type that a variant reads; None if it reads them all."""
    if not variant.event_type:
        return None
    data = config.data
    tables = load_source(data.source, time=data.time, strict=data.strict)
    return replace(tables, events=tables.events.filter(pl.col("event") == variant.event_type))


def run_key(variant: Variant, config: Config) -> str:
    """A hash of all that decides a run, wherever its data lie."""
    text = to_yaml(config).replace(config.data.source, Path(config.data.source).name)
    return hashlib.sha256((text + variant.event_type).encode()).hexdigest()[:12]


def read_results() -> list[dict]:
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def code_version() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()


def figures(rows: list[dict], select) -> str:
    values = np.array([select(row) for row in rows])
    spread = f" ±{values.std(ddof=1):.4f}" if len(values) > 2 else ""
    return f"{values.mean():.4f}{spread}"


def by_variant(rows: list[dict]) -> dict[str, list[dict]]:
    names = dict.fromkeys(row["variant"] for row in rows)
    return {name: [row for row in rows if row["variant"] == name] for name in names}


def quality_table(case: str, rows: list[dict]) -> Table:
    """A row a variant, then what is published."""
    every = "test_every" in rows[0]
    table = Table(title=f"{case}: test figures, selected on validation", title_justify="left")
    table.add_column("")
    columns = ["validation N@10", "N@10", "R@10", *(["N@10 of every event"] if every else [])]
    for heading in (*columns, "epochs", "minutes", "seeds"):
        table.add_column(heading, justify="right")
    for variant, of_variant in by_variant(rows).items():
        shown = [("validation", "ndcg@10"), ("test", "ndcg@10"), ("test", "recall@10")]
        shown += [("test_every", "ndcg@10")] if every else []
        table.add_row(
            variant,
            *(figures(of_variant, lambda row, s=s, m=m: row[s][m]) for s, m in shown),
            f"{np.mean([row['epochs'] for row in of_variant]):.0f}",
            f"{np.mean([row['minutes'] for row in of_variant]):.1f}",
            str(len(of_variant)),
        )
    table.add_section()
    for system, (first, second) in CASES[case].published.items():
        cells = [f"{figure:.4f}" if figure else "" for figure in (first, second)]
        shown = (cells[0], "", cells[1]) if every else cells
        table.add_row(system, "", *shown)
    return table


def segment_table(case: str, rows: list[dict]) -> Table:
    """NDCG@10 and recall@10 of parts of the queries, a column a variant."""
    variants = by_variant(rows)
    queries = "test_every" if "test_every" in rows[0] else "test"
    table = Table(title=f"{case}: NDCG@10 / recall@10 of parts of {queries}", title_justify="left")
    for heading in ("", "count", *variants):
        table.add_column(heading, justify="left" if not heading else "right")
    for segment, (count, *_) in rows[0][queries]["segments"].items():
        cells = []
        for of_variant in variants.values():
            found = [row[queries]["segments"].get(segment) for row in of_variant]
            values = np.array([values[1:] for values in found if values])
            cells.append(
                " / ".join(f"{value:.4f}" for value in values.mean(0)) if any(found) else ""
            )
        table.add_row(segment, f"{count:,}", *cells)
    return table


def peer_table(case: str, config: Config, options: argparse.Namespace) -> Table:
    """RecTools' models on the same histories, and how far jaxrec is from them."""
    table = Table(title=f"{case}: jaxrec less RecTools, 95 % interval", title_justify="left")
    for heading in ("", "N@10", "R@10", "difference of N@10", "of R@10"):
        table.add_column(heading, justify="right")
    ranks = RUNS / run_key(Variant(), config) / "ranks.parquet"
    if not ranks.exists():
        sys.exit(
            f"{ranks} is not there: remove the row of that run from {RESULTS} to train it again"
        )
    own = pl.read_parquet(ranks)
    own = own.filter(pl.col("queries") == "test").select("user_id", "rank")
    for system in (s for s in SYSTEMS if s.name.startswith("RecTools")):
        with tempfile.TemporaryDirectory() as folder:
            export(config, Path(folder))
            theirs = peer_ranks(system, Path(folder), case, config, options)
        both = own.join(theirs, on="user_id", suffix="_peer", validate="1:1")
        assert len(both) == len(own), "the peer ranks other users"
        a, b = both["rank"].to_numpy(), both["rank_peer"].to_numpy()
        differences = []
        for metric in (metrics.ndcg, metrics.recall):
            low, high = metrics.bootstrap_interval(
                metric(a, 10), metric(b, 10), samples=2000, seed=0
            )
            differences.append(f"{low:+.4f} to {high:+.4f}")
        means = (f"{metric(b, 10).mean():.4f}" for metric in (metrics.ndcg, metrics.recall))
        table.add_row(system.name, *means, *differences)
    return table


def peer_ranks(
    system, folder: Path, case: str, config: Config, options: argparse.Namespace
) -> pl.DataFrame:
    """Ranks of the test items in the peer's lists of ten, at its best validation epoch."""
    sizes = {
        "width": config.model.hidden_size,
        "blocks": config.model.num_layers,
        "history": CASES[case].peer_history,
        "dropout": config.model.dropout,
        "batch": 128,
        "rows": 0,
        "epochs": options.epochs,
        "seconds": 7200,
        "batches": 0,
    }
    command = [str(python_of(system, options)), str(PEERS / system.script), "--data", str(folder)]
    command += [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command += ["--ranks", str(folder / "ranks.npz")]
    done = subprocess.run([*command, *system.arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{system.name} failed:\n{done.stderr[-3000:]}")
    with np.load(folder / "ranks.npz") as found:
        return pl.DataFrame({"user_id": found["user_ids"], "rank": found["ranks"]})


if __name__ == "__main__":
    main()
