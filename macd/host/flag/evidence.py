"""Whether a gate report opens something on this host, asked here, where what it is about lies.

The operator's machine asks the same before it comes; this answer is the one that counts, given
under the host's lock against what is live at that moment.
"""

from __future__ import annotations

import json
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
    reasons = _reasons(layout, document, live, now)
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


def _reasons(layout: Layout, document: dict[str, Any], live: str, now: datetime) -> list[str]:
    told = []
    if document.get("verdict") != "PASS" or document.get("source") != "host":
        told.append(f"it is {document.get('verdict')!r:.40} about a {document.get('source')!r:.40}")
    if document.get("opens_nothing") != []:
        told.append("it says itself that it opens nothing")
    if document.get("release") != live:
        told.append(f"it is about release {document.get('release')!r:.60}, live is {live}")
    elif document.get("manifest_sha256") != releases.manifest_sha256(layout, live):
        told.append("the live release has another manifest")
    elif document.get("env") != releases.read_manifest(layout, live).env:
        told.append("it is about another environment")
    made, expires = _moment(document.get("made")), _moment(document.get("expires"))
    if made is None or expires is None:
        told.append("it does not say when it was made and when it expires")
    elif now >= expires:
        told.append(f"it expired at {expires.isoformat()}; here it is {now.isoformat()}")
    elif now < made - _CLOCKS_DIFFER:
        told.append(f"it was made in the future, at {made.isoformat()}")
    if not document.get("logs"):
        told.append("it names no logs")
    return told + gate_note.closed(gate_note.newest(layout), live, document.get("made"))


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
