"""What a user's systemd would end at logout is not begun there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macd.host.failure import HostError
from macd.host.systemd import detach
from macd.host.systemd.supervisor import Supervisor


def test_no_activation_begins_that_logging_out_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.run", lambda *words, **_: started.append(words))
    monkeypatch.setattr("subprocess.Popen", lambda *words, **_: started.append(words))
    monkeypatch.setattr(Supervisor, "has_timers", lambda _: True)
    monkeypatch.setattr(detach, "lingers", lambda: False)
    with pytest.raises(HostError) as caught:
        Supervisor("user").run_detached("name", ["true"], str(tmp_path / "log"))
    assert "loginctl enable-linger" in caught.value.hint
    assert started == []


def test_drop_ins_of_every_place_are_told_with_what_they_set_and_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    written = {
        ".config/systemd/user/a-b.service.d/x.conf": "[Service]\n# User=no\nEnvironment=T=s3cret\n"
        "User=you\nEnvironment=T=s3cret\n",
        "run/systemd/user/a-.service.d/y.conf": "",
        "run/systemd/user/a-.service.d/y.conf.bak": "[Service]\nUser=you\n",
        ".config/systemd/user/other.service.d/z.conf": "[Service]\nUser=you\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in written]
    assert Supervisor("user").dropins(["a-b.service", "a-b.socket"]) == {
        "a-b.service": [
            {"path": paths[0], "sets": ["Environment", "User"]},
            {"path": paths[1], "sets": []},
        ]
    }


def test_of_each_line_its_life_and_time_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """journald does not know the life of a process that was gone when it read its line."""
    entries = [
        {"MESSAGE": "old", "_SYSTEMD_INVOCATION_ID": "a", "__REALTIME_TIMESTAMP": "1500000"},
        {"MESSAGE": "gone too soon", "__REALTIME_TIMESTAMP": "2000000"},
        {"MESSAGE": [98, 121, 255], "_SYSTEMD_INVOCATION_ID": "b"},
        {"MESSAGE": "Failed with result", "INVOCATION_ID": "b", "_SYSTEMD_INVOCATION_ID": "pid1"},
    ]
    program, printed = tmp_path / "journalctl", tmp_path / "printed"
    printed.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    program.write_text(f"#!/bin/sh\ncat {printed}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    systemd, seen = Supervisor("system"), []
    assert systemd.log("x.service", 20, lambda *line: not seen.append(line)) == [
        *("old", "gone too soon", "by\N{REPLACEMENT CHARACTER}", "Failed with result")
    ]
    assert seen == [("a", 1.5), ("", 2.0), ("b", 0.0), ("b", 0.0)]
    assert systemd.last_line("x.service", lambda life, _: life == "a") == "old"
    assert systemd.last_line("x.service", lambda life, at: not life and at >= 2) == "gone too soon"
    assert systemd.last_line("x.service", lambda life, at: not life and at > 2) == ""
