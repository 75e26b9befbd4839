"""The steps of `invoke release` that need the inventory: which run, judged how, locked, signed."""

from __future__ import annotations

import getpass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.errors import RefusedError, UsageError
from macd.sizes import size

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.release.build import BuildRequest
    from macd.release.run import Run
    from macd.release.store import Release, Store
    from macd.release.verify import Signers


def build_request(
    inventory: Inventory,
    run: Run,
    store: Store,
    env: str,
    accept: str,
    now: datetime,
    days: float,
    *,
    source: Path | None = None,
    json: bool,
) -> tuple[BuildRequest, list[Path]]:
    from macd import application
    from macd.cli.target import target_of
    from macd.jobs.record import host_of
    from macd.journal import Journal
    from macd.release import wheel, wheelhouse
    from macd.release.build import BuildRequest
    from macd.release.judge import blocking, judge
    from macd.release.lock import Lock

    findings = judge(run.criteria, inventory.train.criteria, run.audit, run.metrics["models"])
    for finding in findings:
        say(json, finding.line())
    for remark in application.remarks(run.directory, tf=run.tf, env=inventory.service.env):
        say(json, f"⚠ {remark}")
    constraints = inventory.root / "constraints.txt"
    if not blocking(findings) or accept:
        target, warnings = target_of(inventory, env)
        for warning in warnings:
            say(json, f"⚠ {warning}")
        house = wheelhouse.Wheelhouse(inventory.state_dir / "wheelhouse")
        needed = wheelhouse.requirements()
        if inventory.service.feed.kind == "ccxt":
            needed += wheelhouse.requirements("fetch")
        lock, wheels = house.resolve(needed, target, constraints)
        wanted = f"{len(lock.wheels)} wheels for Python {lock.python}, {lock.platform}"
        say(json, f"✓ lock: {wanted}, {size(lock.total_bytes)}")
    else:
        lock, wheels = Lock("", "", ()), []  # refused before any lock counts
    tree = inventory.root if source is None else source.resolve()
    code = wheel.code_of(tree)
    if code.dirty:
        say(json, "⚠ the code has changes that are not committed; they go into the release")
    if tree != inventory.root:
        say(json, f"⚠ the code is not this clone's but that of {tree}")
    journal = Journal(inventory.state_dir / "journal.jsonl")
    request = BuildRequest(
        run=run,
        host=host_of(journal, run.id) or "local",
        findings=findings,
        app=inventory.release.app,
        env=env,
        serial=store.next_serial(now),
        created=now,
        lifetime=timedelta(days=days),
        accepted=accept if blocking(findings) else "",
        code=code,
        lock=lock,
        source=tree,
        data_dir=inventory.train.data_dir,
        versions=wheelhouse.proved_with(lock, constraints),
    )
    return request, wheels


def lifetime_days(typed: str) -> float:
    """The days of `--expires-days`; 0 where it was not typed. Raises UsageError."""
    from macd.inventory import LONGEST_EXPIRY_DAYS

    if not typed:
        return 0
    try:
        days = float(typed)
    except ValueError:
        days = 0
    if not 0 < days <= LONGEST_EXPIRY_DAYS:  # NaN is neither
        raise UsageError(
            f"--expires-days {typed} is no time a release can live",
            why=f"a number of days above 0 is expected, {LONGEST_EXPIRY_DAYS} at most",
            live="no release was made",
            hint="invoke release --expires-days 30, or leave it to the inventory",
        )
    return days


def read_run(inventory: Inventory, named: str) -> Run:
    from macd.release import run as runs

    if not named:
        return runs.read(runs.newest(inventory.root / "runs"))
    below = inventory.root / "runs" / named
    return runs.read(below if below.is_dir() else Path(named))


def signing_key(inventory: Inventory) -> Path:
    key = inventory.release.sign_key
    if key is None:
        raise UsageError(
            f"inventory {inventory.name} names no key to sign releases with",
            hint=f"add release.sign_key to {inventory.path} (production.example.yml shows how)",
        )
    if not key.is_file():
        made = f'ssh-keygen -t ed25519 -N "" -f {key}, then put it into allowed_signers and'
        hint = "invoke lab.up makes it" if inventory.name == "lab" else f"{made} invoke provision"
        raise UsageError(f"there is no signing key at {key}", hint=hint)
    return key


def signed(inventory: Inventory, raw: bytes) -> bytes:
    """Signed, and held to what the hosts hold it to, before anything is sent to one."""
    from macd.host.store import signature
    from macd.release.signing import sign

    signature_bytes = sign(raw, key=signing_key(inventory))
    signers = signers_of(inventory)
    try:
        signature.verify(
            raw,
            signature_bytes,
            allowed_signers=str(signers.allowed),
            identity=signers.identity,
            revoked=str(signers.revoked) if signers.revoked else None,
        )
    except signature.SignatureError as error:
        hint = f"add the key for {signers.identity} there, then invoke provision"
        if isinstance(error, signature.RevokedError):
            hint = "name a key that is not revoked as release.sign_key"
        raise RefusedError(
            "hosts would refuse what this key signs",
            why=f"{signers.allowed}: {error}",
            live="no release was made",
            hint=hint,
        ) from error
    return signature_bytes


def signers_of(inventory: Inventory) -> Signers:
    from macd.inventory import revoked
    from macd.release.verify import Signers

    allowed = inventory.release.allowed_signers
    if allowed is None or not allowed.is_file():
        raise UsageError(
            "nobody is named whose signature counts",
            why=f"release.allowed_signers: {allowed or 'not set'}",
            hint="invoke lab.up makes the lab's"
            if inventory.name == "lab"
            else f"see {inventory.path}",
        )
    return Signers(allowed, inventory.release.identity, revoked(inventory))


def store_of(inventory: Inventory) -> Store:
    from macd.release.store import Store

    return Store(inventory.root / "releases")


def record(made: Release, request: BuildRequest) -> dict[str, Any]:
    return {
        "release": made.id,
        "serial": made.manifest.serial,
        "env": made.manifest.env,
        "run": request.run.id,
        "data_digest": request.run.digest,
        "manifest_sha256": made.sha256,
        "lock": made.manifest.lock,
        "commit": request.code.commit,
        "dirty": request.code.dirty,
        "missed": [finding.name for finding in request.findings if not finding.ok],
        "accepted": request.accepted or None,
        "by": getpass.getuser(),
    }


def say(json: bool, text: str) -> None:
    if not json:
        print(text)
