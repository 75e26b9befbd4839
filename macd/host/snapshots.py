"""What goes live together with a release: flags, settings and units, kept and put back as text."""

from __future__ import annotations

import contextlib
import os
from typing import List, Optional

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, load, save
from macd.host.ledger import Snapshot
from macd.host.supervisor import Supervisor

_FLAGS, _SETTINGS = ".env", "service.json"


def take(layout: Layout, supervisor: Supervisor, units: List[str]) -> Snapshot:
    """What goes with the live release now; None: there is no such file."""
    taken: Snapshot = {unit: supervisor.unit_text(unit) for unit in units}
    taken[_FLAGS] = _text(layout.env)
    taken[_SETTINGS] = _text(layout.service_settings)
    return taken


def put(layout: Layout, supervisor: Supervisor, texts: Snapshot, *, reload: bool = False) -> None:
    """Write what differs; systemd is told of units that changed (`reload`: in any case)."""
    for name, path in ((_FLAGS, layout.env), (_SETTINGS, layout.service_settings)):
        if name not in texts or _text(path) == texts[name]:
            continue
        content = texts[name]
        if content is None:
            os.unlink(path)
            durable.sync_directory(layout.app)
        else:
            data = content.encode("utf-8", "surrogateescape")
            durable.replace_file(path, data, mode=_mode(path))
    units = {name: text for name, text in texts.items() if name not in (_FLAGS, _SETTINGS)}
    there = {name for name in units if supervisor.unit_text(name) is not None}
    for name, text in units.items():
        if text is None and name in there:
            supervisor.disable(name)
    begun = [name for name, text in units.items() if text is not None and name not in there]
    supervisor.install(units, reload=reload)
    for name in begun:
        with contextlib.suppress(HostError):  # one without [Install] starts by another's leave
            supervisor.enable(name)


def sockets(texts: Snapshot) -> List[str]:
    """The socket units that are there in this snapshot."""
    return [name for name, text in texts.items() if name.endswith(".socket") and text is not None]


def keep(layout: Layout, release: str, texts: Snapshot) -> None:
    """Remember durably what went with a release; it holds flags, so nobody else may read it."""
    save(layout.state("snapshots", f"{release}.json"), texts, mode=0o600)


def of(layout: Layout, release: str) -> Snapshot:
    """What went with a release when it was last live. Raises HostError when it never was."""
    found = load(layout.state("snapshots", f"{release}.json"), None)
    if found is None:
        raise HostError(f"{release} was never live here", kind="refused")
    return dict(found)


def _text(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        return 0o600 if path.endswith(_FLAGS) else 0o644
