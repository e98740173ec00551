"""Another run's parameters as the beginning of a training: parts by name, rows of tables by id."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.config import Config
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.loading import abstract_model
from jaxrec.inference.text_features import trained_encoder
from jaxrec.models.items.build import expert_sources, source_order
from jaxrec.models.text.build import pooling_of
from jaxrec.sharding import laid_out, replicated
from jaxrec.training.context import TrainContext
from jaxrec.training.growth import Leaf, axes_of, fits, leaves, moved, row_maps
from jaxrec.training.state import begin, new_state, state_layout
from jaxrec.training.step import TrainState
from jaxrec.training.unmatched import unmatched_notes

EXPERT = re.compile(r"\['experts'\]\[(\d+)\]")
SOURCE = re.compile(r"\['sources'\]\[(\d+)\]")
PART_OF = (
    (re.compile(r"'text_tower'|\['sources'\]\['text'\]"), "text"),
    (re.compile(r"\['sources'\]\['id'\]"), "ids"),
    (re.compile(r"\['sources'\]"), "features"),
    (re.compile(r"'graph_encoder'|'context'|'entity_table'|'links'"), "graph"),
    (re.compile(""), "sequence"),
)


@dataclass(frozen=True)
class Pretrained:
    """The run that a training takes parameters from."""

    directory: Path
    config: Config
    artifacts: RunArtifacts
    parts: tuple[str, ...]
    notes: tuple[str, ...]  # on parts that cannot be taken at all

    @property
    def text(self) -> RunArtifacts | None:
        """The run whose text encoder and whitening go on; None: they are fitted anew."""
        return self.artifacts if "text" in self.parts else None


@dataclass(frozen=True)
class Layout:
    """What numbers in the paths of a model's parameters stand for."""

    experts: tuple[str, ...]
    vectors: tuple[str, ...]  # columns

    def sources(self, number: int) -> tuple[str, ...]:
        """The sources of an expert that its item encoder lists."""
        order = source_order(self.experts[number], self.vectors)
        return tuple(source for source in order if source != "graph")

    def donor(self, name: str, vectors: tuple[str, ...]) -> int:
        """The number of the expert that another model's expert takes parameters from, or -1."""
        if name in self.experts:
            return self.experts.index(name)
        wanted = set(expert_sources(name, vectors))
        shared = [len(wanted & set(expert_sources(own, self.vectors))) for own in self.experts]
        return int(np.argmax(shared)) if max(shared) else -1


@dataclass(frozen=True)
class Plan:
    """Where the parameters of a new model come from.

    Attributes:
        origins: the path in the earlier model, by the path in the new one.
        missing: paths of the new model that the earlier one lacks.
        misfits: paths whose shapes differ in more than the number of rows.
        refitted: paths that read vectors or numbers of items, whose maps are fitted to each run.
        unused: parameters of the earlier model that have no place in the new one, counted by name.
        parts: those of `origins`.
    """

    origins: dict[str, str]
    missing: tuple[str, ...]
    misfits: tuple[str, ...]
    refitted: tuple[str, ...]
    unused: dict[str, int]
    parts: tuple[str, ...]


def open_pretrained(config: Config) -> Pretrained:
    """The run that `train.init` names, and which of its parts can be taken.

    Raises:
        RunError: there is no such run, or one of another version.
    """
    directory = run_directory.served(Path(config.train.init))
    if (directory / "config.json").is_file() and not (directory / "config.yaml").is_file():
        raise RunError(
            f"train.init: {directory} is a text encoder, not a run; give --text.pretrained "
            f"{directory} in place of --init"
        )
    earlier = run_directory.read_config(directory)
    artifacts = run_directory.read_artifacts(directory)
    parts, notes = config.train.init_parts, []
    if "text" in parts and (reason := _other_text(config, earlier, artifacts)):
        parts = tuple(part for part in parts if part != "text")
        if any("text" in name.split("+") for name in config.model.experts):
            notes.append(f"the text part of {directory} is not taken: {reason}")
    return Pretrained(directory, earlier, artifacts, parts, tuple(notes))


def start(context: TrainContext) -> tuple[TrainState, tuple[str, ...]]:
    """The state before the first step, and sentences on what was taken and what was not.

    The optimiser is new.

    Raises:
        RunError: the run cannot be read.
        ConfigError: nothing of it fits.
    """
    pretrained = open_pretrained(context.config)
    _, shapes = abstract_model(pretrained.config, pretrained.artifacts)
    target = laid_out(shapes, replicated(context.mesh))
    _, saved = run_directory.restore_best(pretrained.directory, params=target)
    layout, _ = state_layout(context)
    layouts = (
        Layout(context.config.model.experts, tuple(context.features.vectors)),
        Layout(pretrained.config.model.experts, tuple(pretrained.artifacts.features.vectors)),
    )
    plan = make_plan(leaves(layout.params), leaves(shapes), layouts, pretrained.parts)
    if not plan.origins:
        raise ConfigError(
            f"train.init: no parameter of {pretrained.directory} fits this model; give the options "
            "that it has, or leave train.init out"
        )
    rows = row_maps(pretrained.artifacts, context)

    def build(text: Array, params: nnx.State) -> TrainState:
        fresh, earlier = new_state(context, text), leaves(params)

        def take(path, new: Array) -> Array:
            name = jax.tree_util.keystr(path)
            if name not in plan.origins:
                return new
            return moved(name, new, earlier[plan.origins[name]], rows, starts=True)

        params = jax.tree_util.tree_map_with_path(take, fresh.params)
        return TrainState(fresh.step, params, fresh.opt_state, fresh.text)

    state = begin(context, build, saved["params"])
    known = int(np.count_nonzero(rows["ids"].same[1:] >= 0))
    kinds = {kind for path in plan.origins for kind in axes_of(path)}
    unmatched = unmatched_notes(pretrained.directory, pretrained.artifacts, context.dataset, kinds)
    return state, (*pretrained.notes, *_report(plan, pretrained, known), *unmatched)


def make_plan(
    new: Mapping[str, Leaf],
    earlier: Mapping[str, Leaf],
    layouts: tuple[Layout, Layout],
    parts: tuple[str, ...],
) -> Plan:
    """The origin of every parameter of the given parts.

    An expert takes those of the expert of the same name, or else of the one that shares most
    sources with it.

    Args:
        new: arrays or shapes of the new model by path.
        earlier: those of the earlier model.
        layouts: of both.
    """
    layout, old = layouts
    known = {_key(path, old, range(len(old.experts))): path for path in earlier}
    donors = [old.donor(name, layout.vectors) for name in layout.experts]
    keys = {path: _key(path, layout, donors) for path in new}
    origins: dict[str, str] = {}
    missing, misfits, refitted = [], [], []
    for path, leaf in new.items():
        key = keys[path]
        part = part_of(key)
        if part == "features":
            refitted.append(path)
        elif part not in parts:
            continue
        elif key not in known:
            missing.append(path)
        elif not fits(leaf, earlier[known[key]], path):
            misfits.append(path)
        else:
            origins[path] = known[key]
    unused = [
        _label(path, old, donors)
        for key, path in known.items()
        if key not in keys.values() and part_of(key) in (*parts, "features")
    ]
    taken = {part_of(keys[path]) for path in origins}
    return Plan(
        origins,
        tuple(missing),
        tuple(misfits),
        tuple(refitted),
        Counter(unused),
        tuple(part for part in dict.fromkeys(parts) if part in taken),
    )


def part_of(key: str) -> str:
    """The part that a parameter belongs to: text, ids, features, graph or sequence."""
    return next(part for pattern, part in PART_OF if pattern.search(key))


def _key(path: str, layout: Layout, numbers: Sequence[int]) -> str:
    """A path with the name of the source for its place, and another number of the expert."""
    expert = EXPERT.search(path)
    if expert is None:
        return path
    number = int(expert[1])
    order = layout.sources(number)
    path = SOURCE.sub(lambda found: f"['sources']['{order[int(found[1])]}']", path)
    return EXPERT.sub(f"['experts'][{numbers[number]}]", path)


def _label(path: str, layout: Layout, donors: Sequence[int]) -> str:
    """A short name of a parameter; of an expert that is not taken at all, the expert."""
    expert = EXPERT.search(path)
    if expert is not None and int(expert[1]) not in donors:
        return f"the expert {layout.experts[int(expert[1])]}"
    return _short(path)


def _short(path: str) -> str:
    return ".".join(re.findall(r"[\w+]+", path)[:4])


def _other_text(config: Config, earlier: Config, artifacts: RunArtifacts) -> str:
    """Why the text vectors of two runs are not comparable; empty if they are."""
    if artifacts.whitening is None:
        return "it reads no text"
    own, other = config.text, earlier.text
    if own.whiten != other.whiten:
        return f"text.whiten is {other.whiten} there, not {own.whiten}"
    both_tuned = own.mode == other.mode == "finetune"
    if both_tuned and own.finetune_layers != other.finetune_layers:
        return f"text.finetune_layers is {other.finetune_layers} there, not {own.finetune_layers}"
    try:
        directory = trained_encoder(own.pretrained, artifacts.text_encoder)
    except RunError:
        return "it has another text encoder"
    if pooling_of(directory, own.pooling) != pooling_of(directory, other.pooling):
        return f"text.pooling is {other.pooling} there, not {own.pooling}"
    return ""


def _report(plan: Plan, pretrained: Pretrained, known_items: int) -> list[str]:
    directory = pretrained.directory
    parts = ", ".join(plan.parts)
    lines = [f"{len(plan.origins)} parameters of {directory} are taken ({parts})"]
    if "ids" in plan.parts:
        lines[0] += f"; it knows {known_items:,} of the items"
    reasons = (
        (plan.missing, f"{directory} has no such part"),
        (plan.misfits, f"{directory} has other shapes"),
        (plan.refitted, "vectors and numbers of items are scaled by each run"),
    )
    for paths, reason in reasons:
        if paths:
            counts = Counter(map(_short, paths))
            lines.append(f"these begin anew, because {reason}: {_listed(counts)}")
    if plan.unused:
        lines.append(f"these of {directory} have no place here: {_listed(plan.unused)}")
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
