"""What a host knows of the application that it serves, from service.json.

A team's own has a part there that says it; without one it is the built-in application (BUILT_IN),
in one process or as an instance per symbol.
service.json goes live and back together with a release, so this is always about what is live.
Standard library alone.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, load

KEY = "own"
INSTANCES = "instances"  # in the built-in one's settings: the unit's name, where it has instances
# What `parse` raises for a text that nobody understands: people may edit it.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
SOURCE = "source"  # below a release: the application's own tree, in which its commands run


@dataclass(frozen=True)
class Probe:
    """How one knows that a unit's new process serves; exactly one is set (see inventory's Ready).

    running: seconds.
    """

    http: str = ""
    notify: bool = False
    log: str = ""
    running: float = 0


@dataclass(frozen=True)
class Instance(Probe):
    """A unit of the built-in application that serves one symbol; its health endpoint proves it."""

    symbol: str = ""
    endpoint: str = ""


@dataclass(frozen=True)
class Flag:
    """The switch that lets the models decide. live, shadow: its values.

    where: "env", or "dropin" of the unit; "" for the built-in application's, which is in .env and
    has a weight beside it.
    """

    name: str
    live: str
    shadow: str
    where: str

    @property
    def place(self) -> str:
        """Where it is set, for people."""
        return "the drop-in" if self.where == "dropin" else ".env"

    def said(self, value: str) -> str:
        """A value as the flag calls it. value: 1 and 0 mean live and shadow."""
        return {BUILT_IN_FLAG.live: self.live, BUILT_IN_FLAG.shadow: self.shadow}.get(value, value)


BUILT_IN_FLAG = Flag("ML_ENABLE_STACKING", "1", "0", "")


@dataclass(frozen=True)
class Rate:
    """The share of lines whose field is as needed; see the inventory's Rate."""

    field: str
    of: str
    needs: str
    min: float
    level: str


@dataclass(frozen=True)
class Signals:
    """Where the signal lines are, as a glob below the application's directory, and how to read one.

    map: a meaning that the gate knows, or a name of the team's own -> dotted path in a line.
    """

    files: str
    level: str
    map: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """What serves. name: "" for the built-in application. units: by name with .service, the main
    one first, each with its probe; {} for the built-in one in one process, whose unit each request
    names. writes: directories below the application's that survive releases. endpoint: where the
    built-in one answers; "" where its settings don't say it.
    """

    name: str
    units: Mapping[str, Probe]
    writes: tuple[str, ...] = ()
    flag: Flag | None = None
    signals: Signals | None = None
    endpoint: str = ""

    @property
    def unit(self) -> str:
        """The main unit: of it flag and logs are; "" for the built-in one in one process."""
        return next(iter(self.units), "")

    @property
    def instances(self) -> dict[str, Instance]:
        """The units that serve a symbol each, of the built-in application; {} for none."""
        return {n: one for n, one in self.units.items() if isinstance(one, Instance)}

    def without(self, names: Collection[str]) -> Service:
        """The same but for those units; itself where none would be left."""
        units = {name: one for name, one in self.units.items() if name not in names}
        return replace(self, units=units) if units else self

    def document(self) -> dict[str, Any]:
        """As it stands in service.json; units as pairs, for JSON objects are sorted there."""
        units = [[name, asdict(probe)] for name, probe in self.units.items()]
        document = {**asdict(self), "units": units, "writes": list(self.writes)}
        return {name: value for name, value in document.items() if name != "endpoint"}


BUILT_IN = Service("", {}, ("data/live",), BUILT_IN_FLAG)


def titled(name: str) -> str:
    """What the application of that name is called in a sentence; "" is the built-in one."""
    return f"the application {name}" if name else "the built-in application"


def parse(text: str | None) -> Service:
    """The application of a service.json; the built-in one where there is no such file."""
    document = json.loads(text) if text else {}
    own = document.get(KEY) if isinstance(document, dict) else None
    if not isinstance(own, dict):
        return _built_in(document) if isinstance(document, dict) else BUILT_IN
    flag, signals = own.get("flag"), own.get("signals")
    return Service(
        name=own["name"],
        units={name: Probe(**probe) for name, probe in own["units"]},
        writes=tuple(own["writes"]),
        flag=Flag(**flag) if flag else None,
        signals=signals_of(signals) if signals else None,
    )


def _built_in(document: Mapping[str, Any]) -> Service:
    endpoint, base = document.get("endpoint", ""), document.get(INSTANCES, "")
    if not isinstance(base, str) or not base:
        return replace(BUILT_IN, endpoint=str(endpoint))
    units = {
        instance_unit(base, symbol): Instance(
            symbol=symbol, endpoint=instance_endpoint(endpoint, symbol)
        )
        for symbol in document.get("symbols") or [document["symbol"]]
    }
    return replace(BUILT_IN, units=units, endpoint=str(endpoint))


def instance_unit(base: str, symbol: str) -> str:
    """The unit that serves a symbol. base: the name of the application's unit, without .service."""
    return f"{base}@{symbol}.service"


def instance_endpoint(endpoint: str, symbol: str) -> str:
    """Where an instance answers: a socket of its own beside the one of a single process."""
    return f"{endpoint.removesuffix('.sock')}-{symbol}.sock"


def signals_of(document: Mapping[str, Any]) -> Signals:
    """As `asdict` made it."""
    rates = {name: Rate(**rate) for name, rate in document["rates"].items()}
    return Signals(**{**document, "rates": rates})


def understood(text: str | None) -> Service:
    """As `parse`; the built-in one where nobody understands the text."""
    try:
        return parse(text)
    except UNREADABLE:
        return BUILT_IN


def read(layout: Layout) -> Service:
    """Of what is live on this host; where people broke its settings, as they went live.

    Raises one of UNREADABLE where nobody knows that either.
    """
    try:
        return parse(durable.text(layout.service_settings))
    except UNREADABLE as error:
        try:
            return parse(went_live(layout, live_release(layout)))
        except UNREADABLE:
            raise error from None


def went_live(layout: Layout, release: str | None) -> str | None:
    """The text of service.json with which a release went live; None: there was none.

    Raises LookupError: nobody knows.
    """
    try:
        stored = load(layout.state("snapshots", f"{release}.json"), None)
    except (HostError, OSError) as error:
        raise LookupError(release) from error
    if not isinstance(stored, dict) or not isinstance(stored.get("service.json"), str | None):
        raise LookupError(release)
    return stored.get("service.json")


def argv(command: str, release: str) -> list[str]:
    """A command's words, run by the Python of the release at path `release`.

    python and python3 are its own; another first word is a program of its runtime's bin/, or of the
    system where it is a path.
    """
    first, *rest = shlex.split(command)
    python = f"{release}/runtime/bin/python"
    if first in ("python", "python3"):
        return [python, *rest]
    # By its Python: a runtime is moved after it was built, so its programs' first lines are wrong.
    return [first, *rest] if "/" in first else [python, f"{release}/runtime/bin/{first}", *rest]
