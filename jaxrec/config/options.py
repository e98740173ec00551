"""Every option of a run: one frozen dataclass for each section, `Config` for all of them."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrec.config.data import DataConfig, SplitConfig
from jaxrec.config.plan import PlanConfig
from jaxrec.config.privacy import refuse_unprotected
from jaxrec.config.ranges import (
    Bounded,
    Count,
    NonNegative,
    Positive,
    Share,
    Text,
)
from jaxrec.config.train import TrainConfig
from jaxrec.errors import ConfigError

SOURCES = ("id", "text", "graph", "vectors", "numbers")  # of an item encoder, beside vector columns


@dataclass(frozen=True)
class ModelConfig(Bounded, section="model"):
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
    """`transformer` and `train.masked_item_weight`: attention heads."""
    sequence_window: Count = 64
    """`transformer`: number of events before an event that each block attends to. The state of a
    user grows in proportion to it."""
    memory_decays: NonNegative = 4
    """Decayed sums of past item vectors, each with its own learned decay rate, beside the blocks
    (0: none)."""
    cooccurrence: bool = True
    """Add decayed co-occurrence to the scores: rank items higher that came after the user's newest
    items in training. Validation chooses its strength, which is 0 where it does not help."""
    cooccurrence_users: Count = 1
    """Co-occurrence leaves out pairs of items that fewer users have had in this order. From 2, the
    run does not hold pairs that only one user's history has."""
    similar_text: bool = True
    """Rank items higher whose texts are like those of the user's newest items. Validation chooses
    the strength, as for `cooccurrence`."""
    dropout: Share = 0.3
    """Dropout of event vectors and inside the blocks."""
    id_dropout: Share = 0.1
    """Probability that a training step hides an item's id, both as input and as candidate, and
    that it hides a vector or a number of an item."""
    min_events_for_id: NonNegative = 0
    """Items with fewer training events have no id vector of their own: they share that of the
    unknown item, so the id tables are smaller. 0: all items have a row."""
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
class TextConfig(Bounded, section="text"):
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
class ForecastConfig(Bounded, section="forecast"):
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
class EvaluationConfig(Bounded, section="evaluation"):
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
class ReportConfig(Bounded, section="report"):
    """What the cards of a run tell."""

    group_by: tuple[str, ...] = ()
    """Item columns, such as brand: quality and exposure of the items of each value."""


@dataclass(frozen=True)
class WarmStartConfig(Bounded, section="warm_start"):
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
    """Most epochs over the new events; takes the place of `train.epochs`. In the first training
    after `jaxrec transfer`, `train.epochs` and `train.learning_rate` hold."""
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
    report: ReportConfig = field(default_factory=ReportConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        self._check_shops()
        if self.train.privacy.epsilon:
            refuse_unprotected(self)
        if self.warm_start.base and self.train.init:
            raise ConfigError(
                "train.init begins a new training and --from goes on with one; give only one"
            )
        if self.train.masked_item_weight and self.model.hidden_size % self.model.sequence_heads:
            raise ConfigError(
                f"train.masked_item_weight: model.hidden_size {self.model.hidden_size} cannot be "
                f"divided among {self.model.sequence_heads} heads; change model.sequence_heads"
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

    def _check_shops(self) -> None:
        """Raise a ConfigError for what does not go with several shops."""
        if not self.data.shops:
            return
        if "id" in self.model.sources:
            raise ConfigError(
                "model.experts names id, but ids say nothing across the shops of data.shops; name "
                "sources that all shops have, such as text+graph"
            )
        if self.train.link_weight:
            raise ConfigError(
                "train.link_weight is for one shop; leave it out, or train without data.shops"
            )
        if self.train.loss == "sampled_softmax":
            raise ConfigError(
                "train.loss: sampled_softmax is for one shop; choose full_softmax, or leave out "
                "data.shops"
            )
        if self.warm_start.base:
            raise ConfigError(
                "--from goes on with one shop; begin a training on several with --init RUN"
            )
