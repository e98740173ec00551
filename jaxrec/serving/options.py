"""Options of the commands that use a trained model."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from jaxrec.artifacts.directories import open_directory
from jaxrec.artifacts.files import WRITERS, Format, refuse_file_on_the_way
from jaxrec.config import Config
from jaxrec.config.ranges import Amount, Bounded, Count, Fraction, NonNegative, Portion, Positive
from jaxrec.data.graph import ITEM
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.edge.directory import ExportFormat, VectorPrecision
from jaxrec.ranking.strategy import Rules
from jaxrec.serving.forgetting import Places

STORE = "shoppers.db"  # the default store of a run
TABLES = tuple(f".{name}" for name in WRITERS)
IMAGE_HOST = re.compile(r"(https?://)?(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:\d{1,5})?", re.I | re.A)
Place = Annotated[str, tyro.conf.arg(metavar="PATH")]  # a path or a URL
Role = Literal["read", "write", "delete"]  # what a request does to the data of users


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Bounded):
    """The model to use."""

    run: tyro.conf.Positional[Path]
    """A run directory of `jaxrec train`."""
    items: Path | None = None
    """Today's items: new ones are added, and their columns replace those of known items."""
    triples: Path | None = None
    """More graph edges of today's items."""
    item_shards: Count = 1
    """Devices that share the item table; the others share the users."""
    id_key: Path | None = None
    """The file of the key of user ids, for a run that was trained with one (by default the file of
    training)."""
    forgotten: Path | None = None
    """List of users that `jaxrec forget` wrote, to leave out (by default `data.forgotten` of the
    run)."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for triples without items."""
        super().__post_init__()
        if self.triples is not None and self.items is None:
            raise ConfigError("--triples needs --items, the table of today's items")


@dataclass(frozen=True, kw_only=True)
class EventsOptions(ModelOptions):
    """The users to read."""

    events: Path
    """Events: .parquet, .csv or .jsonl. They need not fit in memory."""
    users: Path | tuple[str, ...] | None = None
    """Only these users: a file with a column user_id, or ids."""
    block: Count = 4096
    """Users to read, score and write at a time."""
    quiet: bool = False
    """Print errors alone."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(EventsOptions):
    """The part files to write."""

    out: Place
    """Directory to write: new, empty, or that of the same job when it was stopped. A URL such as
    s3://bucket/lists is written with fsspec."""
    format: Format = "parquet"
    """Format of the part files."""
    columns: tuple[Literal["model", "time"], ...] = ()
    """Columns to add: `model`, the version of the checkpoint, and `time`, when the job began."""
    preview: bool = False
    """Print the last items of three users, and what is written for them."""
    states: Place | None = None
    """Directory or URL for the state of every user, which `jaxrec serve --load-states` reads."""
    engine: Literal["process", "ray"] = "process"
    """Who reads and scores: this process, or workers of Ray (`pip install 'jaxrec[ray]'`), on this
    machine or a cluster."""
    workers: Count | None = None
    """Workers of `--engine ray` (by default one for each GPU, or for each machine of a cluster
    without GPUs; a worker without a GPU uses all cores)."""

    def __post_init__(self) -> None:
        """Raise an error for directories that cannot be written."""
        super().__post_init__()
        if self.workers is not None and self.engine != "ray":
            raise ConfigError("--workers needs --engine ray")
        directories = [open_directory(place) for place in (self.out, self.states) if place]
        if len({directory.address for directory in directories}) < len(directories):
            raise ConfigError("--states and --out are the same directory; name two")


@dataclass(frozen=True, kw_only=True)
class RecommendOptions(BatchOptions):
    """Recommend to every user of an events file, seen in training or not, from the best checkpoint
    of a run. A job that was stopped continues. `jaxrec serve` answers over HTTP instead."""

    k: Count | None = None
    """Items in a list (by default 10, or all if there are fewer)."""
    target: str = ITEM
    """Recommend nodes of this type: item, or brand, category and so on."""
    approximate: bool = False
    """Search approximately, which is faster on TPUs."""
    forecast: Count | None = None
    """Write a list for each of the next FORECAST events, if the run has a decoder for that
    (`forecast.steps`). No strategy and no rule but the mask acts on these lists."""
    strategy: Path | None = None
    """A YAML list of steps that act on the ranking in their order, in place of the rules below."""
    explain: bool = False
    """Add a column `explanation`: one sentence that names the events that count most, and what the
    graph shares. It reads every history once more for each of its events."""
    rules: Annotated[Rules, tyro.conf.OmitArgPrefixes] = field(default_factory=Rules)

    def __post_init__(self) -> None:
        """Raise a ConfigError for lists that cannot be explained."""
        super().__post_init__()
        if self.explain and (self.target != ITEM or self.forecast is not None):
            raise ConfigError("--explain is for lists of items; leave --target or --forecast out")


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """Say why a user gets items: by events, parts of the model, paths in the graph, and words."""

    user: tyro.conf.Positional[str]
    """Id of the user."""
    events: Path
    """Events: .parquet, .csv or .jsonl. They need not fit in memory."""
    item: tuple[str, ...] = ()
    """Ids of the items (by default the three best)."""
    strategy: Path | None = None
    """A YAML list of steps that act on the ranking in their order."""
    out: Path | None = None
    """Also write everything to this .json file."""

    def __post_init__(self) -> None:
        """Raise an error for a file that cannot be written."""
        super().__post_init__()
        _check_file(self.out, (".json",))


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(BatchOptions):
    """Write what every user of an events file is interested in, and how that changed."""

    k: Count = 10
    """Nodes of each type."""
    last: Count = 10
    """Number of events over which to report the change."""


@dataclass(frozen=True, kw_only=True)
class AudienceOptions(EventsOptions):
    """Find the users who most likely choose an item, or an item of a brand and so on, next."""

    entity: tyro.conf.Positional[str]
    """item:ID, brand:NAME and so on."""
    k: Count = 10
    """Users to find."""
    bid: Amount | None = None
    """Pay for a choice; adds the expected pay of a thousand impressions."""
    mask: tuple[str, ...] = ()
    """Items of a user's own history to leave out: `none`, `seen`, or event types such as `buy`
    (empty: as in the run's evaluation)."""
    out: Path | None = None
    """Also write the table to this .parquet, .csv or .jsonl file."""

    def __post_init__(self) -> None:
        """Raise an error for a file that cannot be written."""
        super().__post_init__()
        _check_file(self.out, TABLES)


@dataclass(frozen=True, kw_only=True)
class SimilarOptions(ModelOptions):
    """Show the nodes of the same type that are most similar to a node."""

    entity: tyro.conf.Positional[str]
    """item:ID, brand:NAME and so on."""
    k: Count | None = None
    """Nodes to show (by default 10, or all if there are fewer)."""
    out: Path | None = None
    """Also write the table to this .parquet, .csv or .jsonl file."""

    def __post_init__(self) -> None:
        """Raise an error for a file that cannot be written."""
        super().__post_init__()
        _check_file(self.out, TABLES)


@dataclass(frozen=True, kw_only=True)
class PlotOptions(ModelOptions):
    """Draw how the interest of a user changed, or what the parts of the model add to a list."""

    user: tyro.conf.Positional[str]
    """Id of the user."""
    events: Path
    """Events: .parquet, .csv or .jsonl. They need not fit in memory."""
    out: Path
    """The .png file to write."""
    last: Count = 10
    """Number of events to draw."""
    contributions: bool = False
    """Draw what each part of the model (ids, texts, graph, item memory, ...) adds to the user's ten
    best items instead."""

    def __post_init__(self) -> None:
        """Raise an error for a file that cannot be written."""
        super().__post_init__()
        _check_file(self.out, (".png",))


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a directory with which a browser, a phone or a program without jaxrec reads events and
    makes lists. Nothing about a user leaves the device."""

    to: Path
    """Directory to write, new or empty."""
    formats: tuple[ExportFormat, ...] = ("jax", "onnx")
    """What to write: the programs `jax` (jax.export, for every sequence encoder) and `onnx` (for
    lstm), and `page`, which runs those of `onnx` in a browser."""
    page_runtime: Path | None = None
    """`page`: directory with the files of ONNX Runtime Web (by default npm downloads them)."""
    item_precision: VectorPrecision = "int16"
    """Precision of the item vectors; int8 searches by 8-bit codes, then scores by int16."""


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(ModelOptions):
    """Rank every event of a period before the state takes it in, and report what live updates
    gain. The selected model ranks, because a refit has learned from the events."""

    events: Path | None = None
    """Events: .parquet, .csv or .jsonl (by default the data that the run was trained on)."""
    since: Fraction = 0.9
    """Quantile of the times at which the period begins."""
    until: Fraction = 1.0
    """Quantile of the times at which the period ends."""


@dataclass(frozen=True)
class LiveOptions(Bounded):
    """How to serve over HTTP."""

    http: str = "127.0.0.1:8080"
    """Address HOST:PORT; `:8080` listens on all interfaces if there is a key, or with --open."""
    store: str = ""
    """Where users' documents are kept: a SQLite file or redis://HOST:PORT/DB (by default
    `shoppers.db` in the run)."""
    consume: str = ""
    """Also read events from a Redis or Valkey stream, redis://HOST:PORT/DB/STREAM."""
    workers: Count = 1
    """Processes that answer at the address; they share the memory of the catalogue."""
    load_states: str = ""
    """States that `jaxrec recommend --states` wrote, for the users of the store: a directory, a
    pattern of directories, or a URL of either."""
    window: Count = 64
    """Newest events of a user to keep; older ones remain in the state only. With fewer than 64, the
    repeat bias and co-occurrence may miss events that they count in batches."""
    keep_days: Positive = 365.0
    """Delete users without an event in this number of days."""
    keep_users: Count = 1_000_000
    """Most users to keep; those inactive for longest are deleted first."""
    keep_gigabytes: Amount = 0.0
    """Most gigabytes of the store (0: no limit); users inactive for longest are deleted first."""
    keep_tombstones: Amount = 30.0
    """Days for which a keyed hash of a deleted user's id is kept, so that late events do not bring
    the user back."""
    id_key: Path | None = None
    """The file of the key of user ids, for a run that was trained with one (by default the file of
    training). Requests name users by their ids, and nothing keeps them."""
    forgotten: Path | None = None
    """List of forgotten users that DELETE /users/{id} adds to, for `data.forgotten` (by default
    that of the run)."""
    forget_outputs: tuple[Place, ...] = ()
    """Directories or URLs of `jaxrec recommend` that DELETE /users/{id} removes the user from."""
    forget_states: tuple[Place, ...] = ()
    """The same for directories or URLs of states."""
    forget_runs: tuple[Path, ...] = ()
    """Run directories that DELETE /users/{id} removes the user from."""
    keep_items: Count = 1_000_000
    """Most items to keep of those that PUT /items and DELETE /items have changed; further new ones
    are refused."""
    expire_share: Portion = 0.2
    """Share of the users that may be deleted at once by these limits; a wrong clock would delete
    all of them. 1,000 users may always go."""
    state_precision: Literal["float32", "float16"] = "float32"
    """Precision of users' states in the store; float16 saves space and makes scores less exact."""
    item_precision: Literal["float32", "int8"] = "float32"
    """Precision of the item table that is searched; int8 takes a quarter of the memory, finds
    candidates by rounded scores and ranks them by exact ones."""
    rate: NonNegative = 0
    """Requests per second allowed for a client (0: no limit)."""
    api_key: str = ""
    """Key that clients must send as X-API-Key (by default the value of JAXREC_API_KEY)."""
    read_key: str = ""
    """A second key, for reading lists, profiles and items alone (JAXREC_READ_KEY)."""
    write_key: str = ""
    """A second key, for sending events and items alone (JAXREC_WRITE_KEY)."""
    delete_key: str = ""
    """A second key, for deleting users and items alone (JAXREC_DELETE_KEY)."""
    open: bool = False
    """Let other machines in without a key."""
    example_users: bool = False
    """List ids of users on the page and in GET /users, to everyone who may read; without a key on
    this machine only, they are listed anyway."""
    explain: bool = False
    """Answer `explain=full`, which holds up other lists; without a key on this machine only, it is
    answered anyway."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which the page may load the images of items, such as `img.shop.com` or
    `*.shop.com`, beside its own."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed."""
    list_timeout: Positive = 2.0
    """Seconds after which a list or profile that is not ready is refused with 503."""
    refresh: Positive = 10.0
    """Seconds between checks for a new checkpoint."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for a host that is none."""
        super().__post_init__()
        for host in self.image_hosts:
            if not IMAGE_HOST.fullmatch(host):  # it becomes part of a header
                raise ConfigError(f"--image-hosts {host!r}: name hosts, such as img.shop.com")

    def keys(self, role: Role) -> tuple[bytes, ...]:
        """The keys that allow a role."""
        return tuple(key for key in (self._key("api"), self._key(role)) if key)

    @property
    def has_keys(self) -> bool:
        """Whether clients must send a key."""
        return any(self._key(name) for name in ("api", *get_args(Role)))

    @property
    def is_private(self) -> bool:
        """Whether the service answers this machine only, without a key."""
        return not (self.has_keys or self.open or self.trusted_proxies)

    def _key(self, name: str) -> bytes:
        given = getattr(self, f"{name}_key") or os.environ.get(f"JAXREC_{name.upper()}_KEY", "")
        return given.encode()

    def places_of(self, config: Config) -> Places:
        """The places beside the store from which DELETE /users/{id} removes a user.

        Args:
            config: of the run that is served.
        """
        listed = self.forgotten or (Path(config.data.forgotten) if config.data.forgotten else None)
        return Places(
            lists=(listed,) if listed else (),
            streams=(self.consume,) if self.consume else (),
            outputs=self.forget_outputs,
            states=self.forget_states,
            runs=self.forget_runs,
        )

    def store_of(self, run: Path) -> str:
        """Address of the store of a run."""
        return self.store or str(run / STORE)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Bounded):
    """Serve recommendations over HTTP, from the best checkpoint of a run. Every event updates its
    user's state, so the next list takes it into account."""

    run: tyro.conf.Positional[Path]
    """A run directory of `jaxrec train`."""
    events: Path | None = None
    """Events (.parquet, .csv or .jsonl) of users who are not in the store yet."""
    block: Count = 4096
    """Users of these events to read at a time."""
    strategy: Path | None = None
    """A YAML list of steps that act on the ranking in their order (by default feedback alone)."""
    live: Annotated[LiveOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=LiveOptions)


def _check_file(out: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raise an error for a file that cannot be written."""
    if out is None:
        return
    if out.suffix not in suffixes:
        raise ConfigError(f"--out {out}: name a file ending in {', '.join(suffixes)}")
    refuse_file_on_the_way(out)
    if out.exists():
        raise RunError(f"{out} exists and is not overwritten; name another file")
