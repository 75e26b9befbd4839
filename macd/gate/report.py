"""A gate report: one canonical JSON document, signed, kept where the next command finds it.

state_dir/gate/<host>/<moment>/ holds report.json, report.json.sig and the page. A report that
opens nothing (from files, not PASS, or by a rule laxer than the inventory's) says so itself.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from macd.errors import MacdError, RefusedError, UsageError
from macd.gate.evidence import LogRange
from macd.host.durable import replace_file, sha256_of
from macd.host.judge import gate
from macd.host.judge.analyse import Analysis
from macd.host.judge.gate import Decision, Rule
from macd.host.record import canonical
from macd.host.store.signature import GATE_NAMESPACE, SignatureError, verify
from macd.inventory import Inventory, revoked
from macd.release.signing import sign
from macd.ssh.session import open_session

KIND = "gate-report"
NAME, SIGNATURE, PAGE = "report.json", "report.json.sig", "report.html"
_KEPT = 50


@dataclass(frozen=True)
class About:
    """What a report is about. host, env, manifest_sha256: "" for local files; days: 0 for all."""

    host: str
    env: str
    release: str | None
    manifest_sha256: str
    made: datetime
    days: float
    flags: Mapping[str, str]


def rule_of(inventory: Inventory) -> Rule:
    """The inventory's own rule."""
    settings = inventory.gate
    return Rule(
        settings.ml_coverage,
        settings.stacking_activation,
        settings.tft_normal,
        settings.lstm_normal,
        settings.min_bars,
        settings.rule,
    )


def build(
    about: About,
    found: Analysis,
    decision: Decision,
    rule: Rule,
    logs: list[LogRange],
    inventory: Inventory,
) -> dict[str, Any]:
    """The document, all but its signature."""
    closed = []
    if not about.host:
        closed.append("local files were analysed; only a host's own logs are evidence")
    if decision.verdict != gate.PASS:
        closed.append(f"the verdict is {decision.verdict}")
    own = rule_of(inventory)
    if laxer := rule.laxer_than(own, days=about.days or math.inf, other_days=inventory.gate.days):
        closed.append(f"{', '.join(laxer)} laxer than in inventory {inventory.name}")
    expires = about.made + timedelta(hours=inventory.gate.expires_hours)
    return {
        "kind": KIND,
        "version": 1,
        "source": "host" if about.host else "files",
        "host": about.host,
        "env": about.env,
        "inventory": inventory.name,
        "release": about.release,
        "manifest_sha256": about.manifest_sha256,
        "flags": dict(about.flags),
        "made": about.made.isoformat(),
        "expires": expires.isoformat(),
        "window": {"days": about.days, "from_ms": found.window.start, "to_ms": found.window.end},
        "rule": asdict(rule),
        **gate.document(decision),
        "opens_nothing": closed,
        "notes": [],
        "bars": len(found.bars) + found.junk,
        "logs": [one.document() for one in logs],
        "findings": found.document(),
    }


def directory_of(inventory: Inventory, host: str, made: datetime) -> Path:
    """Where the report of that moment goes."""
    return inventory.state_dir / "gate" / (host or "files") / f"{made:%Y%m%dT%H%M%S.%fZ}"


def save(document: Mapping[str, Any], directory: Path, inventory: Inventory) -> Path:
    """Sign and keep a report; a report of local files is not signed. Returns report.json's path.

    Raises UsageError when the inventory names no gate key, or none is there.
    """
    raw = canonical(document) + b"\n"
    directory.mkdir(parents=True, exist_ok=True)
    if document["source"] == "host":
        key = inventory.release.gate_key
        if key is None:
            raise UsageError(
                f"inventory {inventory.name} names no key that signs gate reports",
                hint=f"set release.gate_key in {inventory.path}",
            )
        # The signature first: a report is only found once it is complete.
        signature = sign(raw, key=key, namespace=GATE_NAMESPACE)
        replace_file(str(directory / SIGNATURE), signature)
    replace_file(str(directory / NAME), raw)
    return directory / NAME


@dataclass(frozen=True)
class Report:
    """A report whose signature was verified. raw: the very bytes that are signed."""

    path: Path
    raw: bytes
    signature: bytes
    document: Mapping[str, Any]


def note_on_host(path: Path, document: Mapping[str, Any], inventory: Inventory) -> str:
    """Tell the host of the verdict, so that no older report opens anything from elsewhere.

    Returns why it does not know, "" if it does: the report itself holds either way.
    """
    host = inventory.host(str(document["host"]))
    note = {name: document[name] for name in ("verdict", "release", "made")}
    note |= {"sha256": sha256_of(path)}
    note |= {"opens": not document["opens_nothing"]}
    try:
        with open_session(host, inventory, modules=("flag.gate_note",)) as session:
            session.call("gate_note", app=host.app_dir, note=note)
    except MacdError as error:
        return f"the host does not know of this verdict: {error.what}"
    return ""


def prune(inventory: Inventory, host: str, keep: Collection[str]) -> None:
    """Leave the newest reports about a host, and those whose directories are in `keep`."""
    there = sorted(path.parent for path in (inventory.state_dir / "gate" / host).glob(f"*/{NAME}"))
    for old in there[:-_KEPT]:
        if str(old.relative_to(inventory.state_dir)) not in keep:
            shutil.rmtree(old, ignore_errors=True)


def newest(inventory: Inventory, host: str) -> Path:
    """Path of the newest report about a host. Raises RefusedError when there is none."""
    found = sorted((inventory.state_dir / "gate" / host).glob(f"*/{NAME}"))
    if found:
        return found[-1]
    raise RefusedError(f"there is no gate report about {host}", hint="invoke shadow-gate makes one")


def read(path: Path, inventory: Inventory) -> Report:
    """A report by somebody who may sign reports.

    Raises:
        RefusedError: no signature, a wrong one, or no report inside.
    """
    signers = inventory.release.allowed_signers
    if signers is None:
        raise UsageError(
            f"inventory {inventory.name} does not say who may sign gate reports",
            hint=f"set release.allowed_signers in {inventory.path}",
        )
    if not signers.is_file():
        raise UsageError(
            f"there is no allowed_signers file at {signers}",
            why="it names the keys whose gate reports count",
            hint="invoke provision says how to make it",
        )
    krl = revoked(inventory)
    try:
        raw, signature = path.read_bytes(), path.with_name(SIGNATURE).read_bytes()
        verify(
            raw,
            signature,
            allowed_signers=str(signers),
            identity=inventory.release.identity,
            namespace=GATE_NAMESPACE,
            revoked=str(krl) if krl else None,
        )
        document = json.loads(raw)
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ValueError("it is something else")
    except (OSError, SignatureError, ValueError) as error:
        raise RefusedError(
            f"the gate report {path} can't be trusted",
            why=str(error),
            hint="invoke shadow-gate makes a new one",
        ) from error
    return Report(path, raw, signature, document)


def read_document(path: Path) -> Mapping[str, Any]:
    """Any report, trusted or not, for showing. Raises MacdError when it is none."""
    try:
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and document.get("kind") == KIND:
            return document
    except (OSError, ValueError) as error:
        raise MacdError(f"{path} can't be read", why=str(error)) from error
    raise MacdError(f"{path} is no gate report")
