"""What a host should look like: the inventory and templates/, rendered for what that host is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from macd import application
from macd.application import Application, Unit, bars_path, served
from macd.deploy.state import PROVISIONED, HostState, unit_names
from macd.errors import UsageError
from macd.host import own
from macd.host.alerts import look
from macd.host.alerts.conditions import Terms
from macd.host.durable import sha256_of
from macd.host.flag import guard_config
from macd.host.systemd import namespaces
from macd.host.systemd.supervisor import is_template
from macd.host.systemd.unitfile import unit_word
from macd.inventory import Host, Inventory, revoked
from macd.ssh import archive
from macd.symbols import symbol_name

REPLAY = "data/replay"
_REPLAY_BYTES = 4 << 20
_OWN_TEMPLATES = Path(__file__).parents[2] / "templates"
_UNCONFINED = (
    "scope user: its units run as the login, without hardening, MemoryMax or an account apart"
)
_IN_CONTAINER = (
    "service.hardening: container: its units have no namespaces, so no /tmp, devices or IPC apart, "
    "no read-only file system and no hidden processes; account, system call filter and limits stay"
)
_HOMES = ("/home/", "/root/", "/run/user/")
_LONGEST_SOCKET = 107  # bytes, on Linux


@dataclass(frozen=True)
class Market:
    """Where a live service's bars come from. exchange, type: "" where the feed doesn't name it.

    symbols: of all bars it gets, the watched one first. rests: train.market, where it says that
    the market rests.
    """

    tf: str
    symbols: Sequence[str]
    exchange: str = ""
    type: str = ""
    rests: str = ""


@dataclass(frozen=True)
class Desired:
    """Texts and bytes as they should stand on one host. `units`: None means not there."""

    app: str
    unit: str
    scope: str
    account: str
    endpoint: str
    units: Mapping[str, str | None]
    service_settings: str
    agent_archive: str  # SHA-256
    application: Application
    flags: Mapping[str, str]
    accepts: Mapping[str, str]
    symbols: Sequence[str] = ()  # that the service gives signals on; (): not known here
    symbols_are_named: bool = False  # by the inventory's part about the service
    max_age_days: float = 0  # of its models, against the clock; a replay's bars have their own time
    market: Market | None = None  # whose bars it gets; None for a replay
    # None: the file isn't here, so nothing can be compared
    allowed_signers: str | None = None
    revoked: str | None = None  # SHA-256, "" for no list
    hardening: str = namespaces.FULL

    @property
    def unit_text(self) -> str | None:
        """Of the unit that serves, the main one of several."""
        stem = self.unit.removesuffix(".service")
        main = next(n for n, unit in self.application.units(stem).items() if unit.template)
        return self.units[main]

    @property
    def unconfined(self) -> str:
        """Which protection the units do without; "" for none, and of the built-in application in
        the lab (scope user)."""
        if self.scope == "user":
            return _UNCONFINED if self.application.name else ""
        return _IN_CONTAINER if self.hardening == namespaces.CONTAINER else ""

    @property
    def identity(self) -> bytes:
        """state/accepts.json: what the host holds every release and every deploy to."""
        document = {**self.accepts, "revoked": self.revoked or ""}
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    @property
    def switched(self) -> dict[str, str | None]:
        """What goes live together with a release; the other units are provision's."""
        stem = self.unit.removesuffix(".service")
        others = {f"{stem}-{end}" for end in PROVISIONED}
        ours = {name: text for name, text in self.units.items() if name not in others}
        return {**ours, "service.json": self.service_settings}


def render(host: Host, inventory: Inventory, state: HostState) -> Desired:
    """What this one host should look like."""
    return Blueprint(inventory).render(host, state)


class Blueprint:
    """Everything that can be made ready before a host has answered; reads templates/ and macd."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._application = application.of(inventory)
        self._agent_archive = archive.digest()
        templates = _templates(project_templates(inventory), _OWN_TEMPLATES)
        of_units = {unit.template for unit in self._application.ends.values() if unit.template}
        self._units = {name: templates.get_template(name) for name in of_units}
        self._recover = templates.get_template("recover.unit.j2")
        self._alerts = templates.get_template("alerts.unit.j2")
        self._timer = templates.get_template("alerts.timer.j2")

    def render(self, host: Host, state: HostState) -> Desired:
        """Pure."""
        values = _values(host, self._inventory, self._application, state)
        *_, recover, alerts, timer = unit_names(host, self._inventory)
        live = own.understood(state.service_settings)
        is_live = live.name == self._application.name
        # None for those that only the release of now has.
        units: dict[str, str | None] = dict.fromkeys(live.units if is_live else ())
        for name, unit in self._application.units(host.unit).items():
            units[name] = self._unit(unit, state, values) if unit.template else None
        units[recover] = self._recover.render(values)
        looks = self._inventory.alerts.every_minutes > 0
        units[alerts] = self._alerts.render(values) if looks else None
        units[timer] = self._timer.render(values) if looks else None
        if self._inventory.service.hardening == namespaces.CONTAINER:
            units = {name: text and namespaces.without(text) for name, text in units.items()}
        return _desired(host, self._inventory, state, units, self._agent_archive, self._application)

    def _unit(self, unit: Unit, state: HostState, values: Mapping[str, object]) -> str:
        of_it = {"command": _command(unit, state), "notify": unit.ready.notify}
        text = self._units[unit.template].render({**values, **of_it})
        if values["instances"] and not is_template(text):
            raise UsageError(
                f"templates/{unit.template} makes no unit that instances can share",
                why="it is of an earlier version, or was changed: its first line has to say that "
                "it is for every instance",
                hint=f"copy {_OWN_TEMPLATES / unit.template} into the project's templates/",
            )
        return text


def _command(unit: Unit, state: HostState) -> str:
    """As systemd takes it; "" where the template has it."""
    if not unit.command:
        return ""
    words = own.argv(unit.command, f"{state.app}/current")
    if not words[0].startswith("/"):
        raise UsageError(
            f"{unit.command}: {words[0]} can't be started",
            why="a release holds no executable bits, so none of its files is a program",
            hint="begin the command with python3, a program that serve.requirements bring, "
            "or one of the system by its whole path: /bin/bash run.sh",
        )
    return " ".join(map(unit_word, words))


def _values(
    host: Host, inventory: Inventory, app: Application, state: HostState
) -> dict[str, object]:
    service = inventory.service
    return {
        "app": state.app,
        "unit": host.unit,
        "socket": f"{host.unit}.socket" if service.socket else "",
        "endpoint": state.endpoint,
        "user": service.user,
        "scope": host.scope,
        "python": state.python["executable"],
        "hardened": host.scope == "system",
        "home": "read-only" if state.app.startswith(_HOMES) else "yes",
        "memory_max": service.memory_max,
        "watchdog_s": f"{service.watchdog_s:g}" if service.watchdog_s else "",
        "confinement": guard_config.confinement(host.scope, state.app),
        "alert_terms": look.words_of(_alert_terms(host, inventory)),
        "every_s": f"{inventory.alerts.every_minutes * 60:g}",
        "own": bool(app.name),
        "name": app.name or "macd analysis",
        "served": _served_units(host, inventory, app),
        "instances": service.instances,
        "writes": " ".join(unit_word(f"{state.app}/{path}") for path in app.writes),
        "start_s": f"{max(120, inventory.soak.ready_s):g}",
    }


def _served_units(host: Host, inventory: Inventory, app: Application) -> str:
    """Before which an interrupted change is ended; instances say themselves that they come after,
    so this text is the same whatever is served.
    """
    if inventory.service.instances:
        return f"{host.unit}.service"
    return " ".join(name for name in app.units(host.unit) if name.endswith(".service"))


def _alert_terms(host: Host, inventory: Inventory) -> Terms:
    alerts = inventory.alerts
    return Terms(
        unit=host.unit,
        scope=host.scope,
        every_s=alerts.every_minutes * 60,
        silent_bars=alerts.silent_bars,
        disk_free=alerts.disk_free,
        expires_days=alerts.expires_days,
        clock_s=alerts.clock_s,
    )


def _desired(
    host: Host,
    inventory: Inventory,
    state: HostState,
    units: Mapping[str, str | None],
    agent_archive: str,
    app: Application,
) -> Desired:
    service, is_live = inventory.service, app.feed is not None and app.feed.kind != "replay"
    return Desired(
        app=state.app,
        unit=f"{host.unit}.service",
        scope=host.scope,
        account=service.user if host.scope == "system" else "",
        endpoint=state.endpoint,
        units=units,
        service_settings=_service_settings(host, inventory, app, state),
        agent_archive=agent_archive,
        application=app,
        hardening=service.hardening,
        flags=app.variables,
        symbols=tuple(map(symbol_name, served(inventory))) if app.feed else (),
        symbols_are_named=bool(inventory.service.symbol or inventory.service.symbols),
        max_age_days=service.max_age_days if is_live else 0,
        market=_market(inventory) if is_live else None,
        accepts={
            "app": inventory.release.app,
            "env": host.env,
            "identity": inventory.release.identity,
        },
        allowed_signers=_signers_here(inventory),
        revoked=_revoked_here(inventory),
    )


def project_templates(inventory: Inventory) -> Path:
    """templates/ of the project, else the one beside the macd that runs."""
    of_it = inventory.root / "templates"
    return of_it if of_it.is_dir() else _OWN_TEMPLATES


def _templates(*directories: Path) -> Environment:
    """What a project's own directory lacks, being older than this macd, comes from ours."""
    return Environment(  # noqa: S701 - unit files, not HTML
        loader=FileSystemLoader(directories),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _service_settings(host: Host, inventory: Inventory, app: Application, state: HostState) -> str:
    """The built-in application's own settings; of a team's own what the host has to know."""
    if app.name:
        of_own: dict[str, Any] = {
            "tf": inventory.train.tf,
            "env": host.env,
            own.KEY: app.service(host.unit).document(),
        }
        return json.dumps(of_own, indent=1, sort_keys=True) + "\n"
    symbols = served(inventory)
    cross = watched(inventory)[1:] if len(symbols) == 1 else _cross(inventory)
    document = {
        "symbol": symbols[0],
        **({"symbols": list(symbols)} if len(symbols) > 1 else {}),
        "tf": inventory.train.tf,
        "cross": cross,
        "endpoint": state.endpoint,
        **(_instances(host, symbols, state) if inventory.service.instances else {}),
        "env": host.env,
        "feed": _feed(inventory),
        "policy": inventory.service.policy.model_dump(mode="json"),
        **({"challenger": True} if inventory.service.challenger else {}),
        **({"max_age_days": oldest} if (oldest := inventory.service.max_age_days) else {}),
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _instances(host: Host, symbols: Sequence[str], state: HostState) -> dict[str, Any]:
    """Raises UsageError: a socket's address would be longer than a system takes."""
    for symbol in symbols:
        path = own.instance_endpoint(state.endpoint, symbol).removeprefix("unix:")
        if len(path.encode()) > _LONGEST_SOCKET:
            raise UsageError(
                f"the socket of {symbol} on {host.name} has too long a path",
                why=f"{path} has more than {_LONGEST_SOCKET} bytes",
                hint="a shorter app_dir for this host, or service.instances: false",
            )
    return {own.INSTANCES: host.unit}


def serving(wanted: Sequence[str], known: Sequence[str]) -> str:
    """What to write in the inventory, to serve those of `wanted` that a release knows; else all."""
    some = [name for name in wanted if name in known] or known
    return f"below service, write symbols: [{', '.join(some)}]"


def watched(inventory: Inventory) -> list[str]:
    """What the service watches: its symbols, then the assets whose bars its models' features need.

    On another asset of the panel than a trained one only models without those features speak.
    """
    symbols, names = served(inventory), set(map(symbol_name, served(inventory)))
    return [*symbols, *(name for name in _cross(inventory) if symbol_name(name) not in names)]


def _cross(inventory: Inventory) -> list[str]:
    """The assets that the features of its symbols need; none where no symbol was trained on."""
    train = inventory.train
    trained = set(map(symbol_name, train.symbols or (train.symbol,)))
    return [] if trained.isdisjoint(map(symbol_name, served(inventory))) else list(train.cross)


def _market(inventory: Inventory) -> Market:
    """A ccxt feed takes spot markets alone; who fills a directory, nobody knows here."""
    feed, tf = inventory.service.feed, inventory.train.tf
    symbols = tuple(map(symbol_name, watched(inventory)))
    rests = "" if inventory.train.market == "crypto" else inventory.train.market
    if feed.kind == "directory":
        return Market(tf, symbols, rests=rests)
    return Market(tf, symbols, feed.exchange, "spot", rests)


def _feed(inventory: Inventory) -> dict[str, Any]:
    """As macd/app/service/settings.py reads it; a directory may be relative to app_dir."""
    feed = inventory.service.feed
    place = {"replay": REPLAY, "directory": str(feed.directory or "data/feed"), "ccxt": ""}
    return {**feed.model_dump(mode="json"), "directory": place[feed.kind]}


def replay_files(inventory: Inventory) -> dict[str, bytes]:
    """Bars to replay, by path below the application's directory; what isn't here is left out.

    Raises UsageError for a file too large to travel with the settings.
    """
    files = {}
    for name, path in replayed(inventory).items():
        if not path.is_file():
            continue
        if path.stat().st_size > _REPLAY_BYTES:
            raise UsageError(
                f"{path} is too large to be replayed on a host",
                why=f"{path.stat().st_size >> 20} MB, at most {_REPLAY_BYTES >> 20}",
                hint="a replay is for demos: keep fewer bars, or set service.feed.kind",
            )
        files[name] = path.read_bytes()
    return files


def replayed(inventory: Inventory) -> dict[str, Path]:
    """The files a replay wants: path below the application's directory, and where it is here."""
    feed = application.of(inventory).feed
    if feed is None or feed.kind != "replay":
        return {}
    train = inventory.train
    return {
        f"{REPLAY}/{symbol}_{train.tf}.parquet": bars_path(train.data_dir, symbol, train.tf)
        for symbol in watched(inventory)
    }


def addresses(inventory: Inventory) -> bytes:
    """state/notify.json: where the host itself sends messages and its heartbeat; {} is nowhere."""
    alerts = inventory.alerts
    document = {
        "url": alerts.notify_url or inventory.guard.notify_url,
        "format": "" if alerts.format == "json" else alerts.format,
        "secret": alerts.notify_secret,
        "heartbeat_url": alerts.heartbeat_url,
    }
    return json.dumps({name: value for name, value in document.items() if value}).encode() + b"\n"


def allowed_signers(inventory: Inventory) -> bytes:
    """The file of keys whose releases a host takes. Raises UsageError when it isn't there."""
    path = inventory.release.allowed_signers
    if path is None or not path.is_file():
        raise UsageError(
            f"there is no allowed_signers file at {path}" if path else "nobody may sign releases",
            why=f"release.allowed_signers in {inventory.path} names the keys a host accepts",
            hint=_how_to_sign(inventory, path),
        )
    return path.read_bytes()


def _signers_here(inventory: Inventory) -> str | None:
    """The file's hash, as a host gives its own; only provision needs the file here."""
    path = inventory.release.allowed_signers
    if path is None or not path.is_file():
        return None
    return path.read_bytes().decode("utf-8", "replace")


def _revoked_here(inventory: Inventory) -> str | None:
    with contextlib.suppress(UsageError):
        path = revoked(inventory)
        return sha256_of(path) if path else ""
    return None


def _how_to_sign(inventory: Inventory, path: Path | None) -> str:
    """The commands that make the file out of the keys the inventory names."""
    if inventory.name == "lab":
        return "invoke lab.up makes it"
    if path is None:
        return f"set release.allowed_signers in {inventory.path}, then: invoke provision"
    release = inventory.release
    lines = [
        f'echo "{release.identity} namespaces=\\"{space}\\" $(cat {key}.pub)" >> {path}'
        for key, space in (
            (release.sign_key, "release-manifest@macd"),
            (release.gate_key, "gate-report@macd"),
        )
        if key is not None
    ]
    return "\n".join([*lines, "then: invoke provision (docs/newcomer.md has every step)"])
