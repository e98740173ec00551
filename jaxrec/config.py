"""Every option of a run: one frozen dataclass a part, a YAML recipe, dotted overrides.

A recipe is read as if its entries stood on the command line before the user's own, so types,
unknown names and suggestions are handled in one place (tyro).
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
import yaml

from jaxrec.errors import ConfigError


class Range(NamedTuple):
    """What a number may be, and how to say so."""

    holds: Callable[[float], bool]
    words: str


COUNT = Range(lambda value: value >= 1, "1 or more")
AMOUNT = Range(lambda value: 0 <= value < float("inf"), "0 or more")
POSITIVE = Range(lambda value: value > 0, "above 0")
RATE = Range(lambda value: 0 <= value < 1, "0 or more and below 1")
QUANTILE = Range(lambda value: 0 < value < 1, "between 0 and 1")


def check_ranges(options: Any, wanted: Range, *names: str) -> None:
    """Raise a ConfigError if an option is out of range."""
    for name in names:
        value = getattr(options, name)
        if not wanted.holds(value):
            raise ConfigError(f"{name} must be {wanted.words}, not {value}")


@dataclass(frozen=True)
class DataConfig:
    """Where the events come from and which of them count."""

    source: str = "ml-100k"
    """`ml-100k`, `ml-1m`, a directory with the tables events, items and triples, a file of events,
    or an invoice file in the columns of UCI Online Retail. `--data X` is short for
    `--data.source X`."""
    time: Literal["timestamp", "order"] = "timestamp"
    """`order`: timestamps are only positions; no time gaps, no split by time."""
    ties: Literal["file", "item_id"] = "file"
    """Order of events of a user with equal timestamps: as in the file, or as in the item table."""
    strict: bool = False
    """Refuse what is otherwise repaired (events of unknown items and the like)."""
    min_user_events: int = 0
    """k-core: users with fewer events are left out (0: nobody)."""
    min_item_events: int = 0
    """k-core: items with fewer events are left out (0: none)."""
    drop_repeats: bool = False
    """Leave out an event whose item equals that of the user's event before."""
    negative_event_types: tuple[str, ...] = ("cancel", "return", "dislike", "hide", "impression")
    """Event types that inform the state and are never predicted."""
    event_weights: dict[str, float] = field(default_factory=dict)
    """Weight of an event type as a training target; event_types not named weigh 1."""
    relations: tuple[str, ...] = ()
    """Relations of the graph to keep (none named: all)."""
    text_columns: tuple[str, ...] = (
        "title",
        "brand",
        "genres",
        "category",
        "categories",
        "merchant",
        "description",
    )
    """Item columns that make up an item's text, in this order."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for a minimum or a weight that is none."""
        check_ranges(self, AMOUNT, "min_user_events", "min_item_events")
        for event_type, weight in self.event_weights.items():
            if not AMOUNT.holds(weight):
                raise ConfigError(
                    f"event_weights: {event_type} must be {AMOUNT.words}, not {weight}"
                )
            if weight and event_type in self.negative_event_types:
                raise ConfigError(
                    f"event_weights: {event_type} is among negative_event_types, which are never predicted; "
                    "name it in one of them"
                )


@dataclass(frozen=True)
class SplitConfig:
    """What is held out."""

    scheme: Literal["leave_one_out", "global_time"] = "global_time"
    """`leave_one_out`: a user's last event tests, the one before validates. `global_time`: all
    events after a moment test."""
    test_quantile: float = 0.9
    """`global_time`: the test period begins after this quantile of all timestamps."""
    validation_quantile: float = 0.9
    """`global_time`: the validation period begins after this quantile of what is left."""
    target_event_types: tuple[str, ...] = ()
    """Event types to predict in evaluation (none named: all that training predicts)."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for a quantile that leaves a period empty."""
        check_ranges(self, QUANTILE, "test_quantile", "validation_quantile")


@dataclass(frozen=True)
class ModelConfig:
    """Experts and their parts."""

    experts: tuple[str, ...] = ("id+graph", "text+graph")
    """One item encoder and LSTM each, trained apart; their scores are added. Sources of an
    expert, combined by `+`: id, graph, text."""
    hidden_size: int = 64
    """Width D of every vector of an expert."""
    num_layers: int = 2
    """LSTM blocks."""
    sequence: Literal["lstm", "bare_lstm"] = "lstm"
    """Sequence encoder: LSTMs in residual blocks with a feed-forward layer, or LSTMs alone."""
    memory_decays: int = 4
    """Sums of past events that fade at so many learned rates, beside the blocks (0: none)."""
    dropout: float = 0.3
    """Dropout of event vectors and inside the blocks."""
    id_dropout: float = 0.1
    """Chance that an item's id is hidden in a training step, as input and as candidate."""
    graph_layer: Literal["gin", "residual"] = "gin"
    """Update rule of the graph network: GIN, or H + alpha A D^-1 A H."""
    aggregate: Literal["sum", "mean"] = "mean"
    """How a node gathers its messages."""
    num_graph_layers: int = 1
    """Message-passing steps."""
    time_gaps: bool = True
    """Tell the LSTM the time since the event before."""
    time_since_last: bool = False
    """Learn to be told, when asked, the time since the last event: half of the training slots are,
    live requests always, evaluation and batch scoring never."""
    temperature: float = 0.07
    """Initial temperature of the cosine scores; learned."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for a model of no size."""
        if not self.experts:
            raise ConfigError("experts must name one or more, such as id+graph")
        check_ranges(self, COUNT, "hidden_size", "num_layers")
        check_ranges(self, AMOUNT, "memory_decays", "num_graph_layers")
        check_ranges(self, RATE, "dropout", "id_dropout")
        check_ranges(self, POSITIVE, "temperature")


@dataclass(frozen=True)
class TextConfig:
    """The text encoder."""

    pretrained: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A BERT checkpoint: directory or Hugging Face name."""
    mode: Literal["frozen", "finetune"] = "frozen"
    """`frozen`: vectors are computed once. `finetune`: the last layers train as well."""
    max_tokens: int = 64
    """Longer texts are cut."""
    whiten: int = 192
    """Principal components kept when the vectors are whitened."""
    finetune_layers: int = 1
    """`finetune`: how many of the last layers train."""
    finetune_items: int = 512
    """`finetune`: items encoded with gradient in a step: targets first, then random ones."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for an encoder that reads or trains nothing."""
        check_ranges(self, COUNT, "max_tokens", "whiten", "finetune_layers", "finetune_items")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    seed: int = 0
    """Seed of parameters, dropout and batches."""
    epochs: int = 30
    """The most epochs to train; the learning rate has decayed at the last."""
    patience: int = 5
    """Stop after so many epochs without a better validation NDCG@10."""
    batch_size: int = 32
    """Rows of a packed batch (all devices together)."""
    sequence_length: int = 64
    """Time slots of a packed row; longer histories are cut into windows."""
    burn_in: int = 0
    """Events before a window that warm the state up without being predicted."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 100
    """Steps of linear warm-up; cosine decay follows."""
    final_rate: float = 0.1
    """Learning rate at the last epoch, as a share of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest global norm of the gradient."""
    bf16: bool = False
    """Compute the blocks, the graph network and the loss's products in bfloat16."""
    auxiliary: tuple[str, ...] = ("category", "brand", "merchant", "genre")
    """Node types to predict beside the next item, where the graph has them."""
    auxiliary_weight: float = 0.1
    """Weight of each such loss, and of the loss of users' first items."""
    loss_logits: int = 2**21
    """Logits of the loss held at a time, but those of 256 positions, or of a slot, at least."""
    item_shards: int = 1
    """Devices along the `items` axis of the mesh; the others go along `users`."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for an optimisation that does nothing or cannot run."""
        check_ranges(
            self,
            COUNT,
            "epochs",
            "patience",
            "batch_size",
            "sequence_length",
            "loss_logits",
            "item_shards",
        )
        check_ranges(self, AMOUNT, "burn_in", "warmup_steps", "final_rate", "weight_decay")
        check_ranges(self, AMOUNT, "auxiliary_weight")
        check_ranges(self, POSITIVE, "learning_rate", "clip")
        if "item" in self.auxiliary:
            raise ConfigError("auxiliary: item is what is predicted anyway; name other node types")


@dataclass(frozen=True)
class EvaluationConfig:
    """Full ranking of the held-out events."""

    mask: tuple[str, ...] = ("seen",)
    """Items left out of a user's ranking: `seen`, `none`, or event types such as `buy`. Training
    leaves them out of its softmax as well, so their own scores mean nothing. Where people come
    back to what they know, leave it in: what the newest events add to their items is learned."""
    history: int = 0
    """Events before a query that its state is folded from (0: all)."""
    queries: int = 200_000
    """Events to rank of validation and of each set of test; of more, so many evenly spaced ones."""
    users: int = 512
    """Users encoded at a time."""
    k: int = 10
    """Length of the lists behind coverage, Gini index and mean popularity."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for an evaluation of nothing."""
        check_ranges(self, AMOUNT, "history")
        check_ranges(self, COUNT, "queries", "users", "k")


@dataclass(frozen=True)
class Config:
    """Train a recommender: graph + text + event sequences."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def recipes() -> Path:
    """The directory of recipes: in the wheel, or beside the package in a checkout."""
    packaged = Path(str(resources.files("jaxrec"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The entries of a YAML recipe, given as a file or by the name of a shipped one.

    A recipe may name another one as its `base` and hold only what differs.

    Raises:
        ConfigError: there is no such recipe, or it is not a mapping.
    """
    path = Path(recipe)
    if not path.suffix:
        path = recipes() / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in recipes().glob("*.yaml")))
        raise ConfigError(f"there is no recipe {str(recipe)!r}; give a YAML file or one of {known}")
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path} must hold `section: {{option: value}}` entries")
    base = entries.pop("base", None)
    return {**(read_recipe(base) if base else {}), **dict(_flatten(entries))}


def parse(arguments: Sequence[str] = (), layers: Sequence[Mapping[str, Any]] = ()) -> Config:
    """The configuration of `layers` of entries (nested or dotted), command-line `arguments` on top.

    Prints the help and exits if asked to. Raises ConfigError for an unknown option, with the
    nearest known ones, and for a value of the wrong type.
    """
    entries = dict(entry for layer in layers for entry in _flatten(layer))
    flags = [token for name, value in entries.items() for token in _flag(name, value)]
    console = io.StringIO()
    try:
        with contextlib.redirect_stderr(console):
            return tyro.cli(
                Config,
                args=[*flags, *arguments],
                prog="train.py",
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
                use_underscores=True,
                console_outputs=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(console.getvalue().strip()) from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `parse` reads back."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and "." not in dotted:
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"--{name}", *(str(part) for pair in value.items() for part in pair)]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *map(str, values)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
