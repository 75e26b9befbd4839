"""Whether a gate report opens something on this host, asked here, where what it is about lies.

The operator's machine asks `blockers` before it comes. The host's own answer is the one that
counts: it is given under the host's lock against what is live at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from macd.host.failure import HostError
from macd.host.flag import gate_note
from macd.host.layout import Layout
from macd.host.rpc import logs
from macd.host.store import policy as identity
from macd.host.store import releases, signature

_KIND = "gate-report"
_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True)
class Claim:
    """A report as it came: the signed bytes, their signature, and who is said to have signed."""

    raw: bytes
    signature: bytes
    identity: str


def check(layout: Layout, claim: Claim, live: str, *, now: datetime) -> dict[str, Any]:
    """The report, if it is about exactly what is live here and its logs are still the same.

    Raises:
        HostError ("refused"): with every reason why not.
    """
    signer = identity.check_signer(layout, claim.identity)
    try:
        signature.verify(
            claim.raw,
            claim.signature,
            allowed_signers=layout.state("allowed_signers"),
            identity=signer,
            namespace=signature.GATE_NAMESPACE,
            revoked=identity.revocations(layout),
        )
        document = json.loads(claim.raw)
        if not isinstance(document, dict) or document.get("kind") != _KIND:
            raise ValueError("it is no gate report")
    except (signature.SignatureError, ValueError, RecursionError) as error:
        raise _refused(str(error), live) from error
    reasons = blockers(
        document,
        release=live,
        manifest_sha256=releases.manifest_sha256(layout, live),
        env=releases.read_manifest(layout, live).env,
        note=gate_note.newest(layout),
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
    """Why a report (signature already verified) opens nothing for what is live; [] if it does.

    Pure; the operator's machine asks it too. note: the host's newest gate note. Whether the logs
    are still the same is asked apart from it.
    """
    verdict = document.get("verdict")
    reasons = [] if verdict == "PASS" else [f"its verdict is {verdict!s:.40}"]
    if document.get("source") != "host":
        reasons.append("it is about files, not about a host")
    reasons += _own_blockers(document)
    if release is None or document.get("release") != release:
        about = document.get("release") or "none"
        reasons.append(f"it is about release {about!s:.60}, live is {release or 'nothing'}")
    elif document.get("manifest_sha256") != manifest_sha256:
        reasons.append("the live release has another manifest")
    elif document.get("env") != env:
        reasons.append("it is about another environment")
    reasons += _out_of_date(document, now)
    if not document.get("logs"):
        reasons.append("it names no logs")
    return reasons + gate_note.closed(note, release, document.get("made"))


def _own_blockers(document: Mapping[str, Any]) -> list[str]:
    """Why it says itself that it opens nothing, but for its verdict."""
    own = document.get("opens_nothing")
    if not isinstance(own, list):
        return ["it does not say that it opens anything"]
    if other := [str(why) for why in own if why != f"the verdict is {document.get('verdict')}"]:
        return [f"it says itself that it opens nothing: {'; '.join(other)}"]
    return ["it says itself that it opens nothing"] if own and document["verdict"] == "PASS" else []


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
        asked = [[one["name"], int(one["from"]), int(one["to"])] for one in ranges]
        wanted = [str(one["sha256"]) for one in ranges]
        if not all(isinstance(one[0], str) and 0 <= one[1] <= one[2] for one in asked):
            raise ValueError("not ranges")
    except (TypeError, KeyError, ValueError):
        return ["what it says of the logs can't be understood"]
    here = logs.log_hashes(layout.app, asked)
    changed = [asked[at][0] for at in range(len(asked)) if here[at] != wanted[at]]
    return [f"{name} is not what was analysed any more" for name in changed]
