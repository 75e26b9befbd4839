"""Who decides on a host: what wins over .env, and whose watch still counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.deploy.drift import about_stacking, about_unknown_weight
from macd.host import record
from macd.host.flag.flag_file import beside
from macd.host.flag.guard_config import guard_of, stacking_state
from macd.host.layout import Layout
from macd.host.own import Flag
from macd.host.systemd.supervisor import Supervisor

NOW = datetime(2026, 3, 2, tzinfo=UTC).timestamp()


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
    state: dict[str, Any] = stacking_state(layout, systemd, "u", "unix:/nowhere")
    assert state["next"] == upcoming
    assert state["running"] is None
    assert beside(layout, systemd, "u") == [one.format(**names) for one in wins]
    assert "hunter2" not in json.dumps(state)


WEIGHED = "EnvironmentFiles={env}\nEnvironmentFiles={top}/x*.env\n"


@pytest.mark.parametrize(
    ("ours", "beside", "expected"),
    [
        (b"ML_ENABLE_STACKING=1\n", b"", (100, [], [])),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\n", b"", (25, ["25"], [])),
        (
            b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\nML_STACKING_WEIGHT=50\n",
            b"",
            (50, ["25", "50"], []),
        ),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=hunter2\n", b"", (None, ["?"], [])),
        (b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=\n", b"", (None, ["?"], [])),
        (
            b"ML_ENABLE_STACKING=1\nML_STACKING_WEIGHT=25\n",
            b"ML_STACKING_WEIGHT=99\n",
            (99, ["25"], [{"where": "{top}/x1.env", "value": "99"}]),
        ),
        (b"ML_ENABLE_STACKING=0\nML_STACKING_WEIGHT=25\n", b"", (0, ["25"], [])),
    ],
)
def test_the_weight_in_env_and_beside_it(
    layout: Layout, tmp_path: Path, ours: bytes, beside: bytes, expected: tuple[Any, ...]
) -> None:
    Path(layout.env).write_bytes(ours)
    (tmp_path / "x1.env").write_bytes(beside)
    systemd = Systemd("system")
    said = WEIGHED.format(env=layout.env, top=tmp_path)
    object.__setattr__(systemd, "said", said)
    state: dict[str, Any] = stacking_state(layout, systemd, "u", "unix:/nowhere")
    upcoming, in_file, places = expected
    places = [{**one, "where": one["where"].format(top=tmp_path)} for one in places]
    weight = state["weight"]
    assert (weight["next"], weight["in_file"], weight["beside"]) == (upcoming, in_file, places)
    assert (weight["running"], weight["covered"], weight["steps"]) == (None, 0, [])
    assert "hunter2" not in json.dumps(state)


def said(**weight: Any) -> dict[str, Any]:
    known = {"in_file": ["25"], "beside": [], "next": 25, "running": 25, "covered": 25, "steps": []}
    return {
        "in_file": ["1"], "unread": "", "passed_over": [], "beside": [], "next": "1",
        "running": "1", "guard": "watches", "changing": False, "weight": {**known, **weight},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ({}, []),
        ({"covered": 100}, []),  # a watch of an earlier version, or one that was lowered
        (
            {"next": 50, "in_file": ["25", "50"], "covered": 50},
            [".env says ML_STACKING_WEIGHT=50 (twice), the process 25"],
        ),
        (
            {"next": None, "running": None},
            [
                "ML_STACKING_WEIGHT of the next start is no whole number from 1 to 100: the service"
                " takes shadow",
                "ML_STACKING_WEIGHT of the running process is no whole number from 1 to 100: the"
                " service takes shadow",
            ],
        ),
        (
            {"next": 100, "running": 100},
            ["stacking decides with 100 %, its evidence is for 25 %"],
        ),
        (
            {"next": 75, "in_file": ["75"]},
            [
                ".env says ML_STACKING_WEIGHT=75, the process 25",
                "from the next start on stacking would decide with 75 %, its evidence is for 25 %",
            ],
        ),
        (
            {"beside": [{"where": "/etc/x.env", "value": "25"}]},
            ["/etc/x.env sets ML_STACKING_WEIGHT=25; only .env may"],
        ),
    ],
)
def test_what_is_wrong_with_a_weight_is_said(weight: dict[str, Any], expected: list[str]) -> None:
    assert about_stacking(said(**weight)) == expected
    assert about_stacking({**said(), "next": "0", "running": "0"}) == []


THEIRS = Flag("USE_STACK", "on", "off", "dropin")


def test_a_flag_of_ones_own_is_told_in_its_own_words_and_place(
    layout: Layout, tmp_path: Path
) -> None:
    """Before the first deploy the host learns from the inventory which flag it is."""
    systemd = Systemd("system")
    object.__setattr__(systemd, "said", "Environment=ML_ENABLE_STACKING=1 USE_STACK=on\n")
    state = stacking_state(layout, systemd, "u", "unix:/nowhere", THEIRS)
    assert (state["flag"]["name"], state["next"], state["beside"]) == ("USE_STACK", "1", [])
    assert stacking_state(layout, systemd, "u", "unix:/nowhere", None) == {}
    (tmp_path / "x1.env").write_text("USE_STACK=on\n")
    object.__setattr__(systemd, "said", f"EnvironmentFiles={tmp_path}/x1.env\n")
    state = stacking_state(layout, systemd, "u", "unix:/nowhere", THEIRS)
    state |= {"running": "0", "guard": "watches"}
    assert about_stacking(state)[:2] == [
        f"{tmp_path}/x1.env sets USE_STACK=on; only the drop-in may",
        f"{tmp_path}/x1.env says USE_STACK=on, the process off",
    ]
    state |= {"beside": [], "next": "0", "running": "1"}
    assert about_stacking(state)[0] == "the drop-in says USE_STACK=off, the process on"


@pytest.mark.parametrize(
    ("running", "health", "knows_none"),
    [
        (25, {"release": "r", "stacking_weight": 25}, False),
        (25, {"release": "r"}, True),
        (100, {"release": "r"}, False),
        (None, {"release": "r"}, True),
        (25, {"unreachable": "it is down"}, False),
    ],
)
def test_a_release_that_knows_no_weights_is_found_out(
    running: int | None, health: dict[str, Any], *, knows_none: bool
) -> None:
    notes = about_unknown_weight(said(running=running), health)
    assert notes == (
        ["the live release knows no ML_STACKING_WEIGHT: stacking decides with 100 %"]
        if knows_none
        else []
    )
