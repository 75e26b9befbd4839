"""The newest gate verdict about this host, kept here: reports lie with whoever made them.

A FAIL that a colleague's machine found must close what an older PASS of another would open. The
note only ever closes: what opens is the signed report itself.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, load, save

_CLOCKS_DIFFER_S = 300.0
_LONGEST = 200


def gate_note(app: str, note: dict[str, Any]) -> bool:
    """Keep verdict, opens, release, sha256 (of the report) and made, if none newer is here.

    A host that was never provisioned keeps none, and is not made to look as if it had been.

    Raises:
        HostError ("refused"): it was made in the future, or says not when; nothing was kept.
    """
    layout = Layout(durable.expand(app))
    made = _epoch(note.get("made"))
    if made is None or made > time.time() + _CLOCKS_DIFFER_S:
        raise HostError(f"no gate report was made at {note.get('made')!r:.40}", kind="refused")
    if not os.path.isdir(layout.state()):
        return False
    durable.make_directories(layout.state("gate"))
    # Two machines may judge at once: without waiting, the older note could be written last.
    with durable.one_at_a_time(layout.state("gate", "lock"), mode=0o600):
        known = newest(layout)
        if known is not None and _epoch(known["made"]) >= made:
            return False
        names = ("verdict", "release", "sha256", "made")
        kept = {name: str(note.get(name))[:_LONGEST] for name in names}
        save(_path(layout), {**kept, "opens": note.get("opens") is True})
    return True


def newest(layout: Layout) -> dict[str, Any] | None:
    """The note; None where there is none that can be true (an older macd, a clock set back)."""
    try:
        found = load(_path(layout), None)
    except HostError:
        return None
    made = _epoch(found.get("made")) if isinstance(found, dict) else None
    if made is None or made > time.time() + _CLOCKS_DIFFER_S:
        return None
    return dict(found)


def gate_newest(app: str) -> dict[str, Any] | None:
    return newest(Layout(durable.expand(app)))


def closed(note: dict[str, Any] | None, release: Any, made: Any) -> list[str]:
    """Why a report about `release`, made at `made`, is not the newest that counts; [] if it is."""
    mine, other = _epoch(made), _epoch(note.get("made")) if note else None
    if note is None or mine is None or other is None or other <= mine or note["opens"]:
        return []
    if note.get("release") != release:
        return []
    what = "opens nothing" if note["verdict"] == "PASS" else f"is {note['verdict']}"
    return [f"a newer report about this host, made at {note['made']}, {what}"]


def _epoch(text: Any) -> Any:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def _path(layout: Layout) -> str:
    return layout.state("gate", "newest")
