"""What serve.py can be asked for."""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxrec.artifacts.files import WRITERS, Format
from jaxrec.config import AMOUNT, COUNT, POSITIVE, check_ranges
from jaxrec.data.graph import ITEM
from jaxrec.errors import RunError
from jaxrec.ranking.strategy import Rules


@dataclass(frozen=True)
class LiveOptions:
    """How to serve live."""

    http: str = ""
    """Instead: serve live on HOST:PORT, such as `:8080`."""
    store: str = ""
    """With --http: where live documents are kept, a SQLite file or redis://HOST:PORT/DB (by default
    `shoppers.db` in the run)."""
    load_states: Path | None = None
    """With --http: states that a batch job wrote (--states), for the documents of the store."""
    window: int = 64
    """With --http: newest events of a document to keep; older ones live on in the state alone."""
    keep_days: float = 365.0
    """With --http: documents without an event for so long are deleted."""
    keep_users: int = 1_000_000
    """With --http: the most documents to keep; the stalest are deleted first."""
    rate: int = 0
    """With --http: requests a second that a client may make (0: any number)."""
    api_key: str = ""
    """With --http: what clients must send as X-API-Key (by default what JAXREC_API_KEY holds)."""
    refresh: float = 10.0
    """With --http: seconds between looks for a new checkpoint."""

    def __post_init__(self) -> None:
        """Raise a ValueError for a number that is out of range."""
        check_ranges(self, COUNT, "window", "keep_users")
        check_ranges(self, POSITIVE, "keep_days", "refresh")
        check_ranges(self, AMOUNT, "rate")

    @property
    def key(self) -> str:
        """What clients must send; empty if nothing."""
        return self.api_key or os.environ.get("JAXREC_API_KEY", "")

    def store_of(self, run: Path) -> str:
        """Where the live documents of a run are kept."""
        return self.store or str(run / "shoppers.db")


@dataclass(frozen=True)
class ServeOptions:
    """Recommend to every user of an events file, seen in training or not, from the best
    checkpoint of a run; or serve it live (--http)."""

    run: tyro.conf.Positional[Path]
    """A run directory of train.py."""
    events: Path | None = None
    """Events: .parquet, .csv or .jsonl; they need not fit in memory."""
    out: Path | None = None
    """Directory to write, new or empty, or one of the same job that was stopped. For --similar
    and --audience a file, for --plot a .png file."""
    k: int = 10
    """Items a user; users of an audience; entities of a type in a profile."""
    target: str = ITEM
    """Recommend nodes of this type: item, or brand, category and so on."""
    format: Format = "parquet"
    """Format of the part files."""
    users: Path | tuple[str, ...] | None = None
    """Only these users: a file with a column user_id, or ids."""
    items: Path | None = None
    """Items that training has not seen, to rank beside the others."""
    triples: Path | None = None
    """Graph edges of these items."""
    states: Path | None = None
    """Directory to write every user's state to as well, for a live store."""
    similar: str = ""
    """Instead: the nodes most like one, such as item:ID or brand:NAME."""
    audience: str = ""
    """Instead: the k users most likely to choose item:ID, or an item of brand:NAME, next."""
    bid: float | None = None
    """With --audience: pay for a choice, for the expected pay of a thousand impressions."""
    profile: bool = False
    """Instead: every user's interest in entities and items, and how it moved."""
    last: int = 10
    """With --profile and --plot: over so many events."""
    plot: str = ""
    """Instead: draw how the interest of this user moved."""
    replay: bool = False
    """Instead: rank every event of a period before it is folded, and tell what folding gains;
    of --events, or of the data that the run was trained on."""
    since: float = 0.9
    """With --replay: quantile of the times at which the period begins."""
    block: int = 4096
    """Users read, scored and written at a time."""
    approximate: bool = False
    """Search approximately, which TPUs do faster."""
    item_shards: int = 1
    """Devices that share the item table; the others share the users."""
    strategy: Path | None = None
    """A YAML list of steps that act on the ranking in their order, in place of the rules below."""
    rules: Annotated[Rules, tyro.conf.OmitArgPrefixes] = field(default_factory=Rules)
    live: Annotated[LiveOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=LiveOptions)


def check_live(options: ServeOptions) -> None:
    """Raise a ValueError for options that say nothing to --http."""
    told = ("run", "events", "block", "strategy", "live")
    plain = ServeOptions(options.run)
    for name in (option.name for option in fields(ServeOptions)):
        if name not in told and getattr(options, name) != getattr(plain, name):
            instead = "; write a --strategy" if name == "rules" else ""
            raise ValueError(f"--{name} does not go with --http{instead}")


def check(options: ServeOptions) -> None:
    """Raise a ValueError for options that do not go together."""
    for option in fields(LiveOptions):
        if getattr(options.live, option.name) != getattr(LiveOptions(), option.name):
            raise ValueError(f"--{option.name} belongs to --http")
    names = ("similar", "audience", "plot", "profile", "replay")
    modes = [m for m in names if getattr(options, m)]
    if len(modes) > 1:
        raise ValueError(f"--{' and --'.join(modes)} are different jobs; give one of them")
    if options.events is None and not (options.similar or options.replay):
        raise ValueError("--events FILE is missing: whose recommendations?")
    single = options.similar or options.audience or options.plot or options.replay
    if options.out is None and not (options.similar or options.audience or options.replay):
        raise ValueError("--out is missing: where to write?")
    for name in ("block", "k", "last"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: give 1 or more")
    if modes and replace(options.rules, mask=()) != Rules():
        raise ValueError(
            f"--{modes[0]} takes no rules; leave them out (--mask goes with --audience)"
        )
    if options.strategy is not None and modes:
        raise ValueError(f"--strategy does not go with --{modes[0]}")
    if options.rules.mask and modes and not options.audience:
        raise ValueError(f"--mask does not go with --{modes[0]}")
    if options.users is not None and (options.similar or options.replay):
        raise ValueError(f"--users does not go with --{modes[0]}")
    if options.triples is not None and options.items is None:
        raise ValueError("--triples belongs to --items, the table of the new items")
    if options.states and options.out and options.states.resolve() == options.out.resolve():
        raise ValueError("--states and --out are the same directory; give two")
    if options.target != ITEM and modes:
        raise ValueError(f"--target does not go with --{modes[0]}")
    if options.states is not None and single:
        raise ValueError("--states is written with recommendations or profiles of all users")
    if options.bid is not None and not options.audience:
        raise ValueError("--bid belongs to --audience")
    if single and options.out is not None:
        suffixes = [".png"] if options.plot else [f".{name}" for name in WRITERS]
        if options.out.suffix not in suffixes:
            raise ValueError(f"--out {options.out}: name a file ending in {', '.join(suffixes)}")
        if options.out.exists():
            raise RunError(f"{options.out} exists and is not overwritten; name another file")
