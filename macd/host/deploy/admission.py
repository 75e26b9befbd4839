"""What may go live: the refusals of a deploy or rollback, before anything is begun.

Apart from deploying.py, which acts: nothing here changes what serves.
"""

from __future__ import annotations

import os
import time
from typing import Any

from macd.host import envfile
from macd.host.deploy import ledger
from macd.host.deploy.status import unable
from macd.host.failure import HostError
from macd.host.flag.flag_file import FLAG, SHADOW
from macd.host.layout import Layout, live_release
from macd.host.store import releases
from macd.host.systemd.sandbox import Confinement
from macd.host.systemd.supervisor import Supervisor


def accept_again(layout: Layout, release: str, accepts: dict[str, str]) -> None:
    """Between staging and now a newer one may have come, or the release may have expired."""
    top = layout.release(release)
    raw, signed = (_bytes(os.path.join(top, n)) for n in (releases.MANIFEST, releases.SIGNATURE))
    rules = releases.Accepts(**accepts)
    _, manifest = releases.accept(layout, raw, signed, rules, now=time.time())
    releases.remember_serial(layout, release, manifest.serial)


def check_rollback(
    layout: Layout,
    to: str | None,
    history: list[dict[str, Any]],
    bad: list[str],
    scope: str,
    unit: str,
) -> None:
    """Raises HostError ("refused"): `to` can't come back on this host, or is live."""
    committed = [entry["release"] for entry in history]
    if to is None:
        raise HostError(
            "there is nothing to roll back to",
            why="this host never committed another release that is still good",
            live=live_release(layout) or "nothing",
            hint="invoke history shows what was live here; --to ID names one of them",
            kind="refused",
        )
    if to not in committed:
        hint = "one of: " + ", ".join(dict.fromkeys(committed)) if committed else "invoke deploy"
        raise HostError(f"{to} was never committed on this host", hint=hint, kind="refused")
    if to == live_release(layout):
        raise HostError(f"{to} is live already", kind="refused", live=to)
    if to in bad:
        hint = "invoke deploy can try it again; invoke history shows why it failed"
        raise HostError(f"{to} failed on this host", hint=hint, kind="refused")
    walls = Confinement(scope, Supervisor(scope).unit_text(unit), layout.app)
    why = unable(layout, to, walls)
    if why:
        others = [name for name in dict.fromkeys(reversed(committed)) if name not in (to, *bad)]
        here = [name for name in others if name in releases.on_host(layout)]
        left = [name for name in here if name != live_release(layout)]
        raise HostError(
            f"{to} can't come back",
            why=why,
            live=live_release(layout) or "nothing",
            hint=f"invoke rollback --to {left[0]} goes to another one" if left else "invoke deploy",
            kind="refused",
        )


def in_shadow(before: dict[str, str | None], after: dict[str, str | None]) -> dict[str, str | None]:
    """The texts of a deploy, its flags with live stacking off: a new release starts in shadow."""
    try:
        envfile.parse(before.get(".env") or "")
    except envfile.EnvFileError as error:
        raise HostError(
            "the flags file on the host can't be understood",
            why=f".env: {error}",
            hint="mend that line, then deploy again",
            kind="refused",
        ) from error
    data = (before.get(".env") or "").encode("utf-8", "surrogateescape")
    shadow = envfile.rewritten(data, {FLAG: SHADOW}).decode("utf-8", "surrogateescape")
    return {**before, **after, ".env": shadow}


def refuse_if_pending(layout: Layout) -> None:
    """Raises HostError ("refused"): an activation has not ended."""
    pending = ledger.read_pending(layout)
    if pending is None:
        return
    age = round(time.time() - pending.started)
    raise HostError(
        f"activation {pending.number} is under way",
        why=f"{pending.kind} of {pending.to} by {pending.who}, begun {age} s ago: {pending.state}",
        live=live_release(layout) or "nothing",
        hint="invoke deploy --attach follows it; it commits or reverts by itself",
        kind="refused",
    )


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
