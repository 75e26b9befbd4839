"""What one look at the host sees. Each thing is looked at alone: one that fails hides no other."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from macd.host import durable, own, untrusted
from macd.host.alerts.conditions import Facts, Newest, Terms
from macd.host.deploy import ledger, locks
from macd.host.deploy.health import ProbeError, ask, get
from macd.host.deploy.probe import Instances, prover_of
from macd.host.failure import HostError
from macd.host.flag import guard, guard_config
from macd.host.judge import by_symbol, drift, judging, reading
from macd.host.judge.drift import Drift
from macd.host.layout import Layout, live_release, load
from macd.host.own import Service
from macd.host.store import age, manifest, releases, signature
from macd.host.systemd.supervisor import Process, Supervisor

_MEMORY, _WITHIN_S = 128 << 20, 20.0  # of the process that reads the newest line
_CLOCK_S = 10.0
_ANSWERS_S = 5.0
T = TypeVar("T")


def gather(layout: Layout, terms: Terms, now: float, *, offset_s: float | None = None) -> Facts:
    """As it is now. `restarts` is the process's count since its unit was started by hand.

    offset_s: of this clock, as the last web server's answer gave it.
    """
    unread: list[str] = []

    def of(what: str, read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except Exception as error:  # whatever it is, the other conditions are looked at
            why = getattr(error, "strerror", None) or error
            unread.append(untrusted.line(f"{what} ({why})", 200))
            return default

    live = of("the live release", lambda: live_release(layout), None)
    nothing: dict[str, Any] = {}
    service = of("service.json", lambda: _object(layout.service_settings), nothing)
    pending = of("the pending activation", lambda: _pending(layout), None)
    application = own.BUILT_IN
    if service:
        application = of("service.json", lambda: own.read(layout), application)
    no_units: dict[str, Process] = {}
    units = of("the units", lambda: _units(terms.scope, application), no_units)
    away = [name for name in application.instances if name in units and units[name].is_put_away]
    application = application.without(away)
    main = application.unit or f"{terms.unit}.service"
    process = of("the service's process", lambda: _process(terms.scope, main), None)
    down = _down(application, units)
    process = units.get(down, process)
    is_up = live is not None and process is not None and process.active == "active"
    keeps, synchronised = _clock()
    guarded, unjudged = of("the guard", lambda: _guard(layout, live), ("none", ""))
    return Facts(
        now=now,
        live=live,
        changing=_is_changing(layout, pending),
        committed=of("committed.json", lambda: _committed(layout), None),
        process=process,
        unit=down,
        restarts=sum(one.restarts for one in {main: process, **units}.values() if one),
        restarted={
            name: one.restarts
            for name, one in units.items()
            if name in application.instances and one.restarts
        },
        # With a socket, asking would start a service that somebody stopped.
        health=_health(layout, terms, live, application, units) if live and (is_up or down) else {},
        rollback=of("the rollback target", lambda: _rollback(layout, live), None),
        service=service,
        newest=None
        if application.name
        else of("the newest signal line", lambda: newest(Path(layout.live)), None),
        disk=of("the disk", lambda: durable.disk_of(layout.app), None),
        expires=of("the release's manifest", lambda: _expires(layout, live), None),
        identity=of("accepts.json", lambda: str(signature.accepts(layout)["identity"]), ""),
        allowed_signers=durable.text(layout.state("allowed_signers")) or "",
        guard=guarded,
        unjudged=unjudged,
        pending=pending,
        synchronised=synchronised,
        keeps=keeps,
        offset_s=offset_s,
        bars_end=of("the release's bars", lambda: _bars_end(layout, live), None),
        features=of("the features", lambda: _features(layout, live), None),
        signals=_signals(application),
        written=of("the signals", lambda: _written(layout, _signals(application) or ""), None),
        unread=tuple(unread),
    )


def _guard(layout: Layout, live: str | None) -> tuple[str, str]:
    """As `guard_of` answers, and how often it could not judge; nothing of a watch that only waits
    for its end, as after a rollback.
    """
    if not guard.is_needed(layout):
        return "none", ""
    watch = guard_config.read_watch(layout)
    return guard_config.guard_of(layout, live), guard_config.unjudged(watch)


def newest(live: Path) -> Newest | None:
    """The newest signal line below `live`. Raises CannotJudgeError, ValueError."""
    if not live.is_dir():
        return None
    raw = judging.apart(live, lambda: _newest(live), memory=_MEMORY, within_s=_WITHIN_S)
    said = json.loads(raw)
    if said is None:
        return None
    bar, written, tf = said
    return Newest(int(bar), int(written), untrusted.line(tf, 8))


def _newest(live: Path) -> bytes:
    line = reading.newest_signal(live)
    return json.dumps(line and [line.bar, line.time, line.tf]).encode()


def _bars_end(layout: Layout, live: str | None) -> datetime | None:
    made = releases.read_manifest(layout, live) if live else None
    return age.bars_end(made.details, made.created) if made else None


def _features(layout: Layout, live: str | None) -> Drift | None:
    """What the newest block of bars says; the logs are read apart, their answer is not trusted."""
    logs = Path(layout.live)
    details = releases.read_manifest(layout, live).details if live else {}
    if symbols := by_symbol.served(durable.text(layout.service_settings)):
        return _features_of(symbols, logs, live, details)
    if drift.expected(details) is None or not logs.is_dir():
        return None
    raw = judging.apart(logs, lambda: _recent(logs, live), memory=_MEMORY, within_s=_WITHIN_S)
    bars = [_bar(*row) for row in json.loads(raw)]
    said = drift.expected(details, bars[-1].symbol if bars else "")
    return drift.judge(said, bars) if said else None


def _bar(outside: Any, worst: Any, symbol: Any, p: Any) -> drift.Bar:
    named = untrusted.line(worst, 80), untrusted.line(symbol, 40)
    return drift.Bar(float(outside), *named, None if p is None else float(p))


def _features_of(
    symbols: Sequence[str], logs: Path, live: str | None, details: Mapping[str, Any]
) -> Drift | None:
    """The same of several symbols: what the first that drifts says, and how many more do."""
    each = {name: drift.expected(manifest.details_of(details, name), name) for name in symbols}
    if not any(each.values()) or not logs.is_dir():
        return None

    def read() -> bytes:
        return json.dumps(drift.recent_of(reading.ordered(logs), live, symbols)).encode()

    rows = json.loads(judging.apart(logs, read, memory=_MEMORY, within_s=_WITHIN_S))
    return by_symbol.worst_of(
        [
            (name, drift.judge(said, [_bar(*row) for row in rows[name]]))
            for name, said in each.items()
            if said
        ]
    )


def _recent(logs: Path, live: str | None) -> bytes:
    return json.dumps(drift.recent(reading.ordered(logs), live)).encode()


def _process(scope: str, unit: str) -> Process:
    process = Supervisor(scope).show(unit)
    if not process.active:
        raise HostError("systemctl says nothing of it")
    return process


def _committed(layout: Layout) -> float | None:
    entries = ledger.history(layout)
    at = entries[-1].get("at") if entries else None  # older versions recorded less
    return float(at) if isinstance(at, (int, float)) else None


def _is_changing(layout: Layout, pending: dict[str, Any] | None) -> bool:
    if pending is not None and pending["runner"]:
        return True
    return os.path.isdir(layout.state()) and locks.holder_of(layout, locks.DEPLOY) is not None


def _pending(layout: Layout) -> dict[str, Any] | None:
    pending = ledger.read_pending(layout)
    if pending is None:
        return None
    runner = locks.holder_of(layout, locks.ACTIVATION) is not None
    return {"number": pending.number, "started": pending.started, "runner": runner}


def _object(path: str) -> dict[str, Any]:
    document = load(path, {})
    return document if isinstance(document, dict) else {}


def _health(
    layout: Layout, terms: Terms, live: str, application: Service, units: Mapping[str, Process]
) -> dict[str, Any]:
    """What the built-in service answers; of the team's own whether its units and pages are up.

    That they run from the live release was proved when they started; it takes root to prove again.
    """
    endpoint = application.endpoint
    prover = prover_of(layout, application, Supervisor(terms.scope), terms.unit, endpoint)
    if isinstance(prover, Instances):
        with contextlib.suppress(OSError):
            return prover.report(live, releases.manifest_sha256(layout, live))
        return {"unreachable": "its manifest can't be read"}
    if application.units:
        wrong = [why for unit, one in units.items() if (why := _wrong(unit, one, application))]
        return {"status": "failed", "last_error": "; ".join(wrong)} if wrong else {"status": "ok"}
    if not endpoint:
        return {}
    try:
        return ask(os.path.expanduser(endpoint))
    except ProbeError as error:
        return {"unreachable": str(error)}


def _down(application: Service, units: Mapping[str, Process]) -> str:
    """The first instance that does not run, though it is meant to; "" for none."""
    for unit in application.instances:
        process = units.get(unit)
        if process and process.active != "active" and not process.is_put_away:
            return unit
    return ""


def _units(scope: str, application: Service) -> dict[str, Process]:
    return {unit: _process(scope, unit) for unit in application.units}


def _wrong(unit: str, process: Process, application: Service) -> str:
    """Why one of its units does not serve; "" if nothing says so."""
    if process.active != "active":
        return f"{unit} is {process.active} ({process.result or process.sub or '-'})"
    url = application.units[unit].http
    if not url:
        return ""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
    try:
        status, _ = get(f"{host}:{parts.port}", path, _ANSWERS_S)
    except ProbeError as error:
        return f"{unit}: {url}: {error}"
    return "" if 200 <= status < 300 else f"{unit}: {url} answers {status}"


def _signals(application: Service) -> str | None:
    if not application.name:
        return None
    return application.signals.files if application.signals else ""


def _written(layout: Layout, files: str) -> float | None:
    """When a file of the signals was last written; what is in it nobody has to read for that."""
    pattern = os.path.join(glob.escape(layout.app), files)
    times = [os.lstat(path).st_mtime for path in glob.iglob(pattern)] if files else []
    return max(times, default=None)


def _rollback(layout: Layout, live: str | None) -> str | None:
    """The release that a rollback goes to; whether it is whole, the rollback finds out."""
    bad = [str(entry["release"]) for entry in ledger.bad_releases(layout)]
    return releases.rollback_target(ledger.history(layout), live, bad)


def _expires(layout: Layout, live: str | None) -> float | None:
    return releases.read_manifest(layout, live).expires.timestamp() if live else None


def _clock() -> tuple[bool | None, bool | None]:
    """Whether a time service is on, and whether the kernel's clock is synchronised: org.freedesktop
    .timedate1(5). None where there is no such service to ask."""
    argv = ["timedatectl", "show", "--property=NTP", "--property=NTPSynchronized"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_CLOCK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    words = {"yes": True, "no": False}
    return words.get(said.get("NTP", "")), words.get(said.get("NTPSynchronized", ""))
