"""What a user's systemd would end at logout is not begun there."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.host.failure import HostError
from macd.host.systemd import detach
from macd.host.systemd.supervisor import Supervisor


def test_no_activation_begins_that_logging_out_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr("subprocess.run", lambda *words, **_: begun.append(words))
    monkeypatch.setattr("subprocess.Popen", lambda *words, **_: begun.append(words))
    monkeypatch.setattr(Supervisor, "has_timers", lambda _: True)
    monkeypatch.setattr(detach, "lingers", lambda: False)
    with pytest.raises(HostError) as told:
        Supervisor("user").run_detached("name", ["true"], str(tmp_path / "log"))
    assert "loginctl enable-linger" in told.value.hint
    assert begun == []


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
