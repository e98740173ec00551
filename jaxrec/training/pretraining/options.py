"""Options of the pre-training of a text encoder."""

from dataclasses import dataclass, field

from jaxrec.config.ranges import Amount, Bounded, Count, NonNegative, Positive, Seed, Share
from jaxrec.errors import ConfigError


@dataclass(frozen=True)
class TaskWeights(Bounded, section="tasks"):
    """Weight of each task in the loss; 0 leaves it out."""

    contrast: Amount = 1.0
    """Items that follow one another in training histories get text vectors that agree, against the
    other items of the batch (logQ correction, Yi et al. 2019)."""
    graph: Amount = 0.0
    """The same for items that share a brand, category or other entity of the graph, if at most 50
    items do."""
    tokens: Amount = 0.0
    """Predict tokens of item texts: 15 % that are masked (BERT, Devlin et al. 2019), or the next
    one (GPT)."""
    behaviour: Amount = 0.0
    """The same on training histories as text, such as `viewed Red lipstick; bought Nail file`: with
    GPT this predicts the next event."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.contrast or self.graph or self.tokens or self.behaviour):
            raise ConfigError("tasks: all weights are 0; give one task a weight, such as 1")


@dataclass(frozen=True)
class PretrainOptions(Bounded):
    """How a text encoder is trained further on a shop's texts."""

    tasks: TaskWeights = field(default_factory=TaskWeights)
    """Weights of the tasks."""
    epochs: Count = 1
    """Passes over the item texts. A task with fewer or more examples takes as many batches."""
    batch_size: Count = 32
    """Texts, or pairs of texts, of each task in a step."""
    layers: NonNegative = 2
    """Last layers that train; 0: the whole encoder, which takes about twice the time."""
    learning_rate: Positive = 2e-5
    """Peak learning rate of AdamW."""
    held_out: Share = 0.05
    """Share of the texts, users and entities that only measure the loss."""
    behaviour_events: Count = 20
    """Newest events of a user in the text of a history."""
    checkpoint_steps: NonNegative = 0
    """Save the state every so many steps of an epoch too, so that a process that dies loses less
    (0: only after an epoch)."""
    bf16: bool = False
    """Compute in bfloat16; weights stay float32."""
    seed: Seed = 0
    """Seed of batches and masks."""
