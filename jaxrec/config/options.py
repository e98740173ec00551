"""Every option of a run: one frozen dataclass for each section, `Config` for all of them."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrec.config.plan import PlanConfig
from jaxrec.config.ranges import (
    Amount,
    Bounded,
    Count,
    NonNegative,
    Positive,
    Quantile,
    Share,
    Text,
)
from jaxrec.config.train import TrainConfig
from jaxrec.errors import ConfigError

SOURCES = ("id", "text", "graph", "vectors", "numbers")  # of an item encoder, beside vector columns


@dataclass(frozen=True)
class DataConfig(Bounded):
    """Where the events come from and which of them to use."""

    source: Text = "ml-100k"
    """`ml-100k`, `ml-1m`, a directory with the tables events, items and triples (or with a
    `dataset.yaml` that describes them), such a YAML file, a file or directory of events, or an
    invoice file in the columns of UCI Online Retail. `--data X` is short for `--data.source X`."""
    layout: str = ""
    """What the files of the directory mean: a YAML file as `dataset.yaml`, or a shipped one:
    amazon2023, diginetica, ga4, hm, instacart, movielens, rees46, retailrocket, shopify, taobao,
    tmall, yoochoose."""
    memory_limit: str = ""
    """Memory of DuckDB while it reads files, such as `2GB`. Beyond it, queries of `dataset.yaml`
    sort and join on disk (see TMPDIR). Empty: as `dataset.yaml` says, or 80 % of the machine's."""
    time: Literal["timestamp", "order"] = "timestamp"
    """`order`: timestamps are only positions, so there are no time gaps and no split by time."""
    ties: Literal["file", "item_id"] = "file"
    """Order of a user's events with equal timestamps: as in the file, or as in the item table."""
    strict: bool = False
    """Raise an error for events of unknown items and the like, instead of repairing them."""
    min_user_events: NonNegative = 0
    """k-core: leave out users with fewer events (0: keep all)."""
    min_item_events: NonNegative = 0
    """k-core: leave out items with fewer events (0: keep all)."""
    drop_repeats: bool = False
    """Leave out events of the same item as the user's previous event."""
    negative_event_types: tuple[str, ...] = ("cancel", "return", "dislike", "hide", "impression")
    """Event types that update the user's state and are never predicted."""
    event_weights: dict[str, Amount] = field(default_factory=dict)
    """Weight of each event type as a training target; 1 for types that are not named."""
    relations: tuple[str, ...] = ()
    """Relations of the graph to keep (empty: all)."""
    text_columns: tuple[str, ...] = (
        *("title", "brand", "genres", "category", "categories", "merchant", "description"),
    )
    """Item columns that form an item's text, in this order."""
    numeric_columns: tuple[str, ...] = ()
    """Item columns with numbers, such as price and rating, that the source `numbers` reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for event_type, weight in self.event_weights.items():
            if weight and event_type in self.negative_event_types:
                raise ConfigError(
                    f"event_weights: {event_type} is among negative_event_types; name it in only "
                    "one of the two"
                )


@dataclass(frozen=True)
class SplitConfig(Bounded):
    """Which events are held out for validation and test."""

    scheme: Literal["leave_one_out", "global_time"] = "global_time"
    """`leave_one_out`: a user's last event tests, the one before validates. `global_time`: all
    events after a point in time test."""
    test_quantile: Quantile = 0.9
    """`global_time`: the test period begins after this quantile of all timestamps."""
    validation_quantile: Quantile = 0.9
    """`global_time`: the validation period begins after this quantile of the remaining
    timestamps."""
    target_event_types: tuple[str, ...] = ()
    """Event types to predict in evaluation (empty: all that training predicts)."""


@dataclass(frozen=True)
class ModelConfig(Bounded):
    """The experts and their layers."""

    experts: tuple[str, ...] = ("id+graph", "text+graph")
    """Each expert has its own item encoder, sequence encoder and loss; their scores are added.
    Sources of an expert, combined by `+`: id, graph, text, the name of a column of vectors such as
    image_vector, `vectors` for all columns of vectors, and `numbers` for `data.numeric_columns`."""
    hidden_size: Count = 64
    """Width of every vector of an expert."""
    sequence: Literal["lstm", "gru", "rnn", "lru", "transformer", "bare_lstm"] = "lstm"
    """Sequence encoder, what the residual blocks read events with: an LSTM, a GRU, a plain
    recurrence (`rnn`), a gated linear recurrence that reads all events of a history at once
    (`lru`), or causal attention (`transformer`). `bare_lstm` is an LSTM without the blocks."""
    num_layers: Count = 2
    """Blocks of the sequence encoder."""
    sequence_heads: Count = 2
    """`transformer`: attention heads."""
    sequence_window: Count = 64
    """`transformer`: number of events before an event that each block attends to. The state of a
    user grows in proportion to it."""
    memory_decays: NonNegative = 4
    """Decayed sums of past item vectors, each with its own learned decay rate, beside the blocks
    (0: none)."""
    dropout: Share = 0.3
    """Dropout of event vectors and inside the blocks."""
    id_dropout: Share = 0.1
    """Probability that a training step hides an item's id, both as input and as candidate, and
    that it hides a vector or a number of an item."""
    graph_layer: Literal["gin", "residual", "sage", "transformer"] = "gin"
    """Update rule of the graph network: GIN, H + alpha A D^-1 A H, GraphSAGE, or attention over
    relations and neighbours."""
    aggregate: Literal["sum", "mean", "max"] = "mean"
    """How a node aggregates its messages. `max` is the max-pooling of `sage`. The layer
    `transformer` weighs messages by attention instead."""
    num_graph_layers: NonNegative = 1
    """Message-passing steps."""
    normalize_nodes: bool = False
    """`sage`: divide the vectors of nodes by their lengths after every layer."""
    graph_heads: Count = 4
    """Attention heads of the layer `transformer` and of the context encoder."""
    context: Literal["off", "replace", "after"] = "off"
    """Context encoder: a transformer that reads each node, its text and its neighbours as one short
    sequence. `replace`: in place of the graph layers. `after`: behind them."""
    context_layers: Count = 1
    """Transformer blocks of the context encoder."""
    context_neighbours: Count = 8
    """Most neighbours that the context encoder reads of a node, those with the fewest edges
    first."""
    time_gaps: bool = True
    """Give the sequence encoder the time between consecutive events."""
    time_since_last: bool = False
    """Train the user vector to take the time since the last event into account. Half of the
    training positions get it and live requests always do; evaluation and batch scoring never do."""
    temperature: Positive = 0.07
    """Initial temperature of the cosine scores; it is learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.experts:
            raise ConfigError("experts must name one or more, such as id+graph")
        self._check_sequence()
        self._check_graph()

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of all experts, each once."""
        return tuple(dict.fromkeys(part for name in self.experts for part in name.split("+")))

    def _check_sequence(self) -> None:
        """Raise a ConfigError for options of the sequence encoder that do not fit together."""
        if self.sequence == "transformer" and self.hidden_size % (2 * self.sequence_heads):
            raise ConfigError(
                f"sequence_heads: hidden_size {self.hidden_size} cannot be divided among "
                f"{self.sequence_heads} heads of an even width; change one of the two"
            )

    def _check_graph(self) -> None:
        """Raise a ConfigError for graph options that do not fit together."""
        if self.graph_layer != "sage":
            if self.aggregate == "max":
                raise ConfigError(
                    f"aggregate: max is for graph_layer sage, not {self.graph_layer}; choose sum "
                    "or mean"
                )
            if self.normalize_nodes:
                raise ConfigError(
                    f"normalize_nodes is for graph_layer sage, not {self.graph_layer}; leave it out"
                )
        attends = self.graph_layer == "transformer" or self.context != "off"
        if attends and self.hidden_size % self.graph_heads:
            raise ConfigError(
                f"graph_heads: hidden_size {self.hidden_size} cannot be divided among "
                f"{self.graph_heads} heads; choose a divisor of it"
            )
        if self.context == "after" and not self.num_graph_layers:
            raise ConfigError(
                "context: there are no graph layers that it could come after, as num_graph_layers "
                "is 0; choose replace"
            )
        if self.context != "off" and "graph" not in self.sources:
            raise ConfigError(
                "context: no expert reads the graph; name one with graph in experts, such as "
                "id+graph"
            )


@dataclass(frozen=True)
class TextConfig(Bounded):
    """The text encoder."""

    pretrained: Text = "sentence-transformers/all-MiniLM-L6-v2"
    """A BERT or GPT-2 checkpoint: a directory, or a Hugging Face name. `org/model@REVISION` takes a
    branch, tag or commit. A run refuses an encoder whose files differ from those in training."""
    mode: Literal["frozen", "finetune"] = "frozen"
    """`frozen`: text vectors are computed once. `finetune`: the last layers of the encoder train as
    well."""
    pooling: Literal["auto", "mean", "last"] = "auto"
    """How the vectors of a text's tokens become one: their mean, or the last one. `auto`: `mean`
    for BERT, and `last` for GPT, whose last token alone has read the whole text."""
    max_tokens: Count = 64
    """Longer texts are cut to this length."""
    whiten: Count = 192
    """Principal components to keep when text vectors and vector columns are whitened."""
    finetune_layers: Count = 1
    """`finetune`: number of last layers that train."""
    finetune_items: Count = 512
    """`finetune`: items encoded with gradient in a step, the targets first, then random ones."""


@dataclass(frozen=True)
class ForecastConfig(Bounded):
    """The forecast of the next events: a decoder that is trained after the model, which stays as it
    is."""

    steps: NonNegative = 0
    """Events that the decoder learns to forecast, such as 10 (0: no decoder)."""
    epochs: Count = 5
    """Epochs of the decoder."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 1:
            raise ConfigError(
                "steps: the first step of a forecast is what the model predicts anyway; give 2 or "
                "more, or 0 for no decoder"
            )


@dataclass(frozen=True)
class EvaluationConfig(Bounded):
    """Full ranking of the held-out events."""

    mask: tuple[str, ...] = ("seen",)
    """Items to leave out of a user's ranking: `seen`, `none`, or event types such as `buy`.
    Training leaves them out of its softmax too, so their scores mean nothing. Where users often
    repeat items, choose a mask that keeps those: the model learns how much to repeat."""
    history: NonNegative = 0
    """Events before a query that its state is computed from (0: all)."""
    queries: Count = 200_000
    """Most events to rank in validation and in each test set; larger sets are subsampled evenly."""
    users: Count = 512
    """Users to encode at a time."""
    k: Count = 10
    """Length of the lists for coverage, Gini index and mean popularity."""


@dataclass(frozen=True)
class WarmStartConfig(Bounded):
    """How a run goes on from an earlier run, its base."""

    base: str = ""
    """Run directory to go on from (empty: train from scratch). `jaxrec train --from RUN` sets it
    and takes over the other options of RUN."""
    since: str = ""
    """Events after this time are new: ISO 8601 text, or seconds since 1970 (empty: the newest event
    that the base was trained on). `--since X` is short for `--warm_start.since X`."""
    replay: Share = 0.5
    """Share of old events among the events that training predicts."""
    epochs: NonNegative = 2
    """Most epochs over the new events; takes the place of `train.epochs`."""
    learning_rate: Positive = 5e-4
    """Peak learning rate; takes the place of `train.learning_rate`."""
    drop_items: bool = False
    """Leave out items of the base that neither the item table nor the events hold any more."""


@dataclass(frozen=True)
class Config:
    """Train a recommender: graph + text + event sequences."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    forecast: ForecastConfig = field(default_factory=ForecastConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        if self.warm_start.base and self.train.init:
            raise ConfigError(
                "train.init begins a new training and --from goes on with one; give only one"
            )
        window, length = self.model.sequence_window, self.train.sequence_length
        if self.model.sequence == "transformer" and window > length:
            raise ConfigError(
                f"model.sequence_window {window} is longer than train.sequence_length {length}, so "
                f"training would never show a full window; choose {length} or fewer events"
            )
        if "numbers" in self.model.sources and not self.data.numeric_columns:
            raise ConfigError(
                "model.experts names numbers, but data.numeric_columns names no column; name some, "
                "such as price"
            )
        if self.forecast.steps > length:
            raise ConfigError(
                f"forecast.steps {self.forecast.steps} is above train.sequence_length {length}, so "
                f"training would never show that many events; choose {length} or fewer"
            )
        if self.train.fan_out and self.model.context != "off":
            raise ConfigError(
                "fan_out: the context encoder reads a fixed number of neighbours already; set "
                "train.fan_out to 0 or model.context to off"
            )
        if self.train.sparse_rows and "graph" in self.model.sources and not self.train.fan_out:
            raise ConfigError(
                "train.sparse_rows: an expert with the source graph reads all rows in every step; "
                "set train.fan_out, name experts without graph, or leave sparse_rows out"
            )
