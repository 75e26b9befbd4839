"""One look at the host, every few minutes, always: what is quiet or stale, and who hears of it.

The host's own timer wakes it, from provision on. It stores what it is about to send before it sends
it, and what was sent after: a kill in between sends something twice, never not at all. What can't
be stored is not sent, since it would be sent at every look. Then the heartbeat stops too, and
whoever waits for it knows.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, own, record
from macd.host.alerts import conditions, episodes, webhook
from macd.host.alerts.conditions import Facts, Terms
from macd.host.alerts.episodes import Episodes
from macd.host.alerts.facts import gather
from macd.host.deploy import locks
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.own import Service
from macd.host.systemd.supervisor import Supervisor

STATE = "alerts.json"
LOOP_LOCK = "alerts.lock"
_HOUR_S = 3600.0
_ROOM = 32 << 10  # bytes the file takes from the start, so that a full disk can't stop a rewrite
_LATE_S = 60.0
_END = "-alerts"  # of its units' names
_STARTS_S = 10.0
_TURN_S = 2.0


@dataclass(frozen=True)
class Memory:
    """What lasts from look to look. restarts: [when, systemd's count] of the last hour.

    beat: the bar that the last heartbeat was for. offset_s: see Facts. sending, beating: how the
    last message and the last heartbeat went, "" while there was none.
    """

    episodes: Episodes = field(default_factory=Episodes)
    restarts: tuple[tuple[float, int], ...] = ()
    beat: int | None = None
    offset_s: float | None = None
    sending: str = ""
    beating: str = ""


def look(layout: Layout, terms: Terms, now: float) -> str:
    """Look once, store, send. Returns "" or why the look could not be stored."""
    before = read(layout)
    before = replace(before, offset_s=_offset(layout, before.offset_s, terms))
    seen = gather(layout, terms, now, offset_s=before.offset_s)
    is_known = seen.process is not None and seen.process.loaded == "loaded"
    counted = ((now, seen.restarts),) if is_known else ()
    restarts = _of_last_hour((*before.restarts, *counted), now)
    facts = replace(seen, restarts=_increments(restarts))
    answers = conditions.judge(facts, terms)
    after = episodes.advance(
        before.episodes,
        answers,
        now,
        reports=webhook.is_set(layout),
        committed=facts.committed,
    )
    memory = replace(before, episodes=after, restarts=restarts)
    trouble = _store(layout, memory, terms, now)
    if trouble:
        return trouble
    _record(layout, before.episodes, after)
    sent = _send(layout, memory, facts)
    if sent != memory:
        trouble = _store(layout, sent, terms, now)
    return trouble


def _offset(layout: Layout, last: float | None, terms: Terms) -> float | None:
    """The last answer's; while that is too large it is asked for anew: no other answer may come."""
    if last is None or not terms.clock_s or abs(last) <= terms.clock_s:
        return last
    asked = webhook.offset(layout)
    return last if asked is None else asked


def _send(layout: Layout, memory: Memory, facts: Facts) -> Memory:
    """Send what is in the outbox, then the heartbeat for a new bar.

    It is one message, or where the webhook cuts long texts as few as hold all of it. While one
    can't be sent there is no heartbeat: whoever waits for it notices that.
    """
    while outbox := memory.episodes.outbox:
        message = _message(layout, outbox, facts)
        answer = webhook.post(layout, message)
        memory = _answered(replace(memory, sending=answer.outcome), answer)
        if answer.outcome != webhook.SENT:
            return memory
        left = outbox[len(message["alerts"]) :]
        memory = replace(memory, episodes=replace(memory.episodes, outbox=left))
    if facts.beat is not None and facts.beat != memory.beat:
        answer = webhook.beat(layout)
        memory = _answered(replace(memory, beating=answer.outcome), answer)
        if answer.outcome in (webhook.SENT, ""):
            memory = replace(memory, beat=facts.beat)
    return memory


def _answered(memory: Memory, answer: webhook.Answer) -> Memory:
    return memory if answer.offset_s is None else replace(memory, offset_s=answer.offset_s)


def _message(layout: Layout, outbox: tuple[episodes.Event, ...], facts: Facts) -> dict[str, Any]:
    """As many of the events as one message takes, the oldest first, and at least one."""
    host, most = socket.gethostname(), webhook.longest(layout)
    head = f"macd on {host} ({layout.app}):\n"
    text = head + episodes.message(outbox)
    while most is not None and len(outbox) > 1 and len(text.encode("utf-8", "replace")) > most:
        outbox = outbox[:-1]
        text = head + episodes.message(outbox)
    return {
        "text": text,
        "event": "alerts",
        "host": host,
        "app": layout.app,
        "release": facts.live,
        "alerts": [
            {**vars(event), "at": _iso(event.at), "since": _iso(event.since)} for event in outbox
        ],
        "at": _iso(facts.now),
    }


def send_test(app: str, who: str) -> dict[str, str]:
    """Send a message that says it is a test; answers {"outcome"} as `webhook.post` has it."""
    layout, host = Layout(durable.expand(app)), socket.gethostname()
    text = f"macd on {host} ({layout.app}): a test message, sent by {who}; nothing is wrong"
    message = {"text": text, "event": "test", "host": host, "app": layout.app}
    message |= {"at": _iso(time.time())}
    return {"outcome": webhook.post(layout, message).outcome}


def status(layout: Layout, supervisor: Supervisor, unit: str) -> dict[str, Any]:
    """What is open here, and whether anybody looks.

    Answers installed (whether the timer's unit is there), runs (whether it, or the loop, does),
    late (whether the last look is too long ago), checked (that look, or None), age_s, open
    ({"name", "since", "text", "hint"}), unsent (how many events could not be reported yet), sending
    and beating (how the last message and the last heartbeat went), left_out (what can't be looked
    at here, in words).
    """
    timer = timer_of(unit)
    document = _document(layout)
    every_s, checked = document.get("every_s"), document.get("checked")
    age = None
    with contextlib.suppress(TypeError, ValueError):
        age = time.time() - datetime.fromisoformat(str(checked)).timestamp()
    late = age is None or (isinstance(every_s, (int, float)) and age > 2 * every_s + _LATE_S)
    return {
        "installed": supervisor.unit_text(timer) is not None,
        "runs": is_running(layout, supervisor, timer),
        "late": late,
        "checked": checked,
        "age_s": age,
        "open": document.get("open", []),
        "unsent": len(document.get("outbox", [])),
        "sending": str(document.get("sending", "")),
        "beating": str(document.get("beating", "")),
        "left_out": conditions.left_out(_application(layout)),
    }


def _application(layout: Layout) -> Service:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return own.read(layout)
    return own.BUILT_IN


def timer_of(unit: str) -> str:
    """The timer beside a service: macd-analysis.service has macd-analysis-alerts.timer."""
    return f"{unit.removesuffix('.service')}{_END}.timer"


def is_running(layout: Layout, supervisor: Supervisor, timer: str) -> bool:
    """Whether the timer runs, or where there is none the loop."""
    if supervisor.has_timers():
        return supervisor.show(timer).active in ("active", "activating")
    return locks.holder_of(layout, LOOP_LOCK) is not None


def start(layout: Layout, supervisor: Supervisor, timer: str) -> None:
    """Start the timer, or anew with another text; where no systemd wakes timers, a loop."""
    if supervisor.has_timers():
        supervisor.stop(timer)
        supervisor.start(timer)
        return
    name = timer.removesuffix(".timer")
    argv = [sys.executable, "-I", "-S", layout.agent_archive, "alerts", "--app", layout.app]
    argv += ["--loop", f"unit={name.removesuffix(_END)}", f"scope={supervisor.scope}"]
    supervisor.run_detached(name, argv, layout.state("alerts.log"), keep_alive=False)
    deadline = time.monotonic() + _STARTS_S
    while not is_running(layout, supervisor, timer) and time.monotonic() < deadline:
        time.sleep(0.05)


def read(layout: Layout) -> Memory:
    """The memory of the last look; an empty one where the file is damaged: all begins anew."""
    document = _document(layout)
    if not document:
        return Memory()
    try:
        beat, offset = document["beat"], document["offset_s"]
        return Memory(
            episodes=episodes.from_json(document),
            restarts=tuple((float(at), int(count)) for at, count in document["restarts"]),
            beat=None if beat is None else int(beat),
            offset_s=None if offset is None else float(offset),
            sending=str(document["sending"]),
            beating=str(document["beating"]),
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        _print(f"{layout.state(STATE)} can't be understood; it begins anew")
        return Memory()


def _document(layout: Layout) -> dict[str, Any]:
    try:
        document = json.loads(durable.regular(layout.state(STATE), 4 << 20) or b"{}")
    except (ValueError, RecursionError, OSError):
        _print(f"{layout.state(STATE)} can't be read; it begins anew")
        return {}
    return document if isinstance(document, dict) else {}


def _store(layout: Layout, memory: Memory, terms: Terms, now: float) -> str:
    """Replace the file; on a full disk rewrite it in its own place. Returns why neither worked."""
    shown = [
        {"name": name, "since": _iso(one.since), "text": one.text, "hint": one.hint}
        for name, one in memory.episodes.open
    ]
    document = {
        "open": shown,
        "checked": _iso(now),
        "every_s": terms.every_s,
        "restarts": memory.restarts,
        **{name: getattr(memory, name) for name in ("beat", "offset_s", "sending", "beating")},
        **episodes.as_json(memory.episodes),
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)  # escapes take twice as much
    data = text.encode("utf-8", "replace").ljust(_ROOM) + b"\n"
    path = layout.state(STATE)
    try:
        try:
            durable.replace_file(path, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _rewrite(path, data)
    except OSError as error:
        return f"{path} can't be written: {error.strerror}"
    return ""


def _rewrite(path: str, data: bytes) -> None:
    """Over the old content, which needs no room. Raises OSError where it would."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(layout: Layout, before: Episodes, after: Episodes) -> None:
    was, now = dict(before.open), dict(after.open)
    with contextlib.suppress(HostError, OSError):
        for name in now.keys() - was.keys():
            record.recorder(layout)("alert.began", {"name": name, "text": now[name].text})
        for name in was.keys() - now.keys():
            record.recorder(layout)("alert.ended", {"name": name, "text": was[name].text})


def _of_last_hour(
    restarts: tuple[tuple[float, int], ...], now: float
) -> tuple[tuple[float, int], ...]:
    """Of a clock that was set back nothing is left over."""
    return tuple((at, count) for at, count in restarts if 0 <= now - at <= _HOUR_S)


def _increments(restarts: tuple[tuple[float, int], ...]) -> int:
    """How often systemd restarted it; a start by hand counts from 0 again."""
    pairs = itertools.pairwise(count for _, count in restarts)
    return sum(after - before if after >= before else after for before, after in pairs)


def _iso(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")


def terms_of(words: Sequence[str]) -> Terms:
    """`name=value` words as Terms; those of a newer macd are passed over. Raises ValueError."""
    known = {one.name: str if one.type == "str" else float for one in fields(Terms)}
    said = dict(word.split("=", 1) for word in words)
    values: dict[str, Any] = {n: known[n](value) for n, value in said.items() if n in known}
    return Terms(**values)


def words_of(terms: Terms) -> str:
    """The Terms as words of the unit's command line."""
    named = {one.name: getattr(terms, one.name) for one in fields(Terms)}
    return " ".join(
        f"{name}={value if isinstance(value, str) else f'{value:g}'}"
        for name, value in named.items()
    )


def main() -> int:
    """Look once. Exit 1: what was seen could not be stored."""
    parser = argparse.ArgumentParser(prog="macd-host alerts", description=__doc__)
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--loop", action="store_true", help="look again and again")
    parser.add_argument("terms", nargs="*", help="name=value")
    arguments = parser.parse_args(sys.argv[2:])
    layout = Layout(durable.expand(arguments.app))
    terms = terms_of(arguments.terms)
    os.umask(0o022)
    if arguments.loop:
        return _loop(layout, Supervisor(terms.scope), f"{terms.unit}{_END}.service")
    trouble = look(layout, terms, time.time())
    if trouble:
        _print(trouble)
    return int(bool(trouble))


def _loop(layout: Layout, supervisor: Supervisor, service: str) -> int:
    """What systemd would do for the timer, while its service's unit is there.

    Each look is a process of its own, so it runs what provision put there last.
    """
    try:
        with locks.locked(layout, LOOP_LOCK, {"who": "alerts", "doing": "looking"}):
            while text := supervisor.unit_text(service):
                (line,) = [row for row in text.splitlines() if row.startswith("ExecStart=")]
                words = shlex.split(line.removeprefix("ExecStart="))
                subprocess.run(words, stdin=subprocess.DEVNULL, check=False)
                every_s = terms_of([word for word in words if "=" in word]).every_s
                end = time.monotonic() + every_s
                while time.monotonic() < end and supervisor.unit_text(service) == text:
                    time.sleep(min(_TURN_S, every_s))
    except HostError as error:
        _print(str(error))  # another loop runs, and sees the new unit
    return 0


def _print(text: str) -> None:
    sys.stderr.write(f"macd alerts: {text}\n")
