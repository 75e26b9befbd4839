"""Follow a run by its event stream: from the byte where this machine stopped, across lost links.

What has arrived is kept in the run's folder here, at the offset it has there, so that its length is
the place to go on from and two viewers on one machine write the same bytes. Following never changes
the run.
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
from macd.jobs.contact import Contact

EVENTS = "events.jsonl"
_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}(\.partial|\.failed|\.cancelled)?")
_WAIT_S = 5.0

Event = dict[str, Any]


class Viewer(Protocol):
    """Who looks on."""

    def past(self, events: list[Event]) -> None:
        """What happened before we looked, as far as this machine knows it."""

    def news(self, events: list[Event], status: dict[str, Any]) -> None:
        """What happened now (perhaps nothing), and how the host sees the run."""


@dataclass(frozen=True)
class Place:
    """Where runs of this machine lie. Ids and states may come from a host, so they are checked."""

    runs: Path

    def whole(self, run: str) -> Path:
        """The folder of a collected run."""
        if not _RUN_ID.fullmatch(run):
            raise MacdError(
                f"not a run id: {run!r:.80}", hint="invoke train.status names the newest"
            )
        return self.runs / run

    def partial(self, run: str) -> Path:
        """The folder of a run that is not collected yet."""
        return self.whole(f"{run}.partial")

    def ended(self, run: str, state: str) -> Path:
        """The folder of what is left of a run that is over: runs/<id> only if it is DONE."""
        if state == "DONE":
            return self.whole(run)
        if state in ("FAILED", "CANCELLED"):
            return self.whole(f"{run}.{state.lower()}")
        raise MacdError(f"run {run} can't be collected: its state is {state!r:.80}")


def follow(contact: Contact, run: str, place: Place, viewer: Viewer) -> dict[str, Any]:
    """Look on until the run is over; returns its last status.

    Raises ContactLostError when the link stays dead for the contact's patience: the run goes on.
    """
    path = place.partial(run) / EVENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.read_bytes() if path.exists() else b""
    lines = _Lines()
    viewer.past(lines.feed(known))
    offset = len(known)
    while True:
        told = _ask(contact, run, offset)
        if told["data"]:
            _keep(path, told["data"], offset)
            offset += len(told["data"])
        viewer.news(lines.feed(told["data"]), told["status"])
        if told["status"]["state"] != "RUNNING" and not told["data"]:
            return dict(told["status"])


def known_events(run: str, place: Place) -> list[Event]:
    """The events this machine has seen of a run."""
    for folder in (place.whole(run), place.partial(run)):
        path = folder / EVENTS
        if path.exists():
            return decode(path.read_bytes())
    return []


def decode(data: bytes) -> list[Event]:
    """The whole events in the beginning of a stream."""
    return _Lines().feed(data)


def _ask(contact: Contact, run: str, offset: int) -> dict[str, Any]:
    work = contact.host.work_dir
    try:
        told: dict[str, Any] = contact.use(
            lambda session: session.call(
                "job_follow", work=work, run=run, offset=offset, wait=_WAIT_S
            )
        )
    except ContactLostError as error:
        raise lost(error, run) from error
    return told


def lost(error: MacdError, run: str) -> ContactLostError:
    """The contact's error with what it means for this run."""
    return ContactLostError(
        error.what,
        why=error.why,
        live=f"run {run} goes on without us; how it stands is not known here",
        hint=f"invoke train.attach --run {run} goes on where this stopped, from any machine",
    )


def _keep(path: Path, data: bytes, offset: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    except FileNotFoundError:  # another viewer on this machine has collected the run meanwhile
        return
    try:
        os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


class _Lines:
    """Whole events out of bytes that are cut anywhere."""

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
            continue  # a line of somebody else's making is not worth the view
        if isinstance(event, dict):
            yield event
