"""What an inventory holds, as frozen values whose defaults are the team's guide.

Each field is documented by a comment in inventory/production.example.yml, which a test holds to.
"""

import re
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from macd.criteria import GUIDE, CriterionName, Level
from macd.errors import UsageError
from macd.heads import is_head
from macd.inventory.names import (
    Account,
    Endpoint,
    FlagName,
    FlagValue,
    HostName,
    IndexUrl,
    Jump,
    LocalPath,
    NodeAddress,
    NotifyUrl,
    OnCalendar,
    Port,
    Python,
    RemotePath,
    SshAlias,
    Symbol,
    Timeframe,
    Unit,
    User,
    WebhookSecret,
    WebhookUrl,
    matching,
)
from macd.inventory.own_app import OwnApp
from macd.train_options import (
    ENGINE,
    FEE_BPS,
    LONG,
    MIN_MOVE,
    SEED,
    SHORT,
    SLIPPAGE_BPS,
    STAGES,
    SYMBOL,
    TF,
    Engine,
    FindingName,
    Hold,
    Market,
    PolicyKind,
    Profile,
    Stage,
)

_FEWEST_PORTS = 64  # each fit that runs at once on a node needs one
LONGEST_EXPIRY_DAYS = 36500  # a century: longer is a slip, and far longer no date
_YEAR_HOURS = 8784
_LONGEST_WINDOW_DAYS = 3650  # as --days
_SHORTEST_S = 1.0  # between two looks: systemd takes no timer of microseconds
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1)]
# The thresholds of data.verify, which this room may not ask; a test holds them equal.
LimitName = Literal[
    "gap_error",
    "missing_error",
    "zero_volume_warn",
    "zero_volume_error",
    "frozen_warn",
    "frozen_error",
    "spike_z",
    "spike_min",
    "spike_error",
    "wick_min",
    "jump",
    "jump_error",
    "overlap_warn",
    "overlap_error",
    "overlap_bars",
]


def _all_different(symbols: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(symbols)) != len(symbols):
        raise ValueError("each symbol once")
    return symbols


def _defaults(**values: Any) -> Any:
    """A model that a file may leave out. It is made when a file is read: a value made here would
    cost every command the time to build a validator for the model alone.
    """
    return Field(default=values, validate_default=True)


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )


class Host(_Model):
    """One machine: its role, how ssh reaches it, and where its files are."""

    name: HostName
    role: Literal["jump", "train", "serve"]
    env: Annotated[
        str,
        matching(
            re.compile(r"([a-z0-9][a-z0-9_-]{0,31})?"),
            "a short name in small letters, digits, - or _, such as prod",
        ),
    ] = ""
    ssh: SshAlias
    user: User | None = None
    port: Port | None = None
    transport: Literal["paramiko", "openssh"] = "paramiko"
    terminal: Literal["", "exec", "shell"] = ""
    jump: tuple[Jump, ...] | None = None
    identity: LocalPath | None = None
    work_dir: RemotePath = ""
    app_dir: RemotePath = ""
    python: Python = "python3"
    address: NodeAddress = ""
    become: Literal["", "sudo"] = ""
    unit: Unit = "macd-analysis"
    scope: Literal["system", "user"] = "system"

    @field_validator("scope")
    @classmethod
    def _no_release_code_as_root(cls, scope: str, info: ValidationInfo) -> str:
        """A user's own services run as whoever logs in; what ssh_config says, the host checks."""
        fields = info.data
        root = fields.get("user") == "root" or fields.get("become") == "sudo"
        if fields.get("role") == "serve" and scope == "user" and root:
            raise ValueError(
                "system, where the service runs as service.user; or a login that is not root, "
                "without become: with scope user, releases would run as root"
            )
        return scope

    @model_validator(mode="after")
    def _complete_for_role(self) -> Self:
        needed = {"jump": (), "train": ("work_dir",), "serve": ("app_dir", "env")}[self.role]
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} set, because role is {self.role}")
        return self


class LinkSettings(_Model):
    """How long to wait for a peer, in seconds; a dead link is reported within a minute."""

    connect_s: Annotated[float, Field(gt=0, le=20)] = 10
    login_s: Annotated[float, Field(gt=0, le=30)] = 20
    keepalive_s: Annotated[float, Field(gt=0, le=20)] = 10
    dead_after_s: Annotated[float, Field(gt=0, le=55)] = 40

    @model_validator(mode="after")
    def _several_probes(self) -> Self:
        if self.dead_after_s < 2 * self.keepalive_s:
            raise ValueError("dead_after_s at least twice keepalive_s, or one lost probe is death")
        return self


class Criterion(_Model):
    """A threshold a training has to meet, and whether missing it blocks a release or warns."""

    threshold: float
    level: Level = "block"


class AcceptedFinding(_Model):
    """Findings about bars that a person knows to be the market itself, and why."""

    check: FindingName
    symbol: Symbol
    since: date | datetime | None = Field(default=None, alias="from")
    until: date | datetime | None = Field(default=None, alias="to")
    reason: Annotated[str, Field(min_length=1, max_length=500)]

    def as_json(self) -> dict[str, str]:
        """As training settings write it."""
        return {
            name: value if isinstance(value, str) else value.isoformat()
            for name, value in self.model_dump(by_alias=True, exclude_none=True).items()
        }


class TrainSettings(_Model):
    """What is trained, from which bars, in which stages, and what counts as success."""

    profile: Profile = "full"
    symbol: Symbol = SYMBOL
    symbols: tuple[Symbol, ...] = ()
    tf: Timeframe = TF
    cross: tuple[Symbol, ...] = ()
    panel: tuple[Symbol, ...] = ()
    data_dir: LocalPath
    seed: Annotated[int, Field(ge=0, lt=2**31)] = SEED
    seeds: Annotated[int, Field(ge=1, le=10)] = 1
    params: dict[str, dict[str, bool | int | float | str]] = {}
    refit: bool = False
    engine: Engine = ENGINE
    hosts: tuple[HostName, ...] = ()
    ports: tuple[Port, Port] = (6400, 6999)
    require_gpu: bool = True
    min_free_gb: Annotated[float, Field(ge=0)] = 20
    min_move: Annotated[float, Field(ge=0, lt=1)] = MIN_MOVE
    min_n_eff: Annotated[float, Field(ge=0, lt=1e6)] = 0
    market: Market = "crypto"
    limits: dict[LimitName, Annotated[float, Field(ge=0, lt=1e9)]] = {}
    accept: tuple[AcceptedFinding, ...] = ()
    stages: tuple[Stage, ...] = STAGES
    schedule: OnCalendar = ""
    schedule_bars: RemotePath | None = None
    schedule_keep: Count = 5
    criteria: dict[CriterionName, Criterion] = Field(default={}, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _first_of_many(cls, given: Any) -> Any:
        """`symbol` is the first of `symbols`, for those that read one symbol."""
        symbols = given.get("symbols") if isinstance(given, dict) else None
        if not isinstance(symbols, list | tuple) or not symbols or "symbol" in given:
            return given
        return {**given, "symbol": symbols[0]}

    @field_validator("symbols")
    @classmethod
    def _each_once(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        return _all_different(symbols)

    @model_validator(mode="after")
    def _one_first(self) -> Self:
        if self.symbols and self.symbol != self.symbols[0]:
            raise ValueError(
                "one of symbol and symbols, or symbol the first of symbols: "
                f"{self.symbols[0]} is, symbol says {self.symbol}"
            )
        return self

    @field_validator("ports")
    @classmethod
    def _room_for_workers(cls, ports: tuple[Port, Port]) -> tuple[Port, Port]:
        if ports[1] - ports[0] < _FEWEST_PORTS:
            raise ValueError(f"the first and the last of at least {_FEWEST_PORTS} ports")
        return ports

    @field_validator("criteria", mode="before")
    @classmethod
    def _on_top_of_the_guide(cls, given: Any) -> Any:
        """A file may name some criteria, or only their level: the rest stays as the guide says."""
        if not isinstance(given, dict):
            return given
        guide: dict[str, Any] = {
            name: {"threshold": rule.threshold, "level": rule.level} for name, rule in GUIDE.items()
        }
        for name, value in given.items():
            guide[name] = {**guide.get(name, {}), **value} if isinstance(value, dict) else value
        return guide


class GateSettings(_Model):
    """When shadow evidence is good enough to let stacking decide; shares from 0 to 1."""

    ml_coverage: Share = 0.80
    stacking_activation: Share = 0.90
    tft_normal: Share = 0.80
    lstm_normal: Share = 0.95
    min_bars: Count = 20
    days: Annotated[float, Field(gt=0, le=_LONGEST_WINDOW_DAYS)] = 2
    rule: Literal["point", "sequential"] = "point"
    skill: Literal["worse", "better", "off"] = "worse"
    expires_hours: Annotated[float, Field(gt=0, le=_YEAR_HOURS)] = 24

    @field_validator("skill", mode="before")
    @classmethod
    def _off_is_false_in_yaml(cls, skill: Any) -> Any:
        return "off" if skill is False else skill


class GuardSettings(_Model):
    """How long the host itself watches stacking after it was enabled, and how often.

    steps: what stacking counts for, in percent, one watch after another; none: 100 at once.
    """

    every_hours: Annotated[float, Field(gt=0)] = 2
    for_hours: Annotated[float, Field(gt=0, le=_YEAR_HOURS)] = 24
    steps: tuple[Annotated[int, Field(ge=1, le=100, strict=True)], ...] = ()
    notify_url: WebhookUrl = Field(default="", repr=False)  # carries a token

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= before for before, later in pairwise(steps)):
            raise ValueError("rising percentages, such as [25, 50, 100]")
        return steps

    @model_validator(mode="after")
    def _looks_while_it_watches(self) -> Self:
        if not _SHORTEST_S / 3600 <= self.every_hours <= self.for_hours:
            raise ValueError(
                f"every_hours (here {self.every_hours:g}) from a second up to for_hours (here "
                f"{self.for_hours:g}), or the guard would not look while it watches"
            )
        return self


SIGNED_FORMATS = ("feishu", "dingtalk")  # robots that may want their messages signed


class AlertSettings(_Model):
    """From when on a host tells by itself what is quiet or stale, and whom; 0 is never."""

    every_minutes: Annotated[float, Field(ge=0, le=1440)] = 5
    silent_bars: Annotated[float, Field(ge=0, le=1000)] = 2
    disk_free: Share = 0.05
    expires_days: Annotated[float, Field(ge=0, le=LONGEST_EXPIRY_DAYS)] = 7
    clock_s: Annotated[float, Field(ge=0, le=86400)] = 30
    notify_url: WebhookUrl = Field(default="", repr=False)  # carries a token
    format: Literal["json", "slack", "discord", "feishu", "dingtalk", "wecom"] = "json"
    notify_secret: WebhookSecret = Field(default="", repr=False)
    heartbeat_url: WebhookUrl = Field(default="", repr=False)

    @field_validator("every_minutes")
    @classmethod
    def _none_or_some_time(cls, minutes: float) -> float:
        if 0 < minutes < _SHORTEST_S / 60:
            raise ValueError("a second (0.017) or more; 0 for no look at all")
        return minutes

    @model_validator(mode="after")
    def _signs(self) -> Self:
        if self.notify_secret and self.format not in SIGNED_FORMATS:
            named = " and ".join(SIGNED_FORMATS)
            raise ValueError(f"notify_secret signs messages to {named} only; format says which")
        return self


class SoakSettings(_Model):
    """The times of an activation, in seconds; when one runs out the host reverts by itself."""

    ready_s: Seconds = 60
    soak_s: Seconds = 60
    confirm_s: Seconds = 180


class ReleaseSettings(_Model):
    """What a release is called, who signs it, how long it may be deployed, how many stay."""

    app: HostName = "macd-analysis"
    keep: Count = 5
    sign_key: LocalPath | None = None
    gate_key: LocalPath | None = None
    allowed_signers: LocalPath | None = None
    revoked: LocalPath | None = None
    identity: Annotated[
        str,
        matching(
            re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}"),
            "a name as in allowed_signers, such as release@macd",
        ),
    ] = "release@macd"
    expires_days: Annotated[float, Field(gt=0, le=LONGEST_EXPIRY_DAYS)] = 30


class FeedSettings(_Model):
    """Where the service's bars come from; each kind reads only its own keys."""

    kind: Literal["replay", "directory", "ccxt"] = "ccxt"
    speed: Annotated[float, Field(ge=0, le=100000)] = 2
    start: Share = 0.85
    loop: bool = True
    directory: RemotePath | None = None
    exchange: Annotated[
        str, matching(re.compile(r"[a-z0-9]{1,32}"), "ccxt's name of an exchange, such as binance")
    ] = "binance"
    api_url: Annotated[
        str,
        matching(
            re.compile(r"(https?://[A-Za-z0-9._:\[\]/-]{1,200})?"),
            "an address such as https://api.example.com/v3, without a query",
        ),
    ] = ""
    stale_bars: Annotated[float, Field(gt=0, le=1000)] = 1


class ThresholdSettings(_Model):
    """Probabilities of "up": long at `long` and above, short at `short` and below."""

    long: Share = LONG
    short: Share = SHORT

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.short >= self.long:
            raise ValueError("short below long")
        return self


class PolicySettings(_Model):
    """How actions and positions follow from base rule and models, and what a trade costs.

    The training gets the same and evaluates it (macd/app/predict/policy.py).
    """

    kind: PolicyKind = "tilt"
    thresholds: dict[str, ThresholdSettings] = _defaults(all={})
    long_only: bool = False
    size: Annotated[float, Field(gt=0, le=1)] = 1
    hold: Hold = "horizon"
    fee_bps: Annotated[float, Field(ge=0, le=1000)] = FEE_BPS
    slippage_bps: Annotated[float, Field(ge=0, le=1000)] = SLIPPAGE_BPS

    @field_validator("thresholds")
    @classmethod
    def _of_heads(cls, thresholds: dict[str, ThresholdSettings]) -> dict[str, ThresholdSettings]:
        for name in thresholds:
            if name != "all" and not is_head(name):
                raise ValueError(f"heads (5h at 1h, else h5) or all; {name} is neither")
        return thresholds


class ServiceSettings(_Model):
    """How the service runs on its hosts: as whom, where it answers, with what at most."""

    user: Account = "macd"
    symbol: Symbol | None = None
    symbols: tuple[Symbol, ...] | None = None
    instances: bool = False
    health: Endpoint = "unix"
    socket: bool = True
    hardening: Literal["full", "container"] = "full"
    runtime: Literal["wheels", "index"] = "wheels"
    index_url: IndexUrl = Field(default="", repr=False)  # may carry a password
    memory_max: Annotated[
        str, matching(re.compile(r"[1-9][0-9]{0,5}[MG]"), "a size such as 500M or 2G")
    ] = "500M"
    watchdog_s: Annotated[float, Field(ge=0, le=3600)] = 60
    max_age_days: Annotated[float, Field(ge=0, le=LONGEST_EXPIRY_DAYS)] = 0
    feed: FeedSettings = _defaults()
    policy: PolicySettings = _defaults()
    challenger: bool = False
    env: dict[FlagName, FlagValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _no_socket_for_instances(cls, given: Any) -> Any:
        """Each instance opens a socket of its own, so systemd holds none for them."""
        if isinstance(given, dict) and given.get("instances") is True:
            return {"socket": False, **given}
        return given

    @field_validator("symbols")
    @classmethod
    def _some_each_once(cls, symbols: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if symbols == ():
            raise ValueError("at least one symbol; left out, all of the release are served")
        return symbols and _all_different(symbols)

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if self.symbol and self.symbols:
            raise ValueError("one of symbol and symbols")
        return self

    @model_validator(mode="after")
    def _each_instance_answers(self) -> Self:
        if self.instances and self.health != "unix":
            raise ValueError(
                "health: unix, because instances is true: each instance answers at a socket of its "
                "own, and only one process can have a port"
            )
        if self.instances and self.socket:
            raise ValueError(
                "socket left out, because instances is true: each instance opens its own socket"
            )
        return self


class Inventory(_Model):
    """One inventory/NAME.yml, read and checked."""

    name: str
    path: Path
    root: Path
    ssh_config: LocalPath | None = None
    known_hosts: LocalPath
    link: LinkSettings = _defaults()
    hosts: dict[HostName, Host] = Field(min_length=1)
    app: OwnApp | None = None
    train: TrainSettings
    gate: GateSettings = _defaults()
    guard: GuardSettings = _defaults()
    alerts: AlertSettings = _defaults()
    soak: SoakSettings = _defaults()
    release: ReleaseSettings = _defaults()
    service: ServiceSettings = _defaults()
    notify: tuple[NotifyUrl, ...] = Field(default=(), repr=False)  # URLs carry tokens

    @model_validator(mode="after")
    def _one_webhook(self) -> Self:
        if self.guard.notify_url and self.alerts.notify_url:
            raise ValueError("one of alerts.notify_url and guard.notify_url, which is its old name")
        return self

    @model_validator(mode="before")
    @classmethod
    def _named_by_the_app(cls, data: Any) -> Any:
        """The name of an application of one's own is the one in its manifests."""
        own = data.get("app") if isinstance(data, dict) else None
        name = own.get("name") if isinstance(own, dict) else None
        release = data.get("release", {}) if isinstance(data, dict) else {}
        if isinstance(name, str) and isinstance(release, dict):
            return {**data, "release": {**release, "app": release.get("app", name)}}
        return data

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if self.app is not None and self.release.app != self.app.name:
            raise ValueError("one name: leave release.app out, app.name counts")
        return self

    @model_validator(mode="after")
    def _instances_of_the_built_in_one(self) -> Self:
        if not self.service.instances:
            return self
        if self.app is not None:
            raise ValueError(
                "no service.instances: macd does not know how an application of your own takes a "
                "symbol; app.serve.more names its further units"
            )
        named = [host.name for host in self.hosts.values() if "@" in host.unit]
        if named:
            raise ValueError(
                f"a unit without @ for {', '.join(named)}, because service.instances is true: what "
                "follows the @ is the symbol"
            )
        return self

    @model_validator(mode="after")
    def _one_cluster(self) -> Self:
        """Each host of train.hosts trains, says where the others reach it, and is named once."""
        named = self.train.hosts
        if self.app is not None and named:
            raise ValueError("no train.hosts: an application of your own trains on one host")
        if len(set(named)) < len(named):
            raise ValueError("each host once in train.hosts")
        for name in named:
            host = self.hosts.get(name)
            if host is None or host.role != "train":
                raise ValueError(f"hosts with role train in train.hosts; {name} is none")
            if not host.address and len(named) > 1:
                raise ValueError(
                    f"address of {name} set, because train.hosts names it: the address or interface"
                    " where the other hosts reach it"
                )
        return self

    @property
    def state_dir(self) -> Path:
        """Where this inventory's journal and other local state live."""
        return self.root / ".macd" / self.name

    def host(self, name: str) -> Host:
        """The host of that name. Raises UsageError naming the known ones."""
        if name in self.hosts:
            return self.hosts[name]
        raise UsageError(
            f"inventory {self.name} has no host {name!r}",
            why=f"it has: {', '.join(self.hosts)}",
            hint="invoke host.list shows them; --inventory NAME chooses another inventory",
        )

    def env_hosts(self, env: str) -> list[Host]:
        """The hosts that serve an environment such as "prod", in the file's order, at least one.

        Raises UsageError naming the known environments.
        """
        serving = [host for host in self.hosts.values() if host.role == "serve"]
        matches = [host for host in serving if host.env == env]
        if matches:
            return matches
        environments = ", ".join(dict.fromkeys(host.env for host in serving)) or "none"
        raise UsageError(
            f"inventory {self.name} has no host that serves env {env!r}",
            why=f"environments with a serving host: {environments}",
            hint="invoke host.list shows each host and its env; give --env one of these, or a host "
            f"role: serve and env: {env} in {self.path}",
        )
