"""A recurrence over time as one kernel for TPUs (Pallas).

`jax.lax.scan` starts small kernels at every time step, which read the weights from memory. Here the
weights lie on the chip during the whole sequence, and blocks of rows and time steps stream through.
The state stays on the chip too, in float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxrec.models.sequence.blocks import Masks
from jaxrec.partitioning import row_spec
from jaxrec.runtime import target_platform

ROWS = 128  # of a block; fewer only where the batch has fewer
STEPS = 8  # time steps of a block, at most
BLOCK_BYTES = 2**22  # of the arrays of a block, at most; the chip holds two blocks at a time
MIN_MEMORY = 2**24  # bytes on the chip that a kernel may use without asking


class Carried(NamedTuple):
    """What a step gets beside the arrays of its time step."""

    state: tuple[Array, ...]  # [rows, D] each, float32, before the reset of `starts`
    keep: Float[Array, "rows 1"]  # 0 where a sequence starts, 1 elsewhere
    valid: Float[Array, "rows 1"]  # 1 where there is an event, 0 elsewhere


Step = Callable[[Sequence[Any], Sequence[Array], Carried], tuple[Sequence[Array], Sequence[Array]]]
"""(references to the weights, arrays of the time step, carried) -> (outputs, state)."""


class ChipScan(NamedTuple):
    """A scan over time steps.

    Attributes:
        step: one time step of a block of rows.
        widths: entries of a row in each array that the step puts out, of the first ones only.
        reverse: whether the last time step comes first.
    """

    step: Step
    widths: tuple[int, ...]
    reverse: bool = False

    def __call__(
        self,
        weights: Sequence[Array],
        streams: Sequence[Float[Array, "T B _"]],
        masks: Masks,
        state: Sequence[Float[Array, "B D"]],
    ) -> tuple[list[Array], list[Array]]:
        """The outputs [T, B, n] of all steps and the state after them, in the dtype of the inputs.

        On a mesh, every device reads its own rows; see `on_mesh`.
        """
        valid = jnp.ones_like(masks.starts) if masks.valid is None else masks.valid
        flags = jnp.stack([~masks.starts, valid], 1).astype(jnp.float32)
        mesh = jax.sharding.get_abstract_mesh()
        inputs = (list(weights), list(streams), flags, list(state))
        if mesh.empty or mesh.size == 1:
            return self._of_device(*inputs)
        over_rows = row_spec(flags.shape[2])
        over_time = PartitionSpec(None, *over_rows)
        specs = (PartitionSpec(), over_time, PartitionSpec(None, None, *over_rows), over_rows)
        mapped = jax.shard_map(
            self._of_device, in_specs=specs, out_specs=(over_time, over_rows), check_vma=False
        )
        return mapped(*inputs)

    def _of_device(
        self,
        weights: list[Array],
        streams: list[Float[Array, "T B _"]],
        flags: Float[Array, "T 2 B"],
        state: list[Float[Array, "B D"]],
    ) -> tuple[list[Array], list[Array]]:
        rows = flags.shape[2]
        missing = -rows % ROWS if rows > ROWS else 0
        if missing:
            streams, state = (
                [
                    jnp.pad(part, [*[(0, 0)] * (part.ndim - 2), (0, missing), (0, 0)])
                    for part in parts
                ]
                for parts in (streams, state)
            )
            flags = jnp.pad(flags, ((0, 0), (0, 0), (0, missing)))
        outputs, after = self._call(weights, streams, flags, state)
        return [part[:, :rows] for part in outputs], [part[:rows] for part in after]

    def _call(self, weights, streams, flags, state):
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        steps, _, rows = flags.shape
        dtype, block_rows = streams[0].dtype, min(rows, ROWS)
        widths = (*(part.shape[2] for part in streams), *self.widths)
        block_steps = steps_of_block(steps, block_rows * sum(widths) * dtype.itemsize)
        num_blocks = steps // block_steps

        def time(number):
            return num_blocks - 1 - number if self.reverse else number

        def streamed(width: int) -> pl.BlockSpec:
            return pl.BlockSpec((block_steps, block_rows, width), lambda b, t: (time(t), b, 0))

        by_row = [pl.BlockSpec((block_rows, s.shape[1]), lambda b, t: (b, 0)) for s in state]
        whole = [
            pl.BlockSpec(w.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))
            for w in weights
        ]
        masked = pl.BlockSpec((block_steps, 2, block_rows), lambda b, t: (time(t), 0, b))
        results = pl.pallas_call(
            partial(_kernel, self, (len(weights), len(streams), len(state))),
            grid=(rows // block_rows, num_blocks),
            in_specs=[*whole, *(streamed(s.shape[2]) for s in streams), masked, *by_row],
            out_specs=[*map(streamed, self.widths), *by_row],
            out_shape=[
                *(jax.ShapeDtypeStruct((steps, rows, width), dtype) for width in self.widths),
                *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in state),
            ],
            scratch_shapes=[pltpu.VMEM((block_rows, s.shape[1]), jnp.float32) for s in state],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"),
                vmem_limit_bytes=MIN_MEMORY + 2 * sum(w.nbytes for w in weights),
            ),
            interpret=target_platform() == "cpu",
        )(*weights, *streams, flags, *state)
        return results[: len(self.widths)], results[len(self.widths) :]


def _kernel(scan: ChipScan, counts: tuple[int, int, int], *refs: Any) -> None:
    """All time steps of a block; the first block of a sequence begins with the given state."""
    from jax.experimental import pallas as pl

    num_weights, num_streams, num_state = counts
    given = iter(refs)

    def take(count: int) -> list[Any]:
        return [next(given) for _ in range(count)]

    weights, streams, (flags,) = take(num_weights), take(num_streams), take(1)
    first, outputs = take(num_state), take(len(scan.widths))
    last, state = take(num_state), take(num_state)
    steps = flags.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def begin() -> None:
        for ref, part in zip(state, first, strict=True):
            ref[...] = part[...].astype(jnp.float32)

    def one(number, _):
        t = steps - 1 - number if scan.reverse else number
        columns = flags[t].T
        carried = Carried(tuple(part[...] for part in state), columns[:, :1], columns[:, 1:])
        made, after = scan.step(weights, [part[t] for part in streams], carried)
        for ref, part in zip(outputs, made, strict=False):  # inference needs only the first
            ref[t] = part.astype(ref.dtype)
        for ref, part in zip(state, after, strict=True):
            ref[...] = part

    jax.lax.fori_loop(0, steps, one, None)
    for ref, part in zip(last, state, strict=True):
        ref[...] = part[...].astype(ref.dtype)


def steps_of_block(steps: int, step_bytes: int) -> int:
    """Time steps of a block: the most that divide all steps and fit on the chip."""
    most = max(min(STEPS, BLOCK_BYTES // step_bytes), 1)
    return max(number for number in range(1, most + 1) if steps % number == 0)
