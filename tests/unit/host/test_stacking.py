"""Who decides on a host: what wins over .env, and whose watch still counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.host import record
from macd.host.flag.flag_file import beside
from macd.host.flag.guard_config import guard_of, stacking_state
from macd.host.layout import Layout
from macd.host.systemd.supervisor import Process, Supervisor

NOW = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
GONE = Process("inactive", "dead", 0, "", 0, "success", "enabled", "loaded")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "state").mkdir()
    return Layout(str(tmp_path))


def ordered(layout: Layout, state: str, release: str = "r1") -> None:
    order = {"state": state, "release": release, "since": NOW}
    Path(layout.state("guard.json")).write_text(json.dumps(order))


def flipped(layout: Layout, wanted: str) -> None:
    path = layout.state("journal.jsonl")
    record.append(path, "flag.set", {"wanted": wanted, "who": "ann"}, now=datetime.now(UTC))


def test_a_watch_to_the_end_counts_until_stacking_was_disabled(layout: Layout) -> None:
    assert guard_of(layout, "r1") == "none"
    ordered(layout, "over")
    flipped(layout, "1")
    assert guard_of(layout, "r1") == "watches"
    assert guard_of(layout, "r2") == "none"
    flipped(layout, "0")  # whoever appends the flag to .env now has no evidence
    assert guard_of(layout, "r1") == "none"
    ordered(layout, "failed")
    assert guard_of(layout, "r1") == "none"


class Systemd(Supervisor):
    """Answers `systemctl show` for one unit."""

    said = ""

    def _call(self, *words: str, check: bool = True) -> str:
        assert words[0] == "show"
        return self.said


@pytest.mark.parametrize(
    ("ours", "said", "upcoming", "wins"),
    [
        (b"ML_ENABLE_STACKING=0\n", "", "0", []),
        (b"ML_ENABLE_STACKING=yes\n", "EnvironmentFiles={env} (ignore_errors=yes)\n", "?", []),
        (b"", 'Environment=A=1 ML_ENABLE_STACKING=1 "B=x y"\n', "1", ["Environment= of u"]),
        (b"ML_ENABLE_STACKING=0\n", "Environment=ML_ENABLE_STACKING=1\n", "0", []),
        (
            b"ML_ENABLE_STACKING=0\n",
            "EnvironmentFiles={env} (ignore_errors=yes)\nEnvironmentFiles={top}/x*.env\n",
            "1",
            ["{top}/x1.env"],
        ),
        (
            b"ML_ENABLE_STACKING=0\n",
            "EnvironmentFiles={top}/x1.env (ignore_errors=no)\nEnvironmentFiles={env}\n",
            "0",
            [],
        ),
        (b"ML_ENABLE_STACKING=1\n\0", "EnvironmentFiles={env}\n", "0", []),
        (b"ML_ENABLE_STACKING=0\n", "Environment='A\nEnvironmentFiles={top}/none\n", "0", []),
    ],
)
def test_the_last_that_sets_it_counts(
    layout: Layout, tmp_path: Path, ours: bytes, said: str, upcoming: str, wins: list[str]
) -> None:
    names = {"env": layout.env, "top": str(tmp_path)}
    Path(layout.env).write_bytes(ours)
    (tmp_path / "x1.env").write_bytes(b"ML_ENABLE_STACKING=1\r\nSECRET=hunter2\n")
    systemd = Systemd("system")
    object.__setattr__(systemd, "said", said.format(**names))
    told: dict[str, Any] = stacking_state(layout, systemd, "u", GONE, "unix:/nowhere")
    assert told["next"] == upcoming
    assert told["running"] is None
    assert beside(layout, systemd, "u") == [one.format(**names) for one in wins]
    assert "hunter2" not in json.dumps(told)
