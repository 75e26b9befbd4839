"""`invoke release` and its verbs: make a signed release of a training; list, show, verify them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.release_steps import (
    build_request,
    lifetime_days,
    read_run,
    record,
    say,
    signed,
    signers_of,
    signing_key,
    store_of,
)
from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError
from macd.sizes import size

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.release.build import BuildRequest
    from macd.release.store import Release, Store
    from macd.release.verify import Report, Signers

_COMMON = {
    "inventory": "use inventory/NAME.yml (default: $MACD_INVENTORY, else lab)",
    "json": "print one JSON document for machines",
}
_NEWEST = {"env": "the environment whose newest release is meant (default: prod)"}


@verb(
    name="release",
    default=True,
    help=_COMMON
    | {
        "run": "id below runs/, or a directory (default: the run that finished last)",
        "env": "the environment it is for (default: prod)",
        "accept": "release although a criterion fails: the reason, recorded in the manifest",
        "source": "directory whose macd/ goes into the release (default: this clone)",
        "expires-days": "days after which it can't be deployed any more (default: the inventory's)",
        "dry-run": "check the run and resolve the lock; make nothing",
    },
)
def release(
    _: object,
    run: str = "",
    env: str = "prod",
    accept: str = "",
    source: str = "",
    expires_days: str = "",
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> None:
    """Make a signed, reproducible release of a finished training run, after checks."""
    from macd.inventory import load
    from macd.journal import Journal
    from macd.release import build

    inv = load(inventory)
    days = lifetime_days(expires_days) or inv.release.expires_days
    journal = Journal(inv.state_dir / "journal.jsonl")
    journal.records()  # a damaged journal is reported before anything is made
    signing_key(inv)
    store = store_of(inv)
    now = datetime.now(UTC).replace(microsecond=0)
    chosen = read_run(inv, run)
    say(json, f"run {chosen.id}: {chosen.symbol} {chosen.tf}, every file as the training left it")
    tree = Path(source) if source else None
    request, wheels = build_request(
        inv, chosen, store, env, accept.strip(), now, days, source=tree, json=json
    )
    build.refuse_blocked(request)
    if dry_run:
        _show_dry_run(request, json=json)
        return
    made, items = build.make(
        request,
        store,
        sign=lambda raw: signed(inv, raw),
        wheels=wheels,
    )
    journal.append("release.made", record(made, request), now=datetime.now(UTC))
    if json:
        emit({**_fields(made), "health": [asdict(i) for i in items], "bundle": str(made.bundle)})
        return
    for item in items:
        print(item.line())
    print(f"released {made.id}, serial {made.manifest.serial}")
    print(f"  expires {made.manifest.expires:%Y-%m-%d %H:%M} UTC; signed as {inv.release.identity}")
    print(f"  {len(made.manifest.files)} files, {size(made.manifest.total_bytes)}: {made.bundle}")
    print(f"  next: invoke plan --env {env}")


@verb(name="list", help=_COMMON | {"env": "only releases for this environment"})
def list_(_: object, env: str = "", inventory: str = "", json: bool = False) -> None:
    """List the releases made here, newest last, and where each was last deployed."""
    from macd.inventory import load

    inv = load(inventory)
    store = store_of(inv)
    live = _live(inv)
    known = [one for one in store.readable() if env in ("", one.manifest.env)]
    broken = sorted(set(store.ids()) - {one.id for one in store.readable()})
    if json:
        rows = [{**_fields(one), "live_on": live.get(one.id, [])} for one in known]
        emit({"releases": rows, "unreadable": broken})
        return
    if not known and not broken:
        print(f"no releases yet in {store.root}\n  next: invoke train, then invoke release")
        return
    print(f"{'release':<26} {'serial':>10}  {'env':<6} {'criteria':<22} {'live on':<10} run")
    for one in known:
        where = ", ".join(live.get(one.id, [])) or "-"
        details = one.manifest.details
        print(
            f"{one.id:<26} {one.manifest.serial:>10}  {one.manifest.env:<6} "
            f"{_criteria(details):<22} {where:<10} {details.get('run', '?')}"
        )
    for name in broken:
        print(f"{name:<26} can't be read; do: invoke release.verify {name}")
    print("  live: as deploys from this machine ended; invoke status asks the hosts")


@verb(name="show", help=_COMMON | _NEWEST | {"id": "id of a release, or the beginning of one"})
def show(
    _: object, id: str = "", env: str = "prod", inventory: str = "", json: bool = False
) -> None:
    """Show a release (default: the newest): origin, metrics, criteria, files, lock."""
    from macd.inventory import load

    store = store_of(load(inventory))
    one = _chosen(store, id, env)
    if json:
        files = [asdict(file) for file in one.manifest.files]
        emit({**_fields(one), "details": one.manifest.details, "files": files,
              "lock": {"sha256": one.lock.sha256, "python": one.lock.python,
                       "platform": one.lock.platform, "versions": one.lock.versions}})  # fmt: skip
        return
    for label, text in _rows(one):
        print(f"{label:<10}{text}")
    for file in one.manifest.files:
        print(f"{'':10}{file.sha256[:12]} {file.size:>10,}  {file.path}")


@verb(
    name="verify",
    help=_COMMON | _NEWEST | {"id": "a release's id, or a bundle file (default: the newest)"},
)
def verify(
    _: object, id: str = "", env: str = "prod", inventory: str = "", json: bool = False
) -> ExitCode | None:
    """Check a release or bundle: signature; missing, extra and changed files."""
    from macd.inventory import load
    from macd.release import verify as verifying

    inv = load(inventory)
    signers = signers_of(inv)
    store = store_of(inv)
    if id and (Path(id).is_file() or id.endswith((".gz", ".tgz"))):
        report = verifying.bundle(Path(id), signers)
    else:
        directory = store.root / id if id in store.ids() else _chosen(store, id, env).directory
        report = verifying.directory(directory, signers)
    if json:
        emit({**asdict(report), "ok": report.ok})
    else:
        _show_report(report, signers)
    return None if report.ok else ExitCode.FAILED


def _chosen(store: Store, named: str, env: str) -> Release:
    if named:
        return store.load(named)
    if not store.ids():
        raise UsageError(f"no releases yet in {store.root}", hint="invoke release")
    return store.newest(env)


def _live(inventory: Inventory) -> dict[str, list[str]]:
    """release -> hosts where the last deploy or rollback from this machine left it live."""
    from macd.deploy.rollback import ENDS
    from macd.journal import Journal

    by_host: dict[str, str] = {}
    try:
        records = Journal(inventory.state_dir / "journal.jsonl").records()
    except MacdError:
        return {}
    for one in records:
        host, live = one.fields.get("host"), one.fields.get("live")
        if one.kind in ENDS and isinstance(host, str) and isinstance(live, str):
            by_host[host] = live
    found: dict[str, list[str]] = {}
    for host, live in by_host.items():
        found.setdefault(live, []).append(host)
    return found


def _fields(one: Release) -> dict[str, Any]:
    manifest, details = one.manifest, one.manifest.details
    return {
        "id": one.id,
        "directory": str(one.directory),
        "serial": manifest.serial,
        "app": manifest.app,
        "env": manifest.env,
        "created": f"{manifest.created:%Y-%m-%dT%H:%M:%SZ}",
        "expires": f"{manifest.expires:%Y-%m-%dT%H:%M:%SZ}",
        "manifest_sha256": one.sha256,
        "bytes": manifest.total_bytes,
        "run": details.get("run"),
        "criteria": details.get("criteria", []),
        "accepted": details.get("accepted"),
    }


def _criteria(details: dict[str, Any]) -> str:
    missed = [one for one in details.get("criteria", []) if not one["ok"]]
    if details.get("accepted"):
        return "accepted, with reason"
    return f"{len(missed)} missed, only warn" if missed else "met"


def _rows(one: Release) -> list[tuple[str, str]]:
    manifest, d = one.manifest, one.manifest.details
    code = d.get("code", {})
    commit = (code.get("commit") or "no commit")[:12] + (" + changes" if code.get("dirty") else "")
    lines = [
        ("release", f"{one.id}, serial {manifest.serial}, for {manifest.app} on {manifest.env}"),
        ("made", f"{manifest.created:%F %H:%M} UTC; expires {manifest.expires:%F %H:%M} UTC"),
        ("run", f"{d.get('run')} on {d.get('host')}, {d.get('symbol')} {d.get('tf')}"),
        ("data", str(d.get("data_digest"))),
        ("code", f"{code.get('version')}, {commit}"),
        (
            "runtime",
            f"Python {one.lock.python}, {one.lock.platform}, {len(one.lock.wheels)} wheels",
        ),
    ]
    if d.get("accepted"):
        lines.append(("accepted", str(d["accepted"])))
    for criterion in d.get("criteria", []):
        mark = "✓" if criterion["ok"] else ("✗" if criterion["level"] == "block" else "⚠")
        lines.append(("", f"{mark} {criterion['title']}: {criterion['note']}"))
    lines.append(("files", f"{len(manifest.files)}, {size(manifest.total_bytes)}"))
    return lines


def _show_dry_run(request: BuildRequest, *, json: bool) -> None:
    if json:
        emit({
            "dry_run": True, "run": request.run.id, "serial": request.serial,
            "lock": request.lock.sha256, "criteria": [asdict(one) for one in request.findings],
            "accepted": request.accepted or None,
        })  # fmt: skip
        return
    print(f"would be released for {request.env} with serial {request.serial}; nothing was made")


def _show_report(report: Report, signers: Signers) -> None:
    print(f"✓ {report.id}: signed by {signers.identity}")
    for word, paths in (
        ("extra", report.extra),
        ("missing", report.missing),
        ("changed", report.changed),
    ):
        for path in paths:
            print(f"✗ {word:<8} {path}")
    if report.ok:
        print(f"✓ all {report.files} files are as they were signed")
    else:
        print("  do: don't deploy it; invoke release makes a new one")
