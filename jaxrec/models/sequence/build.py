"""A sequence encoder by name."""

from functools import partial

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.sequence.attention import AttentionBlock
from jaxrec.models.sequence.blocks import StackedEncoder
from jaxrec.models.sequence.encoder import SequenceEncoder
from jaxrec.models.sequence.lru import LRUBlock
from jaxrec.models.sequence.lstm import BareLSTM, LSTMBlock
from jaxrec.models.sequence.recurrent import GRU, RNN, RecurrentBlock


def build_sequence_encoder(config: ModelConfig, rngs: nnx.Rngs) -> SequenceEncoder:
    """The encoder that `model.sequence` names."""
    match config.sequence:
        case "lstm":
            return StackedEncoder(LSTMBlock, config, rngs)
        case "bare_lstm":
            return StackedEncoder(BareLSTM, config, rngs)
        case "gru":
            return StackedEncoder(partial(RecurrentBlock, GRU), config, rngs)
        case "rnn":
            return StackedEncoder(partial(RecurrentBlock, RNN), config, rngs)
        case "lru":
            return StackedEncoder(LRUBlock, config, rngs)
        case "transformer":
            heads, window = config.sequence_heads, config.sequence_window
            return StackedEncoder(partial(AttentionBlock, heads, window), config, rngs)
