"""`invoke release` of an application of one's own: what is asked and said before it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from macd.cli.release import read_run, say, target_of
from macd.errors import UsageError
from macd.host.untrusted import line
from macd.sizes import size

if TYPE_CHECKING:
    from pathlib import Path

    from macd.checklist import Item
    from macd.inventory import Inventory
    from macd.inventory.own_app import OwnApp
    from macd.release.lock import Lock
    from macd.release.own import OwnRequest
    from macd.release.run import Run
    from macd.release.source import Source
    from macd.release.store import Release, Store

_SHOWN = 8


def source_refused(app: OwnApp) -> UsageError:
    return UsageError(
        "--source is for macd's own code",
        why=f"what is released is app.source: {app.source}",
        live="no release was made",
        hint="change app.source in the inventory, or leave --source out",
    )


def prepare(
    inventory: Inventory,
    app: OwnApp,
    named: str,
    store: Store,
    env: str,
    accept: str,
    now: datetime,
    days: float,
    *,
    json: bool,
) -> tuple[OwnRequest, Callable[..., tuple[Release, list[Item]]]]:
    """Read run and source, judge, lock; what is released, and what makes it (given `sign`)."""
    from macd.jobs.record import host_of
    from macd.journal import Journal
    from macd.release import own, own_check
    from macd.release import source as sources
    from macd.release.judge import blocking, judge_own
    from macd.release.lock import Lock

    run = _run(inventory, app, named, json=json)
    source = sources.read(app)
    bounds = app.train.criteria if app.train else {}
    findings = judge_own(own.metrics_of(run), bounds) if run else []
    for finding in findings:
        say(json, finding.line())
    if blocking(findings) and not accept:
        locked: tuple[Lock, list[Path]] = Lock("", "", ()), []  # refused before any lock counts
    else:
        locked = _locked(inventory, app, source, env, json=json)
    lock, wheels = locked
    started_on = host_of(Journal(inventory.state_dir / "journal.jsonl"), run.id) if run else ""
    settings = run.settings if run else {}
    request = own.OwnRequest(
        run=run,
        findings=findings,
        app=inventory.release.app,
        env=env,
        serial=store.next_serial(now),
        created=now,
        lifetime=timedelta(days=days),
        accepted=accept if blocking(findings) else "",
        lock=lock,
        application=app,
        source=source,
        host=(started_on or str(run.result.get("host") or "local")) if run else None,
        symbol=str(settings.get("symbol") or inventory.train.symbol),
        tf=str(settings.get("tf") or inventory.train.tf),
    )
    _show(request, json=json)
    own.refuse_wrong_commands(request)
    check = own_check.OwnCheck(
        command=app.check,
        writes=app.serve.writes,
        programs=own.programs(app),
        lock=lock,
        wheels=wheels,
        state=inventory.state_dir / "check",
        say=partial(say, json),
    )
    return request, partial(own.make, request, store, wheels=wheels, check=check.run)


def _run(inventory: Inventory, app: OwnApp, named: str, *, json: bool) -> Run | None:
    if app.train is None:
        if named:
            raise UsageError(
                "--run names a training, and this application has none",
                why="app.train is left out",
                live="no release was made",
                hint="describe it in app.train, or leave --run out",
            )
        say(json, "no training (app.train is left out): code and models go out as they lie there")
        return None
    run = read_run(inventory, named)
    say(json, f"run {run.id}: every file as the training left it")
    return run


def _locked(
    inventory: Inventory, app: OwnApp, source: Source, env: str, *, json: bool
) -> tuple[Lock, list[Path]]:
    from macd.release import requirements, wheelhouse
    from macd.release.lock import Lock

    wanted = None
    if app.serve.requirements:
        wanted = requirements.read(app.source, app.serve.requirements)
        for warning in wanted.warnings:
            say(json, f"⚠ {warning}")
        for name in sorted(wanted.contents.keys() - source.files.keys()):
            if not name.endswith(".whl"):
                say(json, f"⚠ {line(name)} says which packages, and is not in the release")
    target, warnings = target_of(inventory, env)
    for warning in warnings:
        say(json, f"⚠ {warning}")
    if wanted is None:
        say(json, "✓ lock: no packages, serve.requirements is left out")
        return Lock(target.python, target.platform, ()), []
    house = wheelhouse.Wheelhouse(inventory.state_dir / "wheelhouse")
    lock, wheels = house.resolve_file(wanted, target)
    about = f"{len(lock.wheels)} wheels for Python {lock.python}, {lock.platform}"
    say(json, f"✓ lock of {app.serve.requirements}: {about}, {size(lock.total_bytes)}")
    return lock, wheels


def _show(request: OwnRequest, *, json: bool) -> None:
    """What of the source goes out, what doesn't, and how it differs from what was trained."""
    from macd.release import own

    source: Source = request.source
    commit = f"commit {source.commit[:12]}" if source.commit else "of no commit"
    count = len(source.files) - len(source.models)
    say(json, f"source {request.application.source}: {count} files, {commit}")
    if source.dirty:
        shown = ", ".join(source.changed[:_SHOWN])
        more = f" and {len(source.changed) - _SHOWN} more" if len(source.changed) > _SHOWN else ""
        say(json, f"⚠ changes that are not committed go into the release: {shown}{more}")
    if request.models:
        say(json, f"models: {counted(request.models)}{_not_in_git(source.commit)}")
    if differs := own.differs(request):
        say(json, f"⚠ {differs}")
    left_out = request.left_out
    for name, why in left_out[:_SHOWN]:
        say(json, f"– left out: {name} ({why})")
    if len(left_out) > _SHOWN:
        say(json, f"– left out: {len(left_out) - _SHOWN} more files")


def as_json(request: OwnRequest) -> dict[str, Any]:
    """The same for `--json`."""
    from macd.release import own

    source = request.source
    return {
        "source": {"commit": source.commit, "dirty": source.dirty, "changed": source.changed},
        "trained_with": own.trained_with(request.run),
        "left_out": [{"path": name, "why": why} for name, why in request.left_out],
    }


def counted(paths: Sequence[str]) -> str:
    """How many, and from which directories."""
    places = sorted({line(str(PurePosixPath(path).parent)) for path in paths})
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    shown = ", ".join("the top" if place == "." else place for place in places[:_SHOWN])
    return f"{len(paths)} from {shown}{more}"


def _not_in_git(commit: str | None) -> str:
    return ", not in git" if commit else ""


def model_lines(details: Mapping[str, Any]) -> list[str]:
    """The models of a release: how many from where, then each with size and hash."""
    models = details.get("models", [])
    lines = []
    for place, whose in (
        ("run", ", left by its training"),
        ("source", f"{_not_in_git(details['code']['commit'])}, as they lay in the source"),
    ):
        some = [model for model in models if model["from"] == place]
        if some:
            total = size(sum(model["size"] for model in some))
            lines.append(f"{counted([model['path'] for model in some])}{whose}: {total}")
        for model in some[:_SHOWN]:
            about = f"{model['sha256'][:12]} {model['size']:>10,}"
            lines.append(f"  {about}  {line(model['path'])}")
        if len(some) > _SHOWN:
            lines.append(f"  and {len(some) - _SHOWN} more")
    return lines


def rows(details: dict[str, Any]) -> list[tuple[str, str]]:
    """What `release.show` says of an application of one's own, beside what it says of all."""
    from macd.release.card import unknown_of_own

    own, trained = details.get("own"), details.get("trained_with")
    if not own:
        return []
    made = []
    if trained:
        commit = (trained.get("commit") or "no commit")[:12]
        made.append(("trained", commit + (" + changes" if trained.get("dirty") else "")))
    for name, value in details.get("metrics", {}).items():
        made.append(("metric", f"{name} {'not measured' if value is None else f'{value:.6g}'}"))
    made += [
        ("units", ", ".join(["the main one", *own["units"]])),
        ("writes", ", ".join(own["writes"]) or "nothing"),
        ("check", own["check"] or "none"),
    ]
    texts = model_lines(details) if "models" in details else []
    made += [("models" if n == 0 else "", text) for n, text in enumerate(texts)]
    return [*made, *(("not known", text) for text in unknown_of_own(own["check"]))]
