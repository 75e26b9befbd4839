"""Converge a host to the inventory: one question, one answer, each change listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macd.deploy import desired, state
from macd.deploy.drift import alike, unified, with_hidden
from macd.host import own
from macd.host.flag.flag_file import DROPIN
from macd.host.own import Flag
from macd.host.systemd import namespaces, selinux
from macd.inventory import Host, Inventory, revoked
from macd.ssh import archive
from macd.ssh.failures import RemoteFileNotFoundError
from macd.ssh.session import Session, host_copy, open_session


@dataclass(frozen=True)
class Change:
    """One thing that was (or, dry, would be) changed; `diff` where it is a text."""

    what: str
    name: str
    how: str
    diff: str = ""


@dataclass(frozen=True)
class Adoption:
    """What changes for a service by hand with the first deploy: sentences, then each unit's diff.

    asks: somebody has to agree first. processes: those without a unit of the application, with
    which no deploy begins (as `byhand.processes` has them).
    """

    words: Sequence[str]
    diffs: Sequence[str]
    processes: Sequence[Mapping[str, Any]]
    asks: bool


@dataclass(frozen=True)
class Undone:
    """What came back, or would. serving: what serves now, or would; healthy None: as before.

    left: directories below app and texts that were set aside that stay, though nothing refers to
    them.
    """

    host: str
    app: str
    changes: Sequence[Change]
    serving: str
    healthy: bool | None
    left: Sequence[str]


@dataclass(frozen=True)
class Provisioned:
    """What it took. `missing`: programs the host lacks, each with the package that has it.

    stale: what was rewritten and the running process still has as it was; `live` is its release.
    note: what provision can't mend, "" if there is nothing. adopts: what becomes of a service that
    people put there, None where there is none. unconfined: which protection its units do without,
    unprotected: why the host can't give them what they ask for, not_started: why SELinux starts no
    program of theirs, each with what to do; "" for none.
    """

    host: str
    app: str
    changes: Sequence[Change]
    missing: Sequence[Mapping[str, Any]]
    stale: Sequence[str] = ()
    live: str = ""
    note: str = ""
    adopts: Adoption | None = None
    unconfined: str = ""
    unprotected: str = ""
    not_started: str = ""

    @property
    def restart_wanted(self) -> bool:
        return bool(self.live and self.stale)

    @property
    def lacks_needed(self) -> bool:
        return any(package["needed"] for package in self.missing)


def provision(
    host: Host, inventory: Inventory, *, who: str, dry_run: bool = False, adopt: bool = False
) -> Provisioned:
    """Bring one host to the desired state; a second time changes nothing.

    adopt: a service that people put there is taken over by the first deploy.

    Raises:
        RefusedError: a deploy is at work there, the login may not do it, or there is a service by
            hand and no `adopt`.
        UsageError: the inventory names no allowed_signers file, or a list of revoked keys that
            isn't there.
    """
    signers, krl = files_here(inventory)
    with open_session(host, inventory) as session:
        host_state = state.observed(state.ask(session, host, inventory))
        wanted = desired.render(host, inventory, host_state)
        files = [
            _file("bin/macd-host.pyz", archive.build(), 0o644),
            _file("state/allowed_signers", signers, 0o644),
            _secret("state/notify.json", desired.addresses(inventory)),
        ]
        units = dict(wanted.units)
        alone = (
            wanted.application.deployed_alone or own.understood(host_state.service_settings).units
        )
        if alone and host_state.live:
            # Its units and settings say what is live, together: the next deploy switches them.
            units = {n: text for n, text in units.items() if n not in wanted.switched}
        else:
            files.append(_file("service.json", wanted.service_settings.encode(), 0o644))
        replayed = desired.replay_files(inventory)
        files += [_file(path, data, 0o644) for path, data in replayed.items()]
        note = _no_bars(session, host, inventory, set(replayed))
        # The list comes before accepts.json, which requires it: cut off between, the host refuses.
        files.append(_file("state/revoked.krl", krl.read_bytes() if krl else None, 0o644))
        files.append(_file("state/accepts.json", wanted.identity, 0o644))
        answer = session.call(
            "provision",
            app=host.app_dir,
            scope=host.scope,
            account=wanted.account,
            directories=_directories(
                wanted.account,
                socket=inventory.service.socket,
                replays=bool(replayed),
                writes=wanted.application.writes,
            ),
            files=files,
            flags=dict(wanted.flags),
            units=units,
            enable=[name for name, text in units.items() if text is not None],
            start=[n for n, text in wanted.units.items() if text and n.endswith(".timer")],
            who=who,
            dry_run=dry_run,
            switched=_main_first(wanted),
            commands=state.commands(host, inventory),
            **_switch(wanted.application.flag),
            adopt=adopt,
            hardening=inventory.service.hardening,
        )
    copy = host_copy(host, inventory)
    if copy is not None and not dry_run:
        copy.remember(archive.digest())
    changes = [_change(change) for change in answer["changes"]]
    short = alike([change.name for change in changes if change.how == "created"], wanted)
    changes = [
        replace(change, diff=short.get(change.name, change.diff)) if change.diff else change
        for change in changes
    ]
    return Provisioned(
        host=host.name,
        app=answer["app"],
        changes=changes,
        missing=answer["missing"],
        stale=_stale(changes, [*wanted.switched, ".env", *replayed]),
        live=host_state.live or "",
        note=note,
        adopts=_adoption(answer["adopts"]),
        unconfined=wanted.unconfined,
        unprotected=_with_remedy(host_state.unprotected(wanted.hardening), namespaces.REMEDY),
        not_started=_with_remedy(host_state.selinux, selinux.REMEDY),
    )


def undo(host: Host, inventory: Inventory, *, who: str, dry_run: bool = False) -> Undone:
    """Give back what was on one host before provision.

    Raises RefusedError: nothing is known of that, or something is at work there.
    """
    with open_session(host, inventory) as session:
        words = {"app": host.app_dir, "scope": host.scope, "who": who, "dry_run": dry_run}
        answer = session.call("provision_undo", **words)
    return Undone(
        host=host.name,
        app=answer["app"],
        changes=[_change(change) for change in answer["changes"]],
        serving=answer["serving"],
        healthy=answer["healthy"],
        left=answer["left"],
    )


def _with_remedy(problem: str, remedy: str) -> str:
    return f"{problem}\ndo: {remedy}" if problem else ""


def _main_first(wanted: desired.Desired) -> list[str]:
    """The units that go live with a release."""
    names = [wanted.unit, *(name for name in wanted.switched if name in wanted.units)]
    return list(dict.fromkeys(names))


def _switch(flag: Flag | None) -> dict[str, Any]:
    """The variable that lets the models decide."""
    return {"switch": flag.name, "dropin": flag.where == DROPIN} if flag else {}


def _adoption(said: Mapping[str, Any] | None) -> Adoption | None:
    if said is None:
        return None
    diffs = [unified(one["before"], one["after"], one["name"]) for one in said["diffs"]]
    return Adoption(said["words"], diffs, said["processes"], said["new"])


def files_here(inventory: Inventory) -> tuple[bytes, Path | None]:
    """What hosts get from this machine: the allowed_signers, and the list of revoked keys.

    Raises UsageError as `provision` does.
    """
    return desired.allowed_signers(inventory), revoked(inventory)


def _stale(changes: Sequence[Change], read_at_start: Sequence[str]) -> list[str]:
    """Names of what the service reads when it starts, whose content was changed."""
    return [
        name
        for name in read_at_start
        for change in changes
        if change.how in ("created", "changed", "removed")
        and (change.name == name or change.name.endswith(f"/{name}"))
    ]


def _no_bars(session: Session, host: Host, inventory: Inventory, sent: set[str]) -> str:
    """One message about all the bars that the replay wants and that are neither here nor there."""
    lacking = []
    for name, path in desired.replayed(inventory).items():
        if name in sent:
            continue
        try:
            next(iter(session.pieces(f"{host.app_dir}/{name}")), b"")
        except RemoteFileNotFoundError:
            lacking.append(str(path))
    if not lacking:
        return ""
    return (
        f"the service will have no bars to replay: {', '.join(lacking)} "
        f"{'is' if len(lacking) == 1 else 'are'} not here, nor on the host\n"
        "do: invoke data.import or data.fetch, then invoke provision; or set service.feed.kind"
    )


def _file(path: str, data: bytes | None, mode: int) -> dict[str, Any]:
    return {"path": path, "data": data, "mode": mode}


def _secret(path: str, data: bytes) -> dict[str, Any]:
    """For root (or the login) alone, and shown in no diff."""
    return {**_file(path, data, 0o600), "secret": True}


def _directories(
    account: str, *, socket: bool, replays: bool, writes: Sequence[str]
) -> list[dict[str, Any]]:
    """Parents first. The account owns only what it writes."""
    plain = ["", "bin", "blobs", "releases", "runtimes", "data", "state", "state/activations"]
    made: list[dict[str, Any]] = [
        {"path": path, "mode": 0o755, "owner": ""}
        for path in [*plain, "state/gate"]
        if path not in writes
    ]
    if replays:
        made.append({"path": desired.REPLAY, "mode": 0o755, "owner": ""})
    run_owner = "" if socket else account
    return [
        *made,
        {"path": "state/run", "mode": 0o755, "owner": run_owner},
        {"path": "state/snapshots", "mode": 0o700, "owner": ""},
        *(
            {"path": path, "mode": 0o750, "owner": account, "data": True}
            for path in dict.fromkeys(["data/live", *writes])
        ),
    ]


def _change(change: Mapping[str, Any]) -> Change:
    diff = ""
    if "after" in change:
        diff = unified(change.get("before", ""), change["after"], change["name"].rpartition("/")[2])
        diff = with_hidden(diff, change.get("hidden", ()))
    return Change(change["what"], change["name"], change["how"], diff)
