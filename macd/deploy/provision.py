"""Converge a host to the inventory: one question, one answer, each change listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.deploy import desired, state
from macd.deploy.drift import unified, with_hidden
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
class Provisioned:
    """What it took. `missing`: programs the host lacks, each with the package that has it.

    stale: what was rewritten and the running process still has as it was; `live` is its release.
    note: what provision can't mend, "" if there is nothing.
    """

    host: str
    app: str
    changes: Sequence[Change]
    missing: Sequence[Mapping[str, Any]]
    stale: Sequence[str] = ()
    live: str = ""
    note: str = ""

    @property
    def restart_wanted(self) -> bool:
        return bool(self.live and self.stale)

    @property
    def lacks_needed(self) -> bool:
        return any(package["needed"] for package in self.missing)


def provision(host: Host, inventory: Inventory, *, who: str, dry_run: bool = False) -> Provisioned:
    """Bring one host to the desired state; a second time changes nothing.

    Raises:
        RefusedError: a deploy is at work there, or the login may not do it.
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
            _secret("state/notify.json", desired.guard_notify(inventory)),
            _file("service.json", wanted.service_settings.encode(), 0o644),
        ]
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
                wanted.account, socket=inventory.service.socket, replays=bool(replayed)
            ),
            files=files,
            flags=dict(wanted.flags),
            units=dict(wanted.units),
            enable=[name for name, text in wanted.units.items() if text is not None],
            who=who,
            dry_run=dry_run,
        )
    copy = host_copy(host, inventory)
    if copy is not None and not dry_run:
        copy.remember(archive.digest())
    changes = [_change(change) for change in answer["changes"]]
    return Provisioned(
        host=host.name,
        app=answer["app"],
        changes=changes,
        missing=answer["missing"],
        stale=_stale(changes, [*wanted.switched, ".env", *replayed]),
        live=host_state.live or "",
        note=note,
    )


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


def _directories(account: str, *, socket: bool, replays: bool) -> list[dict[str, Any]]:
    """Parents first. The account owns only what it writes."""
    plain = ["", "bin", "blobs", "releases", "runtimes", "data", "state", "state/activations"]
    made: list[dict[str, Any]] = [
        {"path": path, "mode": 0o755, "owner": ""} for path in [*plain, "state/gate"]
    ]
    if replays:
        made.append({"path": desired.REPLAY, "mode": 0o755, "owner": ""})
    run_owner = "" if socket else account
    return [
        *made,
        {"path": "state/run", "mode": 0o755, "owner": run_owner},
        {"path": "state/snapshots", "mode": 0o700, "owner": ""},
        {"path": "data/live", "mode": 0o750, "owner": account},
    ]


def _change(change: Mapping[str, Any]) -> Change:
    diff = ""
    if "after" in change:
        diff = unified(change.get("before", ""), change["after"], change["name"].rpartition("/")[2])
        diff = with_hidden(diff, change.get("hidden", ()))
    return Change(change["what"], change["name"], change["how"], diff)
