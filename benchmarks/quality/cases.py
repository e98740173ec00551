"""The data sets, their protocols, and the variants of an ablation."""

from dataclasses import dataclass, field
from pathlib import Path

from jaxrec.api import configure
from jaxrec.config import Config
from jaxrec.data.sources import NAMED_SOURCES


@dataclass(frozen=True)
class Variant:
    """A change to a recipe."""

    options: dict = field(default_factory=dict)
    event_type: str = ""  # read only events of this type; empty for all


@dataclass(frozen=True)
class Case:
    """A data set under a protocol. `benchmarks/results/published.jsonl` has the figures of others.

    Attributes:
        event_type: the predicted event type, where the data set has several.
        peer_history: number of events that a peer reads, as its authors set it.
        extra: variants that `--ablation` adds.
    """

    recipe: str
    source: str
    options: dict = field(default_factory=dict)
    event_type: str = ""
    peer_history: int = 50
    extra: dict[str, Variant] = field(default_factory=dict)

    def data(self, folder: Path) -> str:
        """`data.source`: the name of data that jaxrec downloads, or a path in a folder."""
        return self.source if self.source in NAMED_SOURCES else str(folder / self.source)


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
        # also_bought and also_viewed may hold purchases after the test events
        extra={"with also_bought and the like": Variant({"data.relations": []})},
    ),
    "beauty by time": Case("beauty", "amazon_beauty", BY_TIME | {"data.drop_repeats": True}),
    "ml-100k": Case("ml100k", "ml-100k", {"data.min_item_events": 5}, peer_history=200),
    "ml-1m": Case("ml1m", "ml-1m", peer_history=200),
    # a quarter of the test items differ from those in item order
    "ml-1m in file order": Case("ml1m", "ml-1m", {"data.ties": "file"}, peer_history=200),
    # no user rates a film twice
    "ml-1m by time": Case("ml1m", "ml-1m", BY_TIME, peer_history=200),
    "ml-1m by time in file order": Case(
        "ml1m", "ml-1m", BY_TIME | {"data.ties": "file"}, peer_history=200
    ),
    "scientific": Case(
        "shopping",
        "amazon_scientific",
        {"data.time": "order", "split.scheme": "leave_one_out"},
    ),
    # no titles; a smaller hidden size than the recipe's, because there are 31,000 items
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
# scores of the model alone, without item neighbours
ALONE = {"model.cooccurrence": False, "model.similar_text": False}


def configuration(case: Case, data: str, variant: Variant, seed: int) -> Config:
    """A recipe on a data set with one seed, without the refit of some recipes."""
    options = {"train.refit": "none", **case.options, **variant.options, "train.seed": seed}
    return configure(case.recipe, data, options)


def ablations(config: Config) -> dict[str, Variant]:
    """Variants of a recipe that each leave out one part."""
    experts = config.model.experts

    def without(source: str) -> Variant:
        rest = ("+".join(s for s in e.split("+") if s != source) for e in experts)
        return Variant({"model.experts": list(dict.fromkeys(e for e in rest if e))})

    all_sources = "+".join(dict.fromkeys(s for e in experts for s in e.split("+")))
    variants = {
        "without graph": without("graph"),
        "without text": without("text"),
        "without ids": without("id"),
        "ids alone": Variant({"model.experts": ["id"] * len(experts)}),
        "bare LSTM": Variant({"model.sequence": "bare_lstm"}),
        "one expert": Variant({"model.experts": [all_sources]}),
        "without item memory": Variant({"model.memory_decays": 0}),
        "without co-occurrence": Variant({"model.cooccurrence": False}),
        "without item neighbours": Variant(ALONE),
    }
    if config.data.time == "timestamp":
        variants["without time gaps"] = Variant({"model.time_gaps": False})
    return variants
