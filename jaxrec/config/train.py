"""The options of training."""

from dataclasses import dataclass, field
from typing import Literal

from jaxrec.config.privacy import PrivacyConfig
from jaxrec.config.ranges import Amount, Bounded, Count, NonNegative, Positive, Seed
from jaxrec.errors import ConfigError

RefitEvents = Literal["validation", "all"]
"""The events that a refit trains on, beside the training events."""


@dataclass(frozen=True)
class TrainConfig(Bounded, section="train"):
    """Optimisation."""

    seed: Seed = 0
    """Seed of parameters, dropout and batches."""
    epochs: Count = 30
    """Most epochs to train; the learning rate reaches its final value at the last one."""
    patience: Count = 5
    """Stop after this number of epochs without a better validation NDCG@10."""
    batch_size: Count = 32
    """Rows of a packed batch, over all devices."""
    accumulate: Count = 1
    """Micro-batches of a step: parts of the batch that are read one after another, while their
    gradients are summed. The update is that of the whole batch, up to dropout, and the memory for
    histories that of a part. The rows of each device must be a multiple of it."""
    sequence_length: Count = 64
    """Time steps of a packed row; longer histories are cut into windows."""
    burn_in: NonNegative = 0
    """Events before a window that warm up the state and are not predicted."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegative = 100
    """Steps of linear warm-up; cosine decay follows."""
    final_rate: Amount = 0.1
    """Learning rate at the last epoch, as a share of the peak."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Largest global norm of the gradient."""
    bf16: bool = False
    """Compute the blocks, the graph network and the matrix products of the loss in bfloat16."""
    fan_out: NonNegative = 0
    """Edges of each relation that a node reads in a training step, drawn at random (0: all). With
    `sampled_softmax`, only the nodes within reach of the items of a step are encoded then.
    Validation, scoring and serving read all edges."""
    auxiliary: tuple[str, ...] = ("category", "brand", "merchant", "genre")
    """Node types to predict beside the next item, where the graph has them."""
    auxiliary_weight: Amount = 0.1
    """Weight of each auxiliary loss, and of the loss of users' first items."""
    next_item_weight: Amount = 1.0
    """Weight of the loss of the next item (0: only the other tasks train, such as before another
    training that begins with `train.init`)."""
    link_weight: Amount = 0.0
    """Weight of the loss of link prediction: edges of the graph that a step hides and predicts by
    DistMult (0: off). One edge in a hundred, at most 1,000, never trains and measures it."""
    masked_item_weight: Amount = 0.0
    """Weight of the loss of masked items: a transformer that reads a history in both directions
    predicts the items of random events that are hidden from it (BERT4Rec, Sun et al. 2019; 0: off).
    It trains item vectors; ranking does not read it."""
    loss: Literal["full_softmax", "sampled_softmax"] = "full_softmax"
    """`full_softmax`: every step encodes and scores all items. `sampled_softmax`: only those of the
    batch and random ones, each weighted by how rarely it is drawn, so that a step costs about the
    same for any number of items. Experts with the source graph need `fan_out` for that."""
    negatives: NonNegative = 1024
    """`sampled_softmax`: random items of a step, beside those of the batch. If it is at least the
    number of items, every step takes all items."""
    negative_power: Amount = 0.0
    """`sampled_softmax`: items are drawn in proportion to (number of histories with the item) ^
    power, so 0 draws all items equally often."""
    sparse_rows: bool = False
    """`sampled_softmax`: the optimizer reads and moves only those rows of the id tables that a step
    reads (lazy Adam). Experts with the source graph need `fan_out` for it."""
    loss_logits: NonNegative = 0
    """Number of logits that the loss holds at a time, over all devices, but at least those of 256
    positions (0: two million on CPUs, 34 million on accelerators)."""
    item_shards: NonNegative = 0
    """Devices along the `items` axis of the mesh, a power of two; the others go along `users`. They
    divide tables, texts, encoded vectors and logits, for catalogues that no device can hold. 0: as
    few as keep the parameters, the optimizer state, the items and the graph within half of the
    memory of a device. That is 1 on CPUs and in a private training."""
    checkpoint_steps: NonNegative = 0
    """Save the state every so many steps of an epoch too, so that a process that dies loses less
    (0: only after an epoch). A save also encodes the catalogue."""
    init: str = ""
    """Run directory whose parameters a new training begins with (empty: random ones). They move by
    name, rows by the ids of items and entities. What does not fit is named and begins anew.
    `--init RUN` is short for `--train.init RUN`."""
    init_parts: tuple[Literal["text", "graph", "sequence", "ids"], ...] = (
        *("text", "graph", "sequence", "ids"),
    )
    """`init`: what to take: the text adaptor, the graph encoder with the vectors of entities, the
    sequence encoder with the user head, the id vectors of items."""
    refit: Literal["none", "validation", "all"] = "none"
    """After the best epoch is selected, train again on more events, and serve that model.
    `validation`: on training and validation events; its test figures stand beside those of the
    selected model. `all`: on the test events too, so it cannot be tested. `jaxrec refit RUN` does
    the same later."""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "item" in self.auxiliary:
            raise ConfigError("auxiliary: the next item is always predicted; name other node types")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate: batch_size {self.batch_size} cannot be divided into "
                f"{self.accumulate} equal parts; choose a divisor of it"
            )
        if self.init and not self.init_parts:
            raise ConfigError("init_parts names no part to take; name one, or leave init out")
        if self.sparse_rows and self.loss != "sampled_softmax":
            raise ConfigError(
                "sparse_rows: full_softmax reads all rows in every step; choose loss "
                "sampled_softmax, or leave sparse_rows out"
            )
        weights = (self.next_item_weight, self.auxiliary_weight, self.link_weight)
        if not any((*weights, self.masked_item_weight)):
            raise ConfigError(
                "next_item_weight, auxiliary_weight, link_weight and masked_item_weight are all 0, "
                "so there is nothing to learn; raise one of them"
            )
