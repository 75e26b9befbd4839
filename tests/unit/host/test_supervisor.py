"""What a user's systemd would end at logout is not begun there."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.host import detach
from macd.host.failure import HostError
from macd.host.supervisor import Supervisor


def test_no_activation_begins_that_logging_out_would_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    monkeypatch.setattr("subprocess.run", lambda *words, **_: begun.append(words))
    monkeypatch.setattr("subprocess.Popen", lambda *words, **_: begun.append(words))
    monkeypatch.setattr(Supervisor, "_has_systemd_run", lambda _: True)
    monkeypatch.setattr(detach, "lingers", lambda: False)
    with pytest.raises(HostError) as told:
        Supervisor("user").run_detached("name", ["true"], str(tmp_path / "log"))
    assert "loginctl enable-linger" in told.value.hint
    assert begun == []
