"""The seam of sequence encoders."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float

State = Any  # a pytree of arrays [B, ...]; its encoder alone looks inside


@runtime_checkable
class SequenceEncoder(Protocol):
    """Event vectors -> the interest of a user after every event.

    The state summarises all events so far, so that one more event costs the same after ten events
    as after ten thousand. Stores keep its leaves: every leaf has the batch as first axis, and its
    other axes have a fixed size.

    To add an encoder, write an `nnx.Module` with these methods in a file beside this one, then
    name it in `jaxrec/models/sequence/build.py` and in `sequence` of `ModelConfig`. The encoder is
    causal, and a scan over T events gives what T scans over one event give.
    """

    def initial_state(self, batch_size: int) -> State:
        """The state of users without events."""
        ...

    def scan(
        self,
        state: State,
        events: Float[Array, "B T D"],
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T 2*D"], State]:
        """The outputs after each of T events, and the state after all of them.

        An output is an interest vector [D], which the user head transforms, and then a memory
        readout [D], a weighted sum of event vectors that the user head only scales. An encoder
        without a memory returns zeros as readout.

        Args:
            starts: steps at which a new sequence starts: the state is empty before them. Several
                sequences may share a row. None: no step is a start.
            valid: steps that hold an event, the first ones of every row. The others leave the
                state alone, and their outputs have no meaning. None: all steps hold an event.
            key: a random key for dropout; None at inference.
        """
        ...

    def last_output(self, state: State) -> Float[Array, "B out"]:
        """The output after the last event of a state; a learned one if there was no event."""
        ...
