"""Whether a gate report allows stacking on this host, and the newest gate verdict about this host.

The operator's machine asks `blockers` first. The host asks again, under its lock, against what is
live at that moment; its answer counts. Reports lie with whoever made them, so the host stores a
note of the newest one: a FAIL found by one machine blocks an older PASS of another. A note only
ever blocks. Only the signed report allows anything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, load, save
from macd.host.rpc import logs
from macd.host.store import releases, signature

_KIND = "gate-report"
_CLOCKS_DIFFER = timedelta(minutes=5)
_LONGEST = 200


def check(
    layout: Layout, raw: bytes, signed: bytes, identity: str, live: str, *, now: datetime
) -> dict[str, Any]:
    """The report `raw`, if it is about exactly what is live here and its logs are unchanged.

    Args:
        signed: its signature.
        identity: the signer, as the client names it.

    Raises:
        HostError ("refused"): with every reason.
    """
    signer = signature.check_signer(layout, identity)
    try:
        signature.verify(
            raw,
            signed,
            allowed_signers=layout.state("allowed_signers"),
            identity=signer,
            namespace=signature.GATE_NAMESPACE,
            revoked=signature.revocations(layout),
        )
        document = json.loads(raw)
        if not isinstance(document, dict) or document.get("kind") != _KIND:
            raise ValueError("it is no gate report")
    except (signature.SignatureError, ValueError, RecursionError) as error:
        raise _refused(str(error), live) from error
    reasons = blockers(
        document,
        release=live,
        manifest_sha256=releases.manifest_sha256(layout, live),
        env=releases.read_manifest(layout, live).env,
        note=newest(layout),
        now=now,
    )
    reasons = reasons or _changed_logs(layout, document["logs"])
    if reasons:
        raise _refused("\n".join(reasons), live)
    return document


def _refused(why: str, live: str) -> HostError:
    return HostError(
        "the host does not take the gate report",
        why=why,
        live=f"{live}, flags as before",
        hint="invoke shadow-gate makes a new one",
        kind="refused",
    )


def blockers(
    document: Mapping[str, Any],
    *,
    release: str | None,
    manifest_sha256: str,
    env: str,
    note: dict[str, Any] | None,
    now: datetime,
) -> list[str]:
    """Why a report with a valid signature doesn't allow stacking for what is live; [] if it does.

    Pure; the operator's machine asks it too. It doesn't ask whether the logs are unchanged.

    Args:
        note: the host's newest gate note.
    """
    verdict = document.get("verdict")
    reasons = [] if verdict == "PASS" else [f"its verdict is {verdict!s:.40}"]
    if document.get("source") != "host":
        reasons.append("it is about files, not about a host")
    reasons += _own_blockers(document)
    if release is None or document.get("release") != release:
        about = f"release {document['release']!s:.60}" if document.get("release") else "no release"
        reasons.append(
            f"it is about {about}, {f'live is {release}' if release else 'none is live'}"
        )
    elif document.get("manifest_sha256") != manifest_sha256:
        reasons.append("the live release has another manifest")
    elif document.get("env") != env:
        reasons.append("it is about another environment")
    reasons += _out_of_date(document, now)
    if not document.get("logs"):
        reasons.append("it names no logs")
    return reasons + _superseded(note, release, document.get("made"))


def _own_blockers(document: Mapping[str, Any]) -> list[str]:
    """What the report itself names as a blocker, except its verdict."""
    own = document.get("blockers", document.get("opens_nothing"))  # its name up to 0.1
    if not isinstance(own, list):
        return ["it does not say whether it can enable stacking"]
    said = "it says itself that it can't enable stacking"
    if other := [str(why) for why in own if why != f"the verdict is {document.get('verdict')}"]:
        return [f"{said}: {'; '.join(other)}"]
    return [said] if own and document["verdict"] == "PASS" else []


def _out_of_date(document: Mapping[str, Any], now: datetime) -> list[str]:
    made, expires = _moment(document.get("made")), _moment(document.get("expires"))
    if made is None or expires is None:
        return ["it does not say when it was made and when it expires"]
    if now >= expires:
        return [f"it expired at {expires.isoformat()}; it is {now.isoformat()} now"]
    if now < made - _CLOCKS_DIFFER:
        return [f"it was made in the future, at {made.isoformat()}"]
    return []


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else None


def _changed_logs(layout: Layout, ranges: Any) -> list[str]:
    try:
        asked = [[part["name"], int(part["from"]), int(part["to"])] for part in ranges]
        hashes = [str(part["sha256"]) for part in ranges]
        if not all(isinstance(name, str) and 0 <= start <= end for name, start, end in asked):
            raise ValueError("not ranges")
    except (TypeError, KeyError, ValueError):
        return ["what it says of the logs can't be understood"]
    now = logs.log_hashes(layout.app, asked)
    return [
        f"{part[0]} is not what was analysed any more"
        for part, sha256, actual in zip(asked, hashes, now, strict=True)
        if sha256 != actual
    ]


def gate_note(app: str, note: dict[str, Any]) -> bool:
    """Store verdict, opens, release, sha256 (of the report) and made, if no newer note is here.

    A host that was never provisioned stores none, and must not look as if it had been.

    Raises:
        HostError ("refused"): it was made in the future, or doesn't say when; nothing was stored.
    """
    layout = Layout(durable.expand(app))
    made = _made(note)
    if made is None:
        raise HostError(f"no gate report was made at {note.get('made')!r:.40}", kind="refused")
    if not os.path.isdir(layout.state()):
        return False
    durable.make_directories(layout.state("gate"))
    # Two machines may judge at once. Without the lock, the older note could be written last.
    with durable.one_at_a_time(layout.state("gate", "lock"), mode=0o600):
        stored = newest(layout)
        if stored is not None and (_made(stored) or made) >= made:
            return False
        names = ("verdict", "release", "sha256", "made")
        fields = {name: str(note.get(name))[:_LONGEST] for name in names}
        save(_note_path(layout), {**fields, "opens": note.get("opens") is True})
    return True


def newest(layout: Layout) -> dict[str, Any] | None:
    """The stored note; None where none can be true (an older macd, a clock that was set back)."""
    try:
        note = load(_note_path(layout), None)
    except HostError:
        return None
    return dict(note) if isinstance(note, dict) and _made(note) is not None else None


def gate_newest(app: str) -> dict[str, Any] | None:
    """`newest`, asked by a client."""
    return newest(Layout(durable.expand(app)))


def _made(note: Mapping[str, Any]) -> datetime | None:
    """When its report was made; None where it doesn't say, or names a moment in the future."""
    made = _moment(note.get("made"))
    limit = datetime.fromtimestamp(time.time(), UTC) + _CLOCKS_DIFFER
    return made if made is not None and made <= limit else None


def _superseded(note: dict[str, Any] | None, release: Any, made: Any) -> list[str]:
    """Why a report about `release`, made at `made`, is not the newest that counts; [] if it is."""
    own, other = _moment(made), _moment(note.get("made")) if note else None
    if note is None or own is None or other is None or other <= own or note["opens"]:
        return []
    if note.get("release") != release:
        return []
    what = "can't enable stacking" if note["verdict"] == "PASS" else f"is {note['verdict']}"
    return [f"a newer report about this host, made at {note['made']}, {what}"]


def _note_path(layout: Layout) -> str:
    return layout.state("gate", "newest")
