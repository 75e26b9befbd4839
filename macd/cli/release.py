"""`invoke release` and its verbs: make a signed release of a training; list, show, verify them.

The verbs come first. Below them are the steps of `invoke release`: which run, how it is judged,
which Python and system its lock must fit, how it is signed.
"""

from __future__ import annotations

import getpass
import json as jsonlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, RefusedError, UsageError
from macd.host.durable import replace_file
from macd.sizes import size

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.release.build import BuildRequest, ReleaseRequest
    from macd.release.judge import Finding
    from macd.release.run import Run
    from macd.release.store import Release, Store
    from macd.release.verify import Report, Signers
    from macd.release.wheelhouse import Target

_NEWER = 3  # runs that are named
_NEWEST = {"env": "the environment whose newest release is meant (default: prod)"}


@verb(
    default=True,
    interrupted="no host was changed\n  do: invoke release again, or "
    "invoke release.list to see whether it was made",
    help={
        "run": "id below runs/, or a directory (default: the run that finished last)",
        "host": "training host that the run's files are fetched from first",
        "env": "the environment it is for (default: prod)",
        "accept": "release although a criterion fails: the reason, recorded in the manifest",
        "without": "symbols of a run of several that are left out, as ETHUSDT,SOLUSDT",
        "source": "directory whose macd/ goes into the release (default: this clone)",
        "expires-days": "days after which it can't be deployed any more (default: the inventory's)",
        "dry-run": "check the run and resolve the lock; make nothing",
    },
)
def release(
    _: object,
    run: str = "",
    host: str = "",
    env: str = "prod",
    accept: str = "",
    without: str = "",
    source: str = "",
    expires_days: str = "",
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> None:
    """Make a signed, reproducible release of a finished training run, after checks."""
    from macd import application
    from macd.cli import own_release
    from macd.inventory import load
    from macd.jobs.record import newer
    from macd.journal import Journal
    from macd.release import build

    inv = load(inventory)
    days = lifetime_days(expires_days) or inv.release.expires_days
    journal = Journal(inv.state_dir / "journal.jsonl")
    journal.records()  # a damaged journal is reported before anything is made
    signing_key(inv)
    store = store_of(inv)
    if host:
        run = _fetched(inv, host, run, json=json)
    now = datetime.now(UTC).replace(microsecond=0)
    request: ReleaseRequest
    details: dict[str, Any] = {}
    symbols: dict[str, Run] = {}
    if inv.app is not None:
        if source:
            raise own_release.source_refused(inv.app)
        if without:
            raise _no_symbols(without)
        own, make = own_release.prepare(
            inv, inv.app, run, store, env, accept.strip(), now, days, json=json
        )
        request, details = own, own_release.as_json(own)
    else:
        chosen = read_run(inv, run)
        symbols = _released(chosen, without)
        named = ", ".join(symbols) or chosen.symbol
        say(json, f"run {chosen.id}: {named} {chosen.tf}, every file as the training left it")
        tree = Path(source) if source else None
        built, wheels = build_request(
            inv, chosen, store, env, accept.strip(), now, days,
            source=tree, symbols=symbols, json=json,
        )  # fmt: skip
        request, make = built, partial(build.make, built, store, wheels=wheels)
    if request.run and not run:
        details["newer_runs"] = newer(journal, request.run.id, application.of(inv).name)
        for one in details["newer_runs"][-_NEWER:]:
            say(json, _of_newer(one, request.run.id))
    build.refuse_blocked(request)
    more = _unserved(inv, symbols) if symbols else []
    if dry_run:
        _show_dry_run(request, details, more, json=json)
        return
    made, items = make(sign=lambda raw: signed(inv, raw))
    journal.append("release.made", record(made, request), now=datetime.now(UTC))
    if json:
        health = [asdict(item) for item in items]
        emit({**_fields(made), "health": health, "bundle": str(made.bundle), **details})
        return
    for item in items:
        print(item.line())
    _show_made(inv, made, more)


@verb(help={"env": "only releases for this environment"})
def list_(_: object, env: str = "", inventory: str = "", json: bool = False) -> None:
    """List the releases made here, newest last, and where each was last deployed."""
    from macd.inventory import load

    inv = load(inventory)
    store = store_of(inv)
    live = live_on(inv)
    readable = [entry for entry in store.readable() if env in ("", entry.manifest.env)]
    broken = sorted(set(store.ids()) - {entry.id for entry in store.readable()})
    if json:
        rows = [{**_fields(entry), "live_on": live.get(entry.id, [])} for entry in readable]
        emit({"releases": rows, "unreadable": broken})
        return
    if not readable and not broken:
        print(f"no releases yet in {store.root}\n  next: invoke train, then invoke release")
        return
    print(f"{'release':<26} {'serial':>10}  {'env':<6} {'criteria':<22} {'live on':<10} run")
    for entry in readable:
        where = ", ".join(live.get(entry.id, [])) or "-"
        details = entry.manifest.details
        several = f" ({len(details['symbols'])} symbols)" if details.get("symbols") else ""
        several += f" of {entry.manifest.app}" if details.get("own") else ""
        print(
            f"{entry.id:<26} {entry.manifest.serial:>10}  {entry.manifest.env:<6} "
            f"{_criteria(details):<22} {where:<10} {details.get('run', '?') or '-'}{several}"
        )
    for name in broken:
        print(f"{name:<26} can't be read; do: invoke release.verify {name}")
    print("  live: as deploys from this machine ended; invoke status asks the hosts")


@verb(help=_NEWEST | {"id": "id of a release, or the beginning of one"})
def show(
    _: object, id: str = "", env: str = "prod", inventory: str = "", json: bool = False
) -> None:
    """Show a release (default: the newest): origin, metrics, criteria, files, lock."""
    from macd.inventory import load

    chosen = _chosen(load(inventory), id, env)
    if json:
        files = [asdict(file) for file in chosen.manifest.files]
        names = ("sha256", "python", "platform", "versions")
        lock = {name: getattr(chosen.lock, name) for name in names}
        emit({**_fields(chosen), "details": chosen.manifest.details, "files": files, "lock": lock})
        return
    for label, text in _rows(chosen):
        print(f"{label:<10}{text}")
    for file in chosen.manifest.files:
        print(f"{'':10}{file.sha256[:12]} {file.size:>10,}  {file.path}")


@verb(help=_NEWEST | {"id": "a release's id, or a bundle file (default: the newest)"})
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
        directory = store.root / id if id in store.ids() else _chosen(inv, id, env).directory
        report = verifying.directory(directory, signers)
    if json:
        emit({**asdict(report), "ok": report.ok})
    else:
        _show_report(report, signers)
    return None if report.ok else ExitCode.FAILED


def _fetched(inventory: Inventory, host: str, run: str, *, json: bool) -> str:
    """Bring the files of a run of that host ("": its newest) as `invoke train.fetch`; its id."""
    from macd.cli.train import fetch_quietly

    got = fetch_quietly(inventory, host, run)
    name = str(got.status["run"])
    if got.status["state"] != "DONE":
        raise RefusedError(
            f"run {name} on {host} ended as {got.status['state']}",
            why=str(got.status["reason"]),
            live="no release was made",
            hint=f"look at {got.folder}, or name another run (--run)",
        )
    say(json, f"run {name}: {got.files} files fetched from {host}")
    return name


def _released(run: Run, without: str) -> dict[str, Run]:
    """The parts of a run of several symbols that are released; {} for a run of one."""
    out = [name.strip() for name in without.split(",") if name.strip()]
    parts = run.parts
    if unknown := [name for name in out if name not in parts]:
        why = f"it trained {', '.join(parts) or run.symbol}"
        if not parts:
            raise _no_symbols(without, why)
        raise UsageError(
            f"--without {','.join(unknown)}: run {run.id} has no such symbol",
            why=why,
            live="no release was made",
            hint="name symbols of that run",
        )
    kept = {name: part for name, part in parts.items() if name not in out}
    if parts and not kept:
        raise UsageError(
            "--without leaves no symbol to release",
            why=f"run {run.id} trained {', '.join(parts)}",
            live="no release was made",
            hint="leave out fewer of them",
        )
    return kept


def _unserved(inv: Inventory, released: Collection[str]) -> list[str]:
    """What has to be said in the inventory, where its service is to watch symbols left out."""
    from macd.application import served
    from macd.deploy.desired import serving
    from macd.symbols import symbol_name

    wanted = list(map(symbol_name, served(inv)))
    lacking = [name for name in wanted if name not in released]
    if not lacking:
        return []
    return [
        f"the service is to watch {', '.join(lacking)} too, which this release does not have:",
        f"in {inv.path}, {serving(wanted, [*released])}; then: invoke provision",
    ]


def _no_symbols(without: str, why: str = "it is of an application of your own") -> UsageError:
    return UsageError(
        f"--without {without}: this is no run of several symbols",
        why=why,
        live="no release was made",
        hint="invoke release, without it",
    )


def _chosen(inventory: Inventory, named: str, env: str) -> Release:
    store = store_of(inventory)
    if named:
        return store.load(named)
    if not store.ids():
        raise UsageError(f"no releases yet in {store.root}", hint="invoke release")
    return store.newest(env, inventory.release.app)


def live_on(inventory: Inventory) -> dict[str, list[str]]:
    """release -> hosts where the last deploy or rollback from this machine left it live."""
    from macd.deploy.records import ENDS
    from macd.journal import Journal

    by_host: dict[str, str] = {}
    try:
        records = Journal(inventory.state_dir / "journal.jsonl").records()
    except MacdError:
        return {}
    for record in records:
        host, live = record.fields.get("host"), record.fields.get("live")
        if record.kind in ENDS and isinstance(host, str) and isinstance(live, str):
            by_host[host] = live
    hosts: dict[str, list[str]] = {}
    for host, live in by_host.items():
        hosts.setdefault(live, []).append(host)
    return hosts


def _fields(release: Release) -> dict[str, Any]:
    manifest, details = release.manifest, release.manifest.details
    return {
        "id": release.id,
        "directory": str(release.directory),
        "serial": manifest.serial,
        "app": manifest.app,
        "env": manifest.env,
        "created": f"{manifest.created:%Y-%m-%dT%H:%M:%SZ}",
        "expires": f"{manifest.expires:%Y-%m-%dT%H:%M:%SZ}",
        "manifest_sha256": release.sha256,
        "bytes": manifest.total_bytes,
        "run": details.get("run"),
        "criteria": details.get("criteria", []),
        "accepted": details.get("accepted"),
        **({"models": details["models"]} if "models" in details else {}),
        **({"symbols": list(manifest.serves)} if details.get("symbols") else {}),
    }


def _criteria(details: dict[str, Any]) -> str:
    missed = [criterion for criterion in details.get("criteria", []) if not criterion["ok"]]
    if details.get("accepted"):
        return "accepted, with reason"
    if not details.get("criteria"):
        return "none"
    return f"{len(missed)} missed, only warn" if missed else "met"


def _rows(release: Release) -> list[tuple[str, str]]:
    from macd.cli.own_release import rows as own_rows
    from macd.criteria import mark

    manifest, lock, d = release.manifest, release.lock, release.manifest.details
    code = d.get("code", {})
    commit = (code.get("commit") or "no commit")[:12] + (" + changes" if code.get("dirty") else "")
    named = ", ".join(manifest.serves) if d.get("symbols") else d.get("symbol")
    trained = f"{d.get('run')} on {d.get('host')}, {named} {d.get('tf')}"
    lines = [
        (
            "release",
            f"{release.id}, serial {manifest.serial}, for {manifest.app} on {manifest.env}",
        ),
        ("made", f"{manifest.created:%F %H:%M} UTC; expires {manifest.expires:%F %H:%M} UTC"),
        ("run", trained if d.get("run") else "none: code and models as they lay in the source"),
        *([("data", str(d["data_digest"]))] if "data_digest" in d else []),
        ("code", ", ".join(filter(None, [code.get("version"), commit]))),
        *own_rows(d),
        ("runtime", f"Python {lock.python}, {lock.platform}, {len(lock.wheels)} wheels"),
    ]
    if d.get("accepted"):
        lines.append(("accepted", str(d["accepted"])))
    for criterion in d.get("criteria", []):
        sign = mark(ok=criterion["ok"], level=criterion["level"])
        whose = f"{criterion['symbol']}: " if criterion.get("symbol") else ""
        if not whose or not criterion["ok"]:  # of several symbols those that were missed
            lines.append(("", f"{sign} {whose}{criterion['title']}: {criterion['note']}"))
    lines.append(("files", f"{len(manifest.files)}, {size(manifest.total_bytes)}"))
    return lines


def _show_made(inv: Inventory, made: Release, more: Sequence[str]) -> None:
    from macd.cli import own_release

    manifest = made.manifest
    for text in own_release.model_lines(manifest.details):
        print(f"  {text}")
    print(f"released {made.id}, serial {manifest.serial}")
    print(f"  expires {manifest.expires:%Y-%m-%d %H:%M} UTC; signed as {inv.release.identity}")
    print(f"  {len(manifest.files)} files, {size(manifest.total_bytes)}: {made.bundle}")
    for text in more:
        print(f"  {text}")
    print(f"  next: invoke plan --env {manifest.env}")


def _show_dry_run(
    request: ReleaseRequest, details: dict[str, Any], more: Sequence[str], *, json: bool
) -> None:
    if json:
        emit({
            "dry_run": True, "run": request.run.id if request.run else None,
            "serial": request.serial, "lock": request.lock.sha256,
            "criteria": [finding.as_json() for finding in request.findings],
            "accepted": request.accepted or None, **details,
        })  # fmt: skip
        return
    print(f"would be released for {request.env} with serial {request.serial}; nothing was made")
    for text in more:
        print(f"  {text}")


def _show_report(report: Report, signers: Signers) -> None:
    from macd.host.untrusted import line

    print(f"✓ {report.id}: signed by {signers.identity}")
    for word, paths in (
        ("extra", report.extra),
        ("missing", report.missing),
        ("changed", report.changed),
    ):
        for path in paths:
            print(f"✗ {word:<8} {line(path)}")  # any name may lie there
    if report.ok:
        print(f"✓ all {report.files} files are as they were signed")
    else:
        print("  do: don't deploy it; invoke release makes a new one")


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
    symbols: dict[str, Run] | None = None,
    json: bool,
) -> tuple[BuildRequest, list[Path]]:
    from macd.criteria import MIN_SAMPLES
    from macd.jobs.record import host_of
    from macd.journal import Journal
    from macd.release import wheel, wheelhouse
    from macd.release.build import BuildRequest
    from macd.release.judge import blocking, judge
    from macd.release.lock import Lock
    from macd.run_directory import bars_directory

    samples = inventory.service.env.get(MIN_SAMPLES, "")
    findings = [
        replace(finding, symbol=name)
        for name, part in (symbols or {"": run}).items()
        for finding in judge(
            part.criteria,
            inventory.train.criteria,
            part.audit,
            part.metrics,
            part.stacking,
            samples=int(samples) if samples.isdecimal() else 0,
        )
    ]
    for line in _judged_lines(findings):
        say(json, line)
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
        data_dir=bars_directory(run.directory, inventory.train.data_dir),
        symbols=symbols or {},
        versions=wheelhouse.proved_with(lock, constraints),
    )
    return request, wheels


def _judged_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Each finding about one symbol; of several the missed ones, and a line each."""
    by_symbol: dict[str, list[Finding]] = {}
    for finding in findings:
        by_symbol.setdefault(finding.symbol, []).append(finding)
    for symbol, mine in by_symbol.items():
        if not symbol:
            yield from (finding.line() for finding in mine)
            continue
        missed = [finding for finding in mine if not finding.ok]
        if not any(finding.level == "block" for finding in missed):
            yield f"✓ {symbol}: {len(mine) - len(missed)} of {len(mine)} criteria met"
        yield from (finding.line() for finding in missed)


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
    from macd import application
    from macd.release import run as runs

    app = application.of(inventory).name
    if not named:
        return runs.read(runs.newest(inventory.root / "runs", app=app), app=app)
    below = inventory.root / "runs" / named
    return runs.read(below if below.is_dir() else Path(named), app=app)


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
    """Sign the manifest, and verify the signature as the hosts will."""
    from macd.host.store import signature
    from macd.release.signing import sign

    signature_bytes = sign(raw, key=signing_key(inventory))
    signers = signers_of(inventory)
    try:
        signers.verify(raw, signature_bytes)
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


def record(made: Release, request: ReleaseRequest) -> dict[str, Any]:
    details = made.manifest.details
    return {
        "release": made.id,
        "serial": made.manifest.serial,
        "env": made.manifest.env,
        "run": details["run"],
        "data_digest": details.get("data_digest"),
        "manifest_sha256": made.sha256,
        "lock": made.manifest.lock,
        "commit": details["code"]["commit"],
        "dirty": details["code"]["dirty"],
        "missed": [
            f"{finding.symbol} {finding.name}".strip()
            for finding in request.findings
            if not finding.ok
        ],
        "accepted": request.accepted or None,
        "by": getpass.getuser(),
    }


def _of_newer(one: dict[str, str], chosen: str) -> str:
    """That the run which is released is not the newest one."""
    from macd.host.untrusted import line

    name, state, reason = one["run"], one["state"], line(one["reason"], 200)
    how = f"{state}{f': {reason}' if reason else ''}"
    if state == "RUNNING":
        how = f"no end of it is recorded here; invoke train.attach --run {name}"
    return f"⚠ {chosen} is not the newest run: {name} was started later ({how})"


def say(json: bool, text: str) -> None:
    if not json:
        print(text, flush=True)


def target_of(inventory: Inventory, env: str) -> tuple[Target, list[str]]:
    """What a lock for `env` must fit, and warnings where a host could only be remembered.

    Raises MacdError when a host can't be reached and never was, or its Python is too old.
    """
    from macd.release.wheelhouse import Target, common
    from macd.ssh.failures import UnfitPythonError

    memory = inventory.state_dir / "facts" / f"{env}.json"
    remembered: dict[str, Any] = _read_targets(memory)
    targets: dict[str, Target] = {}
    warnings = []
    for host in inventory.env_hosts(env):
        try:
            target = _ask_target(host, inventory)
            targets[host.name] = target
            remembered[host.name] = {**asdict(target), "at": f"{datetime.now(UTC):%F %T} UTC"}
        except UnfitPythonError:
            raise  # it was reached, so what it had before says nothing
        except MacdError as error:
            fields = dict(remembered.get(host.name) or {})
            if not fields:
                raise _target_unknown(host, error) from error
            at = fields.pop("at", "an unknown time")
            targets[host.name] = Target(**fields)
            warnings.append(f"{host.name} can't be reached; its Python is as of {at}")
    _write_targets(memory, remembered)
    return common(targets), warnings


def _ask_target(host: Host, inventory: Inventory) -> Target:
    from macd.release.wheelhouse import Target
    from macd.ssh.session import open_session

    with open_session(host, inventory) as session:
        facts = session.facts([])
    python = ".".join(facts.python.version.split(".")[:2])
    libc = facts.os.libc
    name = "musl" if libc["name"] == "musl" else "glibc"
    return Target(python, facts.os.arch, name, libc["version"] or "1.2")


def _target_unknown(host: Host, error: MacdError) -> MacdError:
    return MacdError(
        f"what {host.name} runs isn't known yet, so no wheels can be chosen for it",
        why=str(error),
        live="no release was made",
        hint="make it reachable once (the lab's: invoke lab.up); afterwards it need not be",
    )


def _read_targets(path: Path) -> dict[str, Any]:
    try:
        document = jsonlib.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_targets(path: Path, remembered: dict[str, Any]) -> None:
    replace_file(path, (jsonlib.dumps(remembered, indent=1) + "\n").encode(), parents=True)
