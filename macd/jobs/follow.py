"""Follow one run on its host: its status, its events across lost links; and stop it on request.

Events that have arrived are stored in the run's folder here, at the offset they have there. The
length of that file is where following resumes, and two viewers on one machine write the same bytes.
Following never changes the run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from macd.errors import ContactLostError, MacdError
from macd.run_directory import FILES
from macd.ssh.contact import Contact

_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}(\.partial|\.failed|\.cancelled)?")
_WAIT_S = 5.0
_STOPPED_S = 60.0

Event = dict[str, Any]


class Viewer(Protocol):
    """Shows the events of a run."""

    def past(self, events: list[Event]) -> None:
        """Events that this machine stored earlier."""

    def news(self, events: list[Event], status: dict[str, Any]) -> None:
        """New events (perhaps none), and the run's status on its host."""


@dataclass(frozen=True)
class LocalRuns:
    """The folders of runs on this machine. Ids and states from a host are checked."""

    runs: Path

    def collected(self, run: str) -> Path:
        """The folder of a collected run."""
        if not _RUN_ID.fullmatch(run):
            raise MacdError(
                f"not a run id: {run!r:.80}", hint="invoke train.status names the newest"
            )
        return self.runs / run

    def partial(self, run: str) -> Path:
        """The folder of a run that is not collected yet."""
        return self.collected(f"{run}.partial")

    def ended(self, run: str, state: str) -> Path:
        """The folder of a run that is over: runs/<id> only if it is DONE."""
        if state == "DONE":
            return self.collected(run)
        if state in ("FAILED", "CANCELLED"):
            return self.collected(f"{run}.{state.lower()}")
        raise MacdError(f"run {run} can't be collected: its state is {state!r:.80}")


def follow(contact: Contact, run: str, local: LocalRuns, viewer: Viewer) -> dict[str, Any]:
    """Tell `viewer` about the run until it is over; returns its last status.

    Raises ContactLostError when the link stays dead for the contact's patience: the run goes on.
    """
    path = local.partial(run) / FILES.events
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = path.read_bytes() if path.exists() else b""
    lines = _Lines()
    viewer.past(lines.feed(stored))
    offset = len(stored)
    while True:
        answer = _call(contact, "job_follow", run, offset=offset, wait=_WAIT_S)
        data, status = answer["data"], answer["status"]
        if data:
            _store(path, data, offset)
            offset += len(data)
        viewer.news(lines.feed(data), status)
        if status["state"] != "RUNNING" and not data:
            return dict(status)


def stored_events(run: str, local: LocalRuns) -> list[Event]:
    """The events of a run that this machine has stored."""
    for folder in (local.collected(run), local.partial(run)):
        path = folder / FILES.events
        if path.exists():
            return decode(path.read_bytes())
    return []


def decode(data: bytes) -> list[Event]:
    """The whole events in the beginning of a stream."""
    return _Lines().feed(data)


def status_of(contact: Contact, run: str) -> dict[str, Any]:
    """The status of a run ("": the newest), as its host sees it."""
    return _call(contact, "job_status", run, log_tail=8192)


def schedule_of(contact: Contact) -> dict[str, Any]:
    """What its host trains by itself, as job_schedule answers; {} for nothing."""
    work = contact.host.work_dir
    answer: dict[str, Any] = contact.use(lambda session: session.call("job_schedule", work=work))
    return answer


def events_of(contact: Contact, run: str) -> list[Event]:
    """All events of a run so far."""
    data = b""
    while piece := _call(contact, "job_follow", run, offset=len(data))["data"]:
        data += piece
    return decode(data)


def stop(contact: Contact, run: str) -> dict[str, Any]:
    """Ask a run to stop and wait until it is over; returns its status."""
    _call(contact, "job_cancel", run)
    until = contact.clock() + _STOPPED_S
    while (status := status_of(contact, run))["state"] == "RUNNING":
        if contact.clock() > until:
            raise MacdError(
                f"run {run} does not end",
                why=f"it was asked to {_STOPPED_S:.0f} s ago, and killed after 20 s",
                live="it may hang in the kernel, on a disk or a GPU",
                hint=f"invoke train.status --run {run}; on the host: ps, nvidia-smi",
            )
        contact.sleep(0.3)
    return status


def contact_lost(error: MacdError, run: str) -> MacdError:
    """An unreachable host leaves the run's state unknown: that is LOST CONTACT, not FAILED."""
    from macd.ssh.refusals import UnreachableError  # noqa: PLC0415 - paramiko is slow to import

    if not isinstance(error, ContactLostError | UnreachableError):
        return error
    named = f"run {run}" if run else "what runs there"
    again = f"invoke train.attach --run {run} resumes where this stopped, from any machine"
    return ContactLostError(
        error.what if error.what.startswith("LOST CONTACT") else f"LOST CONTACT: {error.what}",
        why=error.why,
        live=f"{named} goes on without us, or is over; that is not known here",
        hint=error.hint or (again if run else "try again; invoke train.attach resumes"),
    )


def _call(contact: Contact, op: str, run: str, **args: Any) -> dict[str, Any]:
    work = contact.host.work_dir
    try:
        answer: dict[str, Any] = contact.use(
            lambda session: session.call(op, work=work, run=run, **args)
        )
    except MacdError as error:
        raise contact_lost(error, run) from error
    return answer


def _store(path: Path, data: bytes, offset: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    except FileNotFoundError:  # another viewer on this machine has collected the run meanwhile
        return
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


class _Lines:
    """Whole events from bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        return list(_decoded(whole))


def _decoded(lines: list[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line that another program wrote does not end the view
        if isinstance(event, dict):
            yield event
