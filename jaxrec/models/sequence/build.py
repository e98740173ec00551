"""A sequence encoder by name."""

from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.sequence.encoder import SequenceEncoder
from jaxrec.models.sequence.lstm import BareLSTM, LSTMBlock, LSTMEncoder


def build_sequence_encoder(config: ModelConfig, rngs: nnx.Rngs) -> SequenceEncoder:
    """The encoder that `model.sequence` names."""
    match config.sequence:
        case "lstm":
            return LSTMEncoder(LSTMBlock, config, rngs)
        case "bare_lstm":
            return LSTMEncoder(BareLSTM, config, rngs)
