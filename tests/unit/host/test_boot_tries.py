"""At boot a disk that comes late is waited for: two tries were given up after one second."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from macd.host import __main__ as program
from macd.host.flag import flag


@pytest.mark.parametrize(("failures", "ends"), [(0, 0), (6, 0), (99, 1)])
def test_it_tries_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, ends: int
) -> None:
    waited: list[float] = []

    def resume(*_: object, **__: object) -> str:
        if len(waited) < failures:
            raise OSError("no space left on device")
        return "reverted"

    monkeypatch.setattr(program.activation, "resume", resume)
    monkeypatch.setattr(flag, "recover", lambda *_, **__: "nothing")
    monkeypatch.setattr(program.time, "sleep", waited.append)
    monkeypatch.setattr(sys, "argv", ["x", "recover", "--booting", "--app", str(tmp_path)])
    assert program.main() == ends
    assert sum(waited) <= 61
    if ends:
        assert sum(waited) > 60
