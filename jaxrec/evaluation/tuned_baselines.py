"""All baselines of a run. The strong ones have hyperparameters, chosen on validation."""

from dataclasses import dataclass, field
from typing import Any

from jaxrec.data.events import user_of_event
from jaxrec.evaluation.baselines import Baseline, simple_baselines
from jaxrec.evaluation.cooccurrence import Cooccurrence
from jaxrec.evaluation.ease import Ease, limit_exceeded
from jaxrec.evaluation.protocol import Protocol
from jaxrec.evaluation.tuning import climb, tuning_ndcg, tuning_queries


@dataclass(frozen=True)
class Baselines:
    """The baselines of a run.

    Attributes:
        fitted: by name.
        hyperparameters: of those that have some, as validation chose them; and the share of the
            training events that they learned from, if not all.
        left_out: why a baseline is missing, by name.
        validation: metrics on the `tuning_queries`; empty without any.
    """

    fitted: dict[str, Baseline]
    hyperparameters: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    validation: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best(self) -> str | None:
        """The name with the highest NDCG@10 on validation."""
        return max(self.validation, key=lambda name: self.validation[name]["ndcg@10"], default=None)

    def report(self) -> dict[str, dict[str, Any]]:
        """What `metrics.json` says beside the test figures."""
        rows: dict[str, dict[str, Any]] = {
            name: {"hyperparameters": self.hyperparameters.get(name, {})} for name in self.fitted
        }
        for name, metrics in self.validation.items():
            rows[name]["validation"] = metrics
        return rows | {name: {"left_out": reason} for name, reason in self.left_out.items()}


def fit_baselines(protocol: Protocol) -> Baselines:
    """Fit all baselines to the training events, and choose hyperparameters on validation.

    Without validation queries, the hyperparameters are those that the search starts from.
    """
    log, queries, training = protocol.split.log, tuning_queries(protocol), protocol.training
    users, items, num_items = user_of_event(log)[training], log.items[training], len(protocol.valid)
    fitted = simple_baselines(users, items, log.times[training], num_items, has_time=log.has_time)
    hyperparameters: dict[str, dict[str, Any]] = {}

    def add(name: str, family: Cooccurrence | Ease) -> None:
        def rate(point: dict[str, Any]) -> float:
            return tuning_ndcg(protocol, protocol.scorer(family.baseline(point))(queries))

        point = climb(family.grid, family.start, rate) if len(queries) else family.start
        fitted[name] = family.baseline(point)
        share = family.training_share
        hyperparameters[name] = {**point, "training_share": share} if share < 1 else point

    add("cooccurrence", protocol.cooccurrence)
    users, items = protocol.newest_training
    reason = limit_exceeded(items)
    if not reason:
        add("ease", Ease(users, items, num_items))
    return Baselines(
        fitted,
        hyperparameters,
        {"ease": reason} if reason else {},
        {
            name: protocol.evaluate(protocol.scorer(baseline)(queries), queries)
            for name, baseline in fitted.items()
            if len(queries)
        },
    )
