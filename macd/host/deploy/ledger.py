"""The host's own record of what it committed, what is pending and what failed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, discard, live_release, load, save

Snapshot = dict[str, str | None]
_MOST_LOGS = 200


@dataclass(frozen=True)
class Pending:
    """A pending change of the live release; durable before anything is touched.

    `before` and `after` map the files that are switched with the release to their texts: unit files
    by name, ".env" and "service.json". None means that the file is not there.
    """

    number: int
    kind: str  # deploy | rollback
    to: str
    origin: str | None
    token: str
    who: str
    started: float
    state: str
    unit: str
    scope: str
    endpoint: str
    serial: int
    manifest_sha256: str
    check_argv: list[str] = field(default_factory=list)
    health_s: float = 60.0
    soak_s: float = 10.0
    confirm_s: float = 60.0
    keep: int = 5
    reason: str = ""
    waiting_since: float | None = None  # for a confirmation, by activation.uptime
    session: int = 0  # the agent that started it, which is no fresh connection
    before: Snapshot = field(default_factory=dict)
    after: Snapshot = field(default_factory=dict)
    edited: list[str] = field(default_factory=list)  # names of `before` that people changed
    flags: list[str] = field(default_factory=list)  # the keys of .env that the tool sets
    keys: list[str] = field(default_factory=list)  # the keys of .env that are switched
    dropin: str = ""  # of a flag in a drop-in: what it was before, "1" or "0"; "" for another flag


def read_pending(layout: Layout) -> Pending | None:
    document = load(layout.state("pending.json"), None)
    if document is None:
        return None
    # A newer macd may have written more fields.
    names = {field.name for field in dataclasses.fields(Pending)}
    return Pending(**{name: value for name, value in document.items() if name in names})


def refuse_if_pending(
    layout: Layout, hint: str = "invoke deploy --attach follows it; it commits or reverts by itself"
) -> None:
    """Raises HostError ("refused"): an activation has not ended."""
    pending = read_pending(layout)
    if pending is None:
        return
    age = round(time.time() - pending.started)
    raise HostError(
        f"activation {pending.number} is under way",
        why=f"{pending.kind} of {pending.to} by {pending.who}, since {age} s: {pending.state}",
        live=live_release(layout) or "nothing",
        hint=hint,
        kind="refused",
    )


def write_pending(layout: Layout, pending: Pending) -> None:
    # It holds the flags file's text, so nobody else may read it.
    save(layout.state("pending.json"), asdict(pending), mode=0o600)


def confirm(layout: Layout, pending: Pending) -> None:
    document = {"token": pending.token, "number": pending.number}
    save(layout.state("confirmed.json"), document, mode=0o600)


def is_confirmed(layout: Layout, pending: Pending) -> bool:
    """Whether exactly this activation was confirmed; a confirmation of another doesn't count."""
    document = load(layout.state("confirmed.json"), {})
    return bool(document == {"token": pending.token, "number": pending.number})


def clear_pending(layout: Layout) -> None:
    discard(layout.state("confirmed.json"))
    discard(layout.state("pending.json"))


def history(layout: Layout) -> list[dict[str, Any]]:
    """What was committed here, oldest first.

    Each: number, release, serial, manifest_sha256, at, kind, who; `written`, hashes of the texts
    that went live with it; `flags`, the keys of .env that the tool sets; and abandoned, once it was
    rolled back from (true) or came back later (false). Older versions recorded less.
    """
    return list(load(layout.state("committed.json"), []))


def save_history(layout: Layout, entries: list[dict[str, Any]]) -> None:
    save(layout.state("committed.json"), entries)


def remember_written(layout: Layout, release: str, written: dict[str, str | None]) -> None:
    """Store the hashes for a release of an older version, whose snapshot is about to change."""
    entries = history(layout)
    own = [entry for entry in entries if entry["release"] == release]
    if own and written and not any(isinstance(entry.get("written"), dict) for entry in own):
        own[-1]["written"] = written
        save_history(layout, entries)


def bad_releases(layout: Layout) -> list[dict[str, Any]]:
    return list(load(layout.state("bad.json"), []))


def mark_bad(layout: Layout, release: str, reason: str, number: int) -> None:
    """Record that a release failed on this host; the newest failure is the last entry."""
    others = [entry for entry in bad_releases(layout) if entry["release"] != release]
    entry = {"release": release, "reason": reason, "activation": number, "at": time.time()}
    save(layout.state("bad.json"), [*others, entry])


def mark_good(layout: Layout, release: str) -> None:
    """A release that failed once and then proved itself is not bad any more."""
    entries = bad_releases(layout)
    others = [entry for entry in entries if entry["release"] != release]
    if others != entries:
        save(layout.state("bad.json"), others)


def next_number(layout: Layout) -> int:
    """The number of the next activation: one above every log that is here."""
    directory = layout.state("activations")
    numbers = [int(n.split(".")[0]) for n in os.listdir(directory) if n.split(".")[0].isdigit()]
    return max(numbers, default=0) + 1


def last_end(layout: Layout) -> dict[str, Any] | None:
    """How the newest activation ended; None while it goes on, and before the first."""
    number = next_number(layout) - 1
    events = EventLog(layout, number).read()
    if not events or events[-1]["state"] not in ("committed", "reverted"):
        return None
    return {"number": number, **events[-1]}


def others_ran(layout: Layout, live: str | None) -> list[dict[str, Any]]:
    """When another release than `live` may have run since that was committed, oldest first.

    Each: release; since, from when it was switched to; until, when the old process was proved
    again, None while that goes on (epoch seconds). An end that was lost is the newest event.
    """
    committed = [entry["number"] for entry in history(layout) if entry["release"] == live]
    pending = read_pending(layout)
    ran = []
    for number in range(max(committed, default=0) + 1, next_number(layout)):
        events = EventLog(layout, number).read()
        switched = [event for event in events if event["state"] == "switching"]
        if not switched or switched[0].get("release") == live:
            continue
        under_way = pending is not None and pending.number == number
        until = None if under_way else events[-1]["at"]
        ran.append({"release": switched[0]["release"], "since": switched[0]["at"], "until": until})
    return ran


def drop_old_logs(layout: Layout, number: int) -> None:
    """Remove the events of activations long over; the journal still has them."""
    directory = layout.state("activations")
    for name in os.listdir(directory):
        first = name.split(".")[0]
        if first.isdigit() and int(first) <= number - _MOST_LOGS:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))


class EventLog:
    """The states of one activation as they happen: JSON lines a client follows by offset."""

    def __init__(self, layout: Layout, number: int) -> None:
        self.path = layout.state("activations", f"{number}.jsonl")

    def add(self, state: str, **fields: Any) -> None:
        # ASCII: a service's own text may have no bytes in UTF-8.
        line = json.dumps({"at": time.time(), "state": state, **fields})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            torn = "\n" if self._is_torn() else ""
            durable.write_all(descriptor, (torn + line + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _is_torn(self) -> bool:
        """Whether a kill or a full disk left half a line at the end."""
        with open(self.path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def read(self) -> list[dict[str, Any]]:
        """Whole lines only; one torn by a power cut is left out."""
        try:
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return entries
