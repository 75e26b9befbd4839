"""What a look sees of a directory: each thing alone, and log lines by a child without rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from macd.host.alerts import facts
from macd.host.alerts.conditions import Terms
from macd.host.flag import guard, guard_config
from macd.host.judge import reading
from macd.host.layout import Layout
from macd.host.own import Probe, Service, Signals
from macd.host.systemd.supervisor import Process, Supervisor
from tests.support import signal_lines

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
TERMS = Terms(unit="trial")
RUNS = Process("inactive", "dead", 0, "", 0, "success", "enabled", "loaded")


def written(live: Path, day: int, *raw: bytes) -> None:
    live.mkdir(parents=True, exist_ok=True)
    (live / f"trades_202603{day:02}.jsonl").write_bytes(b"".join(raw))


def line(seq: int, **over: object) -> bytes:
    (made,) = signal_lines.lines(1, end=NOW, first_seq=seq)
    return json.dumps({**made, **over}).encode() + b"\n"


def test_the_newest_signal_is_found_behind_what_is_none(tmp_path: Path) -> None:
    live = tmp_path / "live"
    written(live, 1, line(1), line(2))
    warned = json.dumps(signal_lines.warning("gap", None, at=NOW, seq=3)).encode() + b"\n"
    written(live, 2, warned, b"{junk\n", b"[" * 70_000 + b"\n", line(9)[:40])
    newest = reading.newest_signal(live)
    assert newest is not None and newest.seq == 2
    written(live, 2, warned, line(4), b"\0" * 200_000, b"\n")
    signal = reading.newest_signal(live)
    assert signal is not None and signal.seq == 4
    written(live, 3, line(5, bar_time=None))
    again = reading.newest_signal(live)
    assert again is not None and again.seq == 4


def test_a_child_reads_the_lines(tmp_path: Path) -> None:
    """In a process of its own: a fork of pytest would be larger than the bound on memory."""
    written(tmp_path, 2, line(7))
    program = (
        "import sys; from pathlib import Path; from macd.host.alerts import facts\n"
        "print(facts.newest(Path(sys.argv[1])))"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    written_ms = round(NOW.timestamp() * 1000)
    assert said.startswith("Newest(bar=") and f"written={written_ms}, tf='1h')" in said


def test_what_can_not_be_read_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    (tmp_path / "state").mkdir()
    (tmp_path / "service.json").write_text("{")
    (tmp_path / "state/guard.json").write_text("{")
    (tmp_path / "current").write_text("no link")
    monkeypatch.setattr(Supervisor, "show", lambda *_: RUNS)
    seen = facts.gather(layout, TERMS, NOW.timestamp(), offset_s=3.0)
    unread = " ".join(seen.unread)
    for what in ("the live release", "service.json", "the guard", "accepts.json"):
        assert what in unread
    assert seen.live is None and seen.service == {} and seen.health == {}
    assert seen.process == RUNS and seen.offset_s == 3.0
    assert seen.disk is not None and seen.disk.total > 0


def test_a_guard_counts_while_there_is_something_to_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback leaves a watch behind until the guard's next look."""
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(Supervisor, "show", lambda *_: RUNS)
    monkeypatch.setattr(guard_config, "guard_of", lambda *_: "dead")
    monkeypatch.setattr(guard_config, "unjudged", lambda *_: "could not judge, 1 of 3: x")
    for needed, said in ((True, ("dead", "could not judge, 1 of 3: x")), (False, ("none", ""))):
        monkeypatch.setattr(guard, "is_needed", lambda *_, needed=needed: needed)
        seen = facts.gather(Layout(str(tmp_path)), TERMS, NOW.timestamp())
        assert (seen.guard, seen.unjudged) == said


def test_a_service_that_does_not_run_is_asked_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket would start it."""
    layout = Layout(str(tmp_path))
    (tmp_path / "state").mkdir()
    (tmp_path / "service.json").write_text('{"endpoint": "127.0.0.1:1"}')
    (tmp_path / "current").symlink_to("releases/20260301T000000Z-00000000")
    monkeypatch.setattr(Supervisor, "show", lambda *_: RUNS)
    assert facts.gather(layout, TERMS, NOW.timestamp()).health == {}
    running = Process("active", "running", 7, "a", 0, "success", "enabled", "loaded")
    monkeypatch.setattr(Supervisor, "show", lambda *_: running)
    assert "unreachable" in facts.gather(layout, TERMS, NOW.timestamp()).health


def test_a_systemctl_that_says_nothing_is_no_service_that_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(Supervisor, "show", lambda *_: Process("", "", 0, "", 0, "", "", ""))
    seen = facts.gather(Layout(str(tmp_path)), TERMS, NOW.timestamp())
    assert seen.process is None
    assert "the service's process (systemctl says nothing of it)" in seen.unread


class Page(BaseHTTPRequestHandler):
    answers = 200

    def do_GET(self) -> None:
        self.send_response(self.answers)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_own_application_is_seen_by_its_units_its_page_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    (tmp_path / "state").mkdir()
    (tmp_path / "logs").mkdir()
    for name, at in (("a.jsonl", 1_000_000), ("b.jsonl", 2_000_000), ("c.txt", 3_000_000)):
        (tmp_path / "logs" / name).write_text("{not even json")
        os.utime(tmp_path / "logs" / name, (at, at))
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/health"
        units = {"bot.service": Probe(http=url), "bot-web.service": Probe(running=5)}
        service = Service("bot", units, signals=Signals("logs/*.jsonl", "SIGNAL"))
        document = {"tf": "1h", "own": service.document()}
        (tmp_path / "service.json").write_text(json.dumps(document))
        shown = {unit: replace(RUNS, active="active", pid=7, restarts=2) for unit in units}
        monkeypatch.setattr(Supervisor, "show", lambda _, unit: shown[unit])
        monkeypatch.setattr(facts, "live_release", lambda _: "20260301T000000Z-00000000")

        def look() -> facts.Facts:
            return facts.gather(layout, Terms(unit="bot"), NOW.timestamp())

        seen = look()
        assert (seen.signals, seen.written, seen.beat) == ("logs/*.jsonl", 2e6, 2_000_000_000)
        assert (seen.health, seen.restarts) == ({"status": "ok"}, 4)
        Page.answers = 503
        assert "answers 503" in look().health["last_error"]
        shown["bot-web.service"] = replace(RUNS, active="failed", result="exit-code")
        assert "bot-web.service is failed (exit-code)" in look().health["last_error"]
        server.shutdown()


def test_an_instance_that_was_stopped_and_disabled_is_not_meant_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are looked at all the same, also where it is the first."""
    layout = Layout(str(tmp_path))
    (tmp_path / "state").mkdir()
    settings = {"symbol": "A", "symbols": ["A", "B"], "endpoint": "unix:/nowhere/h.sock"}
    (tmp_path / "service.json").write_text(json.dumps({**settings, "instances": "m"}))
    first, second = "m@A.service", "m@B.service"
    away = replace(RUNS, active="inactive", pid=0, enabled="disabled")
    shown = {first: away, second: replace(RUNS, active="active", restarts=2)}
    monkeypatch.setattr(Supervisor, "show", lambda _, unit: shown[unit])
    monkeypatch.setattr(facts, "live_release", lambda _: "20260301T000000Z-00000000")
    monkeypatch.setattr(facts.releases, "manifest_sha256", lambda *_: "0" * 64)

    def look() -> facts.Facts:
        return facts.gather(layout, Terms(unit="m"), NOW.timestamp())

    seen = look()
    assert (seen.process, seen.unit, seen.restarted) == (shown[second], "", {second: 2})
    assert list(seen.health["units"]) == [second]
    shown[second] = replace(RUNS, active="failed")
    assert look().unit == second
    shown[second] = away  # nothing is meant to run
    assert look().process == away
