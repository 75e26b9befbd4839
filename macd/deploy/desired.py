"""What a host should look like: the inventory and templates/, rendered for what that host is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from macd.application import bars_path, symbol_name
from macd.deploy.state import HostState, unit_names
from macd.errors import UsageError
from macd.host.durable import sha256_of
from macd.inventory import Host, Inventory, revoked
from macd.ssh import archive

SHADOW = {"ML_ENABLE_STACKING": "0"}
REPLAY = "data/replay"
_REPLAY_BYTES = 4 << 20
_HOMES = ("/home/", "/root/", "/run/user/")


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
    flags: Mapping[str, str]
    accepts: Mapping[str, str]
    symbol: str = ""  # what the service watches; "": not known here
    # None: the file isn't here, so nothing can be compared
    allowed_signers: str | None = None
    revoked: str | None = None  # SHA-256, "" for no list

    @property
    def identity(self) -> bytes:
        """state/accepts.json: what the host holds every release and every deploy to."""
        document = {**self.accepts, "revoked": self.revoked or ""}
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    @property
    def switched(self) -> dict[str, str | None]:
        """What goes live together with a release (the recover unit is provision's)."""
        ours = {name: text for name, text in self.units.items() if "-recover" not in name}
        return {**ours, "service.json": self.service_settings}


def render(host: Host, inventory: Inventory, state: HostState) -> Desired:
    """What this one host should look like."""
    return Blueprint(inventory).render(host, state)


class Blueprint:
    """Everything that can be made ready before a host has answered; reads templates/ and macd."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._agent_archive = archive.digest()
        templates = _templates(project_templates(inventory))
        names = ("service.unit.j2", "service.socket.j2", "recover.unit.j2")
        self._service, self._socket, self._recover = (templates.get_template(n) for n in names)

    def render(self, host: Host, state: HostState) -> Desired:
        """Pure."""
        units: dict[str, str | None] = {}
        values = _values(host, self._inventory, state)
        service, socket, recover = unit_names(host)
        units[service] = self._service.render(values)
        units[socket] = self._socket.render(values) if self._inventory.service.socket else None
        units[recover] = self._recover.render(values)
        return _desired(host, self._inventory, state, units, self._agent_archive)


def _values(host: Host, inventory: Inventory, state: HostState) -> dict[str, object]:
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
    }


def _desired(
    host: Host,
    inventory: Inventory,
    state: HostState,
    units: Mapping[str, str | None],
    agent_archive: str,
) -> Desired:
    service = inventory.service
    return Desired(
        app=state.app,
        unit=f"{host.unit}.service",
        scope=host.scope,
        account=service.user if host.scope == "system" else "",
        endpoint=state.endpoint,
        units=units,
        service_settings=_service_settings(host, inventory, state),
        agent_archive=agent_archive,
        flags={**SHADOW, **service.env},
        symbol=symbol_name(watched(inventory)[0]),
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
    own = inventory.root / "templates"
    return own if own.is_dir() else Path(__file__).parents[2] / "templates"


def _templates(directory: Path) -> Environment:
    return Environment(  # noqa: S701 - unit files, not HTML
        loader=FileSystemLoader(directory),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _service_settings(host: Host, inventory: Inventory, state: HostState) -> str:
    symbol, *cross = watched(inventory)
    document = {
        "symbol": symbol,
        "tf": inventory.train.tf,
        "cross": cross,
        "endpoint": state.endpoint,
        "env": host.env,
        "feed": _feed(inventory),
        "policy": inventory.service.policy.model_dump(mode="json"),
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def watched(inventory: Inventory) -> list[str]:
    """What the service watches: its symbol, then the assets whose bars its models' features need.

    On another asset of the panel than the trained one only models without those features speak.
    """
    train, symbol = inventory.train, inventory.service.symbol
    if not symbol or symbol_name(symbol) == symbol_name(train.symbol):
        return [train.symbol, *train.cross]
    return [symbol]


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
    if inventory.service.feed.kind != "replay":
        return {}
    train = inventory.train
    return {
        f"{REPLAY}/{symbol}_{train.tf}.parquet": bars_path(train.data_dir, symbol, train.tf)
        for symbol in watched(inventory)
    }


def guard_notify(inventory: Inventory) -> bytes:
    """state/notify.json: where the guard reports that it disabled stacking; {} is nowhere."""
    url = inventory.guard.notify_url
    return json.dumps({"url": url} if url else {}).encode() + b"\n"


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
