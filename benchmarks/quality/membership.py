"""What a model tells of who it was trained on: membership inference on shadow models.

    python benchmarks/quality/membership.py                    # MovieLens-100K, all settings
    python benchmarks/quality/membership.py --settings "epsilon 8" --models 4
    python benchmarks/quality/membership.py --data ml-1m

Each setting is trained `--models` times on a random half of the users, and every user is in half of
the models. The attacker has the events of a user and a model, and asks whether the user trained it.
Two figures of the model about the user's newest training events (at most 64) are attacked: `loss`,
the mean of -log p of the next item, and `rank`, the mean of log(1 + rank). Both say more if the
user's own difficulty is known: `shadow` subtracts the mean figure of the other models that were
trained without the user (Watson et al., arXiv:2111.08440; Carlini et al., arXiv:2112.03570).
`forgotten` retrains models without a tenth of the users, by `data.forgotten`, and attacks these
users before and after.

A row tells the area under the ROC curve (.5: the attacker guesses) and the share of members that
are found where 1 % of non-members are taken for members, with 95 % intervals of a bootstrap over
users. `ndcg@10` is that of a model of the same setting that is trained on all users. Models train
all their epochs, without early stop and corrections. A model that has been trained is not trained
again. Rows go to `benchmarks/results/membership.jsonl`.
"""

import argparse
import hashlib
import json
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table
from rows import append_row, commit

import jaxrec
from jaxrec.api import configure, enable_compilation_cache
from jaxrec.artifacts.files import write_json
from jaxrec.artifacts.run_directory import open_checkpoints
from jaxrec.config import Config, to_yaml
from jaxrec.data.events import position_in_history, user_of_event
from jaxrec.data.forgotten import add_forgotten
from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.history_bias import history_adjustments
from jaxrec.ranking.top_k import EvalQueries, log_probabilities, rank_queries
from jaxrec.training import loop
from jaxrec.training.checkpoints import load
from jaxrec.training.evaluator import Evaluator
from jaxrec.training.fit import open_run, start
from jaxrec.training.logging import open_log
from jaxrec.training.privacy import run as private
from jaxrec.types import Queries

FIGURES = "figures.json"  # of a finished model, in its run
RESULTS = Path(__file__).parent.parent / "results" / "membership.jsonl"
SAMPLES = 1000  # of the bootstrap
FALSE_POSITIVES = 0.01
HELD_OUT = 2  # newest events of a user, which train no model
ATTACKED = 64  # events of a user at most
FORGOTTEN = 0.1  # share of a model's users
ATTACKS = ("loss", "rank", "loss, shadow", "rank, shadow")

SHARED = {"model.experts": ["id"], "data.relations": ["has_genre"], "train.auxiliary_weight": 0.0}
PRIVATE = {
    "model.hidden_size": 16,
    "model.num_layers": 1,
    "model.memory_decays": 2,
    "model.dropout": 0.0,
    "model.id_dropout": 0.0,
    "train.sequence_length": 64,
    "train.batch_size": 256,
    "train.epochs": 10,
    "train.learning_rate": 0.03,
    "train.warmup_steps": 5,
    "train.weight_decay": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "no privacy": {"model.hidden_size": 32, "train.epochs": 8},
    "no privacy, options of the private models": PRIVATE,
    "epsilon 8": PRIVATE | {"train.privacy.epsilon": 8.0},
    "epsilon 2": PRIVATE | {"train.privacy.epsilon": 2.0},
}
LARGER = {"ml-1m": {"train.batch_size": 1024, "train.epochs": 20}}
"""Options of private models of larger data: more users hide more noise."""

Stats = dict[str, Float[np.ndarray, " U"]]  # by attack; higher means a member


def main() -> None:
    """Train the models, attack them, and print and keep the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS, "forgotten"])
    parser.add_argument("--models", type=int, default=4, help="of every setting; an even number")
    parser.add_argument("--retrained", type=int, default=2, help="models that forget users")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "membership")
    options = parser.parse_args()
    commit()
    enable_compilation_cache()
    tables = load_source(options.data)
    members = balanced_halves(tables.events["user_id"].n_unique(), options.models)
    rows = []
    for setting in options.settings:
        begin = time.perf_counter()
        attack = forget if setting == "forgotten" else attack_setting
        for row in attack(setting, tables, members, options):
            row |= {"code": commit(), "date": datetime.now(UTC).date().isoformat()}
            row |= {"minutes": round((time.perf_counter() - begin) / 60, 1)}
            append_row(RESULTS, row)
            rows.append(row)
    Console(width=120).print(summary(rows))


def balanced_halves(users: int, models: int) -> Bool[np.ndarray, "models U"]:
    """Who trains which model: two models have the two halves of all users, in a random order.

    Of an odd number of users, one is in neither. So every model has as many users as the others.
    """
    random = np.random.default_rng(0)
    halves = np.zeros((models, users), bool)
    for first in range(0, models, 2):
        order = random.permutation(users)
        halves[first, order[: users // 2]] = True
        halves[first + 1, order[users // 2 : users // 2 * 2]] = True
    return halves


def attack_setting(
    setting: str, tables: Tables, members: Bool[np.ndarray, "models U"], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for every attack on the models of a setting."""
    stats = stats_of_setting(setting, tables, members, options)
    whole = trained(setting, tables, options) / FIGURES
    about = {
        "data": options.data,
        "setting": setting,
        "models": len(members),
        "users": members.shape[1],
        **json.loads(whole.read_text()),
        "options": options_of(setting, options.data),
    }
    scores = {
        name: np.stack([with_shadows(stats, members, number)[name] for number in range(len(stats))])
        for name in ATTACKS
    }
    return [about | {"attack": name} | measured(scores[name], members) for name in ATTACKS]


def forget(
    setting: str, tables: Tables, members: Bool[np.ndarray, "models U"], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of attacks on forgotten users, before and after models are trained again without them.

    Those who never trained the model are the non-members.
    """
    base = "no privacy"
    stats, users = stats_of_setting(base, tables, members, options), user_ids(tables)
    random = np.random.default_rng(1)
    before, after, targets, judged = [], [], [], []
    for number in range(options.retrained):
        own = np.flatnonzero(members[number])
        gone = random.choice(own, int(FORGOTTEN * len(own)), replace=False)
        run = trained(base, tables, options, number, members, forgotten=users[gone].to_list())
        before.append(with_shadows(stats, members, number))
        retrained = [
            statistics(jaxrec.load(run), tables) if n == number else s for n, s in enumerate(stats)
        ]
        after.append(with_shadows(retrained, members, number))
        targets.append(np.isin(np.arange(len(users)), gone))
        judged.append(targets[-1] | ~members[number])
    rows = []
    for moment, found in (("before", before), ("after", after)):
        for name in ATTACKS:
            scores = np.stack([own[name] for own in found])
            figures = measured(scores, np.stack(targets), np.stack(judged))
            rows.append(
                {
                    "data": options.data,
                    "setting": f"forgotten users, {moment} retraining",
                    "models": options.retrained,
                    "users": int(np.stack(targets).sum()),
                    "attack": name,
                    **figures,
                }
            )
    return rows


def stats_of_setting(
    setting: str, tables: Tables, members: Bool[np.ndarray, "models U"], options: argparse.Namespace
) -> list[Stats]:
    """The figures of every user under each model of a setting."""
    return [
        statistics(jaxrec.load(trained(setting, tables, options, number, members)), tables)
        for number in range(len(members))
    ]


def options_of(setting: str, data: str) -> dict[str, Any]:
    """What the models of a setting change in the recipe."""
    options = SHARED | SETTINGS[setting]
    return options | LARGER.get(data, {}) if PRIVATE.items() <= options.items() else options


def trained(
    setting: str,
    tables: Tables,
    options: argparse.Namespace,
    number: int | None = None,
    members: Bool[np.ndarray, "models U"] | None = None,
    forgotten: list[str] | None = None,
) -> Path:
    """The run of a setting on all users, or on the members of a model; trained if it is not there.

    Args:
        forgotten: users of the model that the training leaves out.
    """
    runs = options.runs
    changes = options_of(setting, options.data) | {"train.seed": number or 0}
    label = "all" if number is None else f"{number}-forgotten" if forgotten else str(number)
    config = configure("ml100k", overrides=changes)
    data = tables.events.hash_rows(seed=0).sum()
    parts = (commit(), to_yaml(config), data, None if members is None else members.shape)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
    run = runs / f"{setting.replace(',', '').replace(' ', '-')}-{label}-{key}"
    if (run / FIGURES).exists():
        return run
    if number is not None and members is not None:
        own = user_ids(tables).filter(pl.Series(members[number]))
        kept = tables.events["user_id"].cast(pl.String).is_in(own.implode())
        tables = replace(tables, events=tables.events.filter(kept))
    if forgotten:
        path = runs / f"{run.name}.txt"
        path.unlink(missing_ok=True)
        runs.mkdir(parents=True, exist_ok=True)
        add_forgotten(path, forgotten, 2**31)
        config = replace(config, data=replace(config.data, forgotten=str(path)))
    train(config, run, tables)
    return run


def train(config: Config, run: Path, tables: Tables) -> None:
    """Train all epochs of a run, without early stop and corrections, and rank its test events."""
    shutil.rmtree(run, ignore_errors=True)  # of a benchmark that was stopped
    context = open_run(config, run, tables)
    with open_checkpoints(run) as manager:
        state, progress = start(context, manager)
        with open_log(run, int(state.step)) as log:
            loop.train(context, state, progress, manager, log, private.UNSELECTED)
        state, _ = load(context, manager, manager.best_step())
    private.drop_key(run)
    queries = context.dataset.split.test["last"]
    scores, _ = Evaluator(context, state).metrics(queries, Correction())
    spent = private.account(context.budget, int(state.step)) if context.budget else {}
    figures = {name: round(scores[name], 5) for name in ("ndcg@10", "recall@10")}
    write_json(run / FIGURES, figures | {"epsilon": spent.get("epsilon")})


def user_ids(tables: Tables) -> pl.Series:
    """All users, in the order of every array here."""
    return tables.events["user_id"].cast(pl.String).unique().sort()


def statistics(model: TrainedModel, tables: Tables) -> Stats:
    """What a served model says of the training events of every user; higher means a member."""
    log = model.encoder.validated_log(tables.events)
    order = pl.Series(log.user_ids).cast(pl.String)
    places = position_in_history(log)
    own = user_of_event(log)
    ends = log.lengths[own] - HELD_OUT
    positions = np.flatnonzero((places >= np.maximum(ends - ATTACKED, 1)) & (places < ends))
    queries = Queries(own[positions], positions)
    targets = log.items[positions]
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    mask = model.config.evaluation.mask
    adjustments = history_adjustments(log, queries, mask, bias, targets)
    vectors = model.encoder.vectors_at(log, queries)
    items = model.index.items
    ranks = rank_queries(EvalQueries(vectors, targets, adjustments), items, k=1).ranks
    log_p = log_probabilities(
        vectors,
        items,
        targets[:, None],
        adjustments,
        inverse_temperature=model.inverse_temperature,
    )[:, 0]
    means = (
        pl.DataFrame({"user": order[queries.users], "loss": log_p, "rank": -np.log1p(ranks)})
        .group_by("user")
        .mean()
    )
    by_user = user_ids(tables).to_frame("user").join(means, on="user", how="left").sort("user")
    return {name: by_user[name].to_numpy() for name in ("loss", "rank")}


def with_shadows(stats: list[Stats], members: Bool[np.ndarray, "models U"], number: int) -> Stats:
    """The figures of a model, and what is left of them without those of its shadow models.

    A user's shadows are the other models that were trained without the user.
    """
    others = ~members
    others[number] = False
    scores = dict(stats[number])
    for name in ("loss", "rank"):
        figures = np.stack([own[name] for own in stats])
        usual = (figures * others).sum(0) / others.sum(0)
        scores[f"{name}, shadow"] = stats[number][name] - usual
    return scores


def measured(
    scores: Float[np.ndarray, "models U"],
    members: Bool[np.ndarray, "models U"],
    judged: Bool[np.ndarray, "models U"] | None = None,
) -> dict[str, Any]:
    """The area under the curve and the members found at few false positives, with intervals.

    Args:
        judged: pairs of a model and a user to count; None: all.
    """
    judged = np.ones_like(members) if judged is None else judged
    random, users = np.random.default_rng(0), members.shape[1]
    samples = [np.arange(users), *random.integers(0, users, (SAMPLES, users))]
    figures = np.array([attack_figures(scores[:, s], members[:, s], judged[:, s]) for s in samples])
    low, high = np.quantile(figures[1:], [0.025, 0.975], axis=0)
    return {
        name: [round(float(value), 4) for value in (figures[0, n], low[n], high[n])]
        for n, name in enumerate(("auc", "tpr at 1% fpr"))
    }


def attack_figures(
    scores: Float[np.ndarray, "models U"],
    members: Bool[np.ndarray, "models U"],
    judged: Bool[np.ndarray, "models U"],
) -> tuple[float, float]:
    """AUC (the share of pairs in the right order) and the true positives at few false ones."""
    inside, outside = scores[judged & members], np.sort(scores[judged & ~members])
    below = np.searchsorted(outside, inside, side="left")
    not_above = np.searchsorted(outside, inside, side="right")
    threshold = np.quantile(outside, 1 - FALSE_POSITIVES)
    return float((below + not_above).mean() / 2 / len(outside)), float((inside > threshold).mean())


def summary(rows: list[dict[str, Any]]) -> Table:
    """A row for every attack on every setting."""
    table = Table("setting", "attack", "AUC", "members found at 1 % false", "N@10", "epsilon")
    for row in rows:
        figures = [
            f"{value:.3f} ({low:.3f} to {high:.3f})"
            for value, low, high in (row["auc"], row["tpr at 1% fpr"])
        ]
        spent = row.get("epsilon")
        quality = f"{row['ndcg@10']:.4f}" if "ndcg@10" in row else ""
        table.add_row(
            row["setting"], row["attack"], *figures, quality, f"{spent:.2f}" if spent else ""
        )
    return table


if __name__ == "__main__":
    main()
