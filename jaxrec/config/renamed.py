"""Names that options and commands had before, and the names that they have now."""

from collections.abc import Iterable

from jaxrec.errors import ConfigError

OPTIONS = {
    "data.negative_kinds": "data.negative_event_types",
    "data.kind_weights": "data.event_weights",
    "split.target_kinds": "split.target_event_types",
    "model.width": "model.hidden_size",
    "model.blocks": "model.num_layers",
    "model.traces": "model.memory_decays",
    "model.message_passing": "model.graph_layer",
    "model.graph_layers": "model.num_graph_layers",
    "model.idle_times": "model.time_since_last",
    "train.rows": "train.batch_size",
    "train.slots": "train.sequence_length",
    "feedback.kinds": "feedback.event_weights",  # a step of a strategy
}
VALUES = {"train.refit": {False: "none", True: "all"}}
"""Options, the values that recipes and runs could give them before, and the values of today."""
COMMANDS = {
    "--out": "recommend RUN --events FILE --out DIRECTORY",
    "--similar": "similar RUN item:ID",
    "--audience": "audience RUN brand:NAME --events FILE",
    "--profile": "profile RUN --events FILE --out DIRECTORY",
    "--plot": "plot RUN USER --events FILE --out FILE.png",
    "--replay": "replay RUN",
}
"""Old flags of `serve.py` and `jaxrec serve`, and the commands that replace them."""


def refuse_renamed(names: Iterable[str], place: str = "") -> None:
    """Raise a ConfigError with the new names if `names` (such as `model.width`) holds old ones.

    Args:
        place: the file that holds the names, for the message.
    """
    renamed = [f"{name} is now {OPTIONS[name]}" for name in names if name in OPTIONS]
    if renamed:
        raise ConfigError((f"{place}: " if place else "") + "; ".join(renamed))


def refuse_old_flags(command: str, arguments: Iterable[str]) -> None:
    """Raise a ConfigError with the new command if `serve` or `recommend` gets an old flag."""
    old_flags = {"serve": set(COMMANDS), "recommend": set(COMMANDS) - {"--out"}}.get(command, set())
    for flag in (argument.partition("=")[0] for argument in arguments):
        if flag in old_flags:
            raise ConfigError(f"{flag} is not an option here; use: jaxrec {COMMANDS[flag]}")
