"""The parts of `accelerator.py` that train: a step at several batch sizes, and whole epochs."""

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_forms import NAMES, in_form, variants
from accelerator_rows import Inputs, Rows, Sizes
from flax import nnx

from jaxrec.data.packing import Packing, pack_windows
from jaxrec.evaluation.metrics import summarise
from jaxrec.inference.encoding import encode_catalog, encode_queries, repeat_bias
from jaxrec.models.forms import Forms, chosen_forms
from jaxrec.models.recommender import Model, Recommender, split
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.ranking.history_bias import HistoryBias, history_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.training.objective import StepInputs, objective
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.step import TrainState, build_step
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.types import Batch

COMPUTATION = re.compile(r"(?:ENTRY )?%?(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?\S+ = .*? ([a-z][\w-]*)\(")
LOOP = re.compile(r"condition=%?([^\s,}]+), body=%?([^\s,}]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CALLED = re.compile(r"(?:to_apply|calls|_computation|branch_computations)=\{?%?([^\s,}]+)")
NO_KERNEL = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all")


@dataclass(frozen=True)
class Training:
    """A model and its batches; `rows` packed rows a batch."""

    inputs: Inputs
    rows: int
    bf16: bool

    @cached_property
    def config(self):
        """The options of the recipe with this batch size and precision."""
        config = self.inputs.config
        return replace(config, train=replace(config.train, batch_size=self.rows, bf16=self.bf16))

    @cached_property
    def packing(self) -> Packing:
        """The batches of every epoch."""
        train, inputs = self.config.train, self.inputs
        length = train.sequence_length
        packed = pack_windows(
            inputs.log, inputs.train_lengths, inputs.weights, length, train.burn_in
        )
        shape = {"batch_size": self.rows, "sequence_length": length}
        return Packing(inputs.log, inputs.weights, packed, **shape, seed=train.seed)

    @property
    def arrays(self) -> TrainArrays:
        """The constant arrays on the device."""
        return device_arrays(self.inputs)

    @cached_property
    def definition(self):
        """The model without parameters."""
        return split(nnx.eval_shape(lambda: new_model(self.inputs)))[0]

    @cached_property
    def optimizer(self):
        """The optimizer of the recipe, for all its epochs."""
        train = self.config.train
        return make_optimizer(train, train.epochs * self.packing.steps_per_epoch)

    def state(self) -> TrainState:
        """The state before the first step: copies, because a step donates its state."""
        params = initial_params(self.inputs)
        text = self.arrays.catalog.nodes.text
        parts = jnp.zeros((), jnp.int32), params, self.optimizer.init(params), text
        return TrainState(*jax.tree.map(jnp.copy, parts))

    def traced(self, batch: Batch, form: Forms | None = None) -> jax.stages.Traced:
        """The step, to be compiled; by default in the form of the platform."""
        step = build_step(self.config, self.definition, self.optimizer)
        step = in_form(form or chosen_forms(), step)
        return jax.jit(step, donate_argnums=0).trace(self.state(), self.arrays, batch)

    def batches(self, epoch: int) -> Iterator[tuple[Batch, int]]:
        """The batches of an epoch and their numbers of targets; a thread makes the next one."""

        def make(step: int) -> tuple[Batch, int]:
            batch = self.packing.batch(epoch, step)
            return jax.device_put(batch), int(np.count_nonzero(batch.weights))

        with ThreadPoolExecutor(1) as worker:
            ahead = worker.submit(make, 0)
            for step in range(1, self.packing.steps_per_epoch):
                batch, ahead = ahead, worker.submit(make, step)
                yield batch.result()
            yield ahead.result()


def new_model(inputs: Inputs) -> Recommender:
    """The model with initial parameters."""
    config = inputs.config
    return Recommender(
        config.model,
        inputs.sizes,
        nnx.Rngs(config.train.seed),
        links=config.train.link_weight > 0,
        masked_items=config.train.masked_item_weight > 0,
    )


@cache
def initial_params(inputs: Inputs) -> nnx.State:
    """The parameters before the first step."""
    return jax.jit(lambda: nnx.state(new_model(inputs)))()


@cache
def device_arrays(inputs: Inputs) -> TrainArrays:
    """The constant arrays on the device; text vectors are float32 again."""
    arrays = jax.tree.map(jnp.asarray, inputs.arrays)
    nodes = replace(arrays.catalog.nodes, text=arrays.catalog.nodes.text.astype(jnp.float32))
    return replace(arrays, catalog=replace(arrays.catalog, nodes=nodes))


def step(rows: Rows, sizes: Sizes, inputs: Inputs) -> None:
    """A whole step by form and batch size, on batches of the first epoch that lie on the device.

    The error is that of the loss of the first step, beside float32 in the highest precision.
    """
    forms = variants(*NAMES)
    own, *others = forms
    cases = [
        (f"{number} rows", f"jaxrec {dtype}{form}", number, dtype, form)
        # the forms that the platform gets come first, as time may end
        for dtype, form in [("bf16", own), ("float32", own), *(("bf16", form) for form in others)]
        for number in sizes.batch_sizes
    ]
    losses: dict[int, float] = {}
    for case, system, number, dtype, form in rows.measured(cases):
        training = Training(inputs, number, dtype == "bf16")
        if training.packing.num_rows < number:
            rows.add(case, system, note=f"not measured: {training.packing.num_rows} rows of data")
            continue
        full = training.packing.num_rows // number  # batches without empty rows
        made = [training.packing.batch(0, n) for n in range(min(full, sizes.repeats))]
        batches = [jax.device_put(batch) for batch in made]
        traced = training.traced(batches[0], forms[form])
        start = time.perf_counter()
        compiled = traced.lower().compile()
        figures = {"compile_seconds": time.perf_counter() - start}
        figures |= {"flops": product_flops(traced.jaxpr)}
        figures |= {"launches": launches(compiled.as_text())}
        if number == min(sizes.batch_sizes):
            losses[number] = losses.get(number) or exact_loss(training, batches[0])
        state, first = compiled(training.state(), training.arrays, batches[0])
        if number in losses:
            figures["error"] = abs(float(first["loss"]) / losses[number] - 1)
        times = []
        for repeat in range(sizes.repeats):
            start = time.perf_counter()
            state, metrics = compiled(state, training.arrays, batches[repeat % len(batches)])
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
        targets = np.mean([np.count_nonzero(batch.weights) for batch in made])
        rows.add(case, system, times, targets=float(targets), **figures)


def exact_loss(training: Training, batch: Batch) -> float:
    """The loss of the first step, forward alone, in float32 and the highest precision."""

    @jax.jit
    def loss(state: TrainState, arrays, batch: Batch):
        key = jax.random.fold_in(jax.random.key(training.config.train.seed), 0)
        model = training.definition.merge(state.params)
        return objective(model, StepInputs(arrays, state.text, batch, key))[0]

    with jax.default_matmul_precision("highest"):
        return float(loss(training.state(), training.arrays, batch))


def train(rows: Rows, sizes: Sizes, inputs: Inputs) -> None:
    """Epochs of the recipe as it is, with validation after each, until the time is up."""
    config = inputs.config
    training = Training(inputs, config.train.batch_size, config.train.bf16)
    start = time.perf_counter()
    first, _ = next(training.batches(0))
    compiled, state = training.traced(first).lower().compile(), training.state()
    system, seconds = f"jaxrec {'bf16' if config.train.bf16 else 'float32'}", 0.0
    rows.add("compilation", system, [time.perf_counter() - start])
    epochs = min(config.train.epochs, sizes.epochs)
    for case, system, epoch in rows.measured(
        [(f"epoch {number + 1} of {epochs}", system, number) for number in range(epochs)]
    ):
        start, targets = time.perf_counter(), 0
        for batch, count in training.batches(epoch):
            state, metrics = compiled(state, training.arrays, batch)
            targets += count
        loss = float(metrics["loss"])
        taken = time.perf_counter() - start
        seconds += taken
        start = time.perf_counter()
        scores = validation(training, state)
        figures = {"targets": targets, "loss": loss, "trained_seconds": seconds}
        figures |= {"validation_seconds": time.perf_counter() - start, "ndcg": scores["ndcg@10"]}
        rows.add(case, system, [taken], **figures)


def validation(training: Training, state: TrainState) -> dict[str, float]:
    """Metrics of the validation queries, as `jaxrec train` has them after an epoch."""
    inputs, config = training.inputs, training.config.evaluation
    model = Model(training.definition, nnx.to_pure_dict(state.params))
    valid = np.asarray(inputs.arrays.catalog.valid)
    vectors = encode_catalog(model, training.arrays.catalog)[: len(valid)]
    log, queries, target_type = inputs.log, inputs.queries, inputs.target_event_type
    users = encode_queries(
        model,
        vectors,
        log,
        queries,
        history=config.history,
        users=config.users,
        target_event_type=target_type,
    )
    counted = ~masked_event_types(config.mask, log.event_type_names)
    # not by a `Correction`, whose module needs the readers of tables
    bias = HistoryBias(np.where(counted[:, None], repeat_bias(model, target_type), np.float32(0)))
    targets = log.items[queries.positions]
    adjustments = history_adjustments(log, queries, config.mask, bias, targets)
    items = ItemTable(np.asarray(vectors), valid)
    return summarise(rank_queries(EvalQueries(users, targets, adjustments), items).ranks)


def product_flops(jaxpr) -> int:
    """FLOPs of the matrix products of a program; XLA's own count has one pass of every loop."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = equation.invars[0].aval, equation.outvars[0].aval
            total += 2 * prod(result.shape) * prod(left.shape[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        values = (v if isinstance(v, tuple) else (v,) for v in equation.params.values())
        inner = [part for parts in values for part in parts if hasattr(part, "eqns")]
        total += times * sum(map(product_flops, inner))
    return total


def launches(program: str) -> int | None:
    """Kernels that a compiled program starts; None if a loop's number of passes is unknown."""
    lines: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in program.splitlines():
        if header := COMPUTATION.match(line):
            name = header[1]
            entry = name if line.startswith("ENTRY") else entry
        elif INSTRUCTION.match(line):
            lines[name].append(line)

    def count(computation: str) -> int:
        return sum(map(kernels, lines[computation]))

    def kernels(line: str) -> int:
        opcode = INSTRUCTION.match(line)[1]
        if opcode in NO_KERNEL or opcode.endswith("-done"):
            return 0
        if opcode == "while":
            return int(TRIPS.search(line)[1]) * sum(map(count, LOOP.search(line).groups()))
        if opcode in ("call", "conditional", "async-start"):
            return max(map(count, CALLED.findall(line)), default=1)
        return 1

    try:
        return count(entry)
    except TypeError:  # no match: the number of passes is unknown
        return None
