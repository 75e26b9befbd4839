"""Instances of the built-in application: their units, what they say together, and their flag."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.host.deploy.instances import InstanceState, together
from macd.host.deploy.probe import prover_of
from macd.host.flag import flag_file
from macd.host.flag.flag_file import BUILT_IN, Switch
from macd.host.flag.guard_config import stacking_state
from macd.host.layout import Layout
from macd.host.own import instance_endpoint, parse
from macd.host.systemd.supervisor import Process, Supervisor

TEMPLATE = "# Written by macd from templates/service.unit.j2 for every instance: %i\n[Install]\n"
UNITS = ["a@BTCUSD.service", "a@ETHUSD.service"]
SETTINGS = {"symbol": "BTCUSD", "symbols": ["BTCUSD", "ETHUSD"], "endpoint": "unix:/r/health.sock"}


class Systemd(Supervisor):
    """Makes and removes the links that systemctl would, of units in a directory."""

    @property
    def unit_directory(self) -> str:
        return os.environ["UNITS"]

    def _call(self, *words: str, check: bool = True) -> str:
        links = Path(self.unit_directory, "multi-user.target.wants")
        links.mkdir(parents=True, exist_ok=True)
        if words[0] == "enable":
            (links / words[1]).symlink_to("anywhere")
        elif words[0] == "disable":
            (links / words[-1]).unlink(missing_ok=True)
        elif words[0] == "show":
            return os.environ.get("SAID", "")
        return ""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setenv("UNITS", str(tmp_path / "units"))
    (tmp_path / "units").mkdir()
    return Systemd("system")


def files(systemd: Systemd) -> set[str]:
    return {path.name for path in Path(systemd.unit_directory).iterdir() if path.is_file()}


def test_instances_share_a_file_that_goes_with_the_last(systemd: Systemd) -> None:
    assert [systemd.unit_text(unit) for unit in UNITS] == [None, None]
    systemd.install(dict.fromkeys(UNITS, TEMPLATE))
    assert files(systemd) == {"a@.service"}
    assert [systemd.unit_text(unit) for unit in UNITS] == [None, None]  # not before it is enabled
    for unit in UNITS:
        systemd.enable(unit)
    assert [systemd.unit_text(unit) for unit in UNITS] == [TEMPLATE, TEMPLATE]
    assert systemd.instances("a") == UNITS

    systemd.disable(UNITS[1])
    assert systemd.install({UNITS[0]: TEMPLATE, UNITS[1]: None}) == []
    assert [systemd.unit_text(unit) for unit in UNITS] == [TEMPLATE, None]
    systemd.disable(UNITS[0])
    systemd.install(dict.fromkeys(UNITS))
    assert files(systemd) == set()


def test_a_template_whose_instances_were_never_enabled_goes_too(systemd: Systemd) -> None:
    """As a kill between the two steps leaves it."""
    systemd.install(dict.fromkeys(UNITS, TEMPLATE))
    systemd.install(dict.fromkeys(UNITS))
    assert files(systemd) == set()


def test_a_file_of_an_instance_itself_gives_way_to_the_template(systemd: Systemd) -> None:
    by_hand = Path(systemd.unit_directory, UNITS[0])
    by_hand.write_text("[Service]\n")
    assert systemd.unit_text(UNITS[0]) == "[Service]\n"
    systemd.install(dict.fromkeys(UNITS, TEMPLATE))
    assert files(systemd) == {"a@.service"}


def test_templates_and_units_of_others_stay_as_they_are(systemd: Systemd) -> None:
    """A team may have called its one unit so, or have a template of its own."""
    Path(systemd.unit_directory, "a@.service").write_text("[Service]\n")
    systemd.enable(UNITS[0])
    assert systemd.unit_text(UNITS[0]) is None
    systemd.install({UNITS[0]: "# Written by macd from templates/own.service.unit.j2; by\n"})
    assert files(systemd) == {"a@.service", UNITS[0]}
    systemd.install({UNITS[0]: None})
    assert files(systemd) == {"a@.service"}


def test_settings_say_which_instances_there_are() -> None:
    service = parse(json.dumps({**SETTINGS, "instances": "a"}))
    assert (service.name, service.unit, list(service.units)) == ("", UNITS[0], UNITS)
    endpoints = [one.endpoint for one in service.instances.values()]
    assert endpoints == ["unix:/r/health-BTCUSD.sock", "unix:/r/health-ETHUSD.sock"]
    one = parse(json.dumps({"symbol": "BTCUSD", "endpoint": "unix:/r/x.sock", "instances": "a"}))
    assert list(one.units) == UNITS[:1]
    assert parse(json.dumps(SETTINGS)).units == {}
    assert instance_endpoint("unix:/run/a.sock", "X") == "unix:/run/a-X.sock"


def test_a_process_is_asked_where_its_own_settings_say(systemd: Systemd, tmp_path: Path) -> None:
    """A revert goes back over a change of the address."""
    layout = Layout(str(tmp_path))
    before = prover_of(layout, parse(json.dumps(SETTINGS)), systemd, "a.service", "127.0.0.1:1")
    assert (before.unit, before.endpoint) == ("a.service", "unix:/r/health.sock")
    assert prover_of(layout, parse(None), systemd, "a.service", "x").endpoint == "x"


def process(active: str = "active", pid: int = 7) -> Process:
    return Process(active, "running", pid, "i", 0, "success", "enabled", "loaded")


def answer(**more: Any) -> dict[str, Any]:
    golden = {"ok": True, "max_diff": 1e-7, "detail": "agree"}
    feed = {"state": "up", "last_arrival": 5.0}
    known = {"release": "r", "pid": 7, "status": "ok", "stacking": "shadow", "stacking_weight": 0}
    bar = "2026-03-01T00:00:00Z"
    return {**known, "golden": golden, "feed": feed, "last_bar": bar, "seq": 3, **more}


def test_what_all_of_them_say_reads_as_one_process_of_all_symbols() -> None:
    later = answer(pid=8, last_bar="2026-03-01T01:00:00Z", last_error="feed: gone", seq=9)
    states = [
        InstanceState(UNITS[0], "BTCUSD", process(), answer(), ""),
        InstanceState(UNITS[1], "ETHUSD", process(pid=8), later, ""),
    ]
    said = together(states, {UNITS[0]: 4.0})
    assert (said["status"], said["release"], said["pid"]) == ("ok", "r", 7)
    assert (said["last_bar"], said["last_error"]) == ("2026-03-01T01:00:00Z", "ETHUSD: feed: gone")
    assert said["golden"] == {
        "ok": True,
        "max_diff": 1e-7,
        "detail": "the golden predictions of 2 symbols agree",
    }
    assert {name: one["seq"] for name, one in said["symbols"].items()} == {"BTCUSD": 3, "ETHUSD": 9}
    unit = {"pid": 7, "active": "active", "restarts": 0, "since": 4.0, "wrong": ""}
    assert said["units"][UNITS[0]] == unit
    assert "seq" not in said  # each numbers its own lines


def test_one_that_is_down_is_named_and_the_others_still_answer() -> None:
    down = InstanceState(
        UNITS[1], "ETHUSD", process("failed", 0), {"unreachable": "no socket"}, "it is failed"
    )
    said = together([InstanceState(UNITS[0], "BTCUSD", process(), answer(), ""), down], {})
    assert (said["status"], said["last_error"]) == ("failed", "a@ETHUSD.service: it is failed")
    assert said["symbols"]["BTCUSD"]["ok"] and not said["symbols"]["ETHUSD"]["ok"]
    assert together([down], {})["unreachable"] == "a@ETHUSD.service: it is failed"


def test_all_of_them_obey_the_flag(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    Path(layout.service_settings).write_text(json.dumps({**SETTINGS, "instances": "a"}))
    switch = Switch(layout, BUILT_IN, systemd, "a.service")
    assert switch.units == UNITS
    monkeypatch.setenv("SAID", "Environment=ML_ENABLE_STACKING=1\n")
    assert switch.beside() == ["Environment= of a@BTCUSD.service"]
    monkeypatch.setenv("SAID", f"MainPID={os.getpid()}\n")
    assert [where for _, where in switch.processes("unix:/r/health.sock")] == [
        "unix:/r/health-BTCUSD.sock",
        "unix:/r/health-ETHUSD.sock",
    ]
    Path(layout.service_settings).write_text("{")  # then systemd knows them
    assert switch.units == ["a.service"]
    for unit in UNITS:
        systemd.enable(unit)
    assert switch.units == UNITS


def test_a_flag_leaves_alone_what_somebody_stopped_and_disabled(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    Path(layout.service_settings).write_text(json.dumps({**SETTINGS, "instances": "a"}))
    switch = Switch(layout, BUILT_IN, systemd, "a.service")
    away = process("inactive", 0)
    shown = {UNITS[0]: replace(away, enabled="disabled"), UNITS[1]: process()}
    monkeypatch.setattr(Systemd, "show", lambda _, unit: shown[unit])
    assert switch.units == UNITS[1:]
    shown[UNITS[0]] = away  # stopped, and yet to be started with the next boot
    assert switch.units == UNITS
    shown = {unit: replace(away, enabled="masked") for unit in UNITS}
    assert switch.units == UNITS


def test_others_say_how_stacking_decides_where_the_first_is_away(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    (tmp_path / "state").mkdir()
    Path(layout.service_settings).write_text(json.dumps({**SETTINGS, "instances": "a"}))
    decides = {"ML_ENABLE_STACKING": "1", "ML_STACKING_WEIGHT": "30"}
    said: list[dict[str, str] | None] = [None, decides]
    monkeypatch.setattr(flag_file, "of_process", lambda *_, **__: said.pop(0))
    state = stacking_state(layout, systemd, "a.service", "unix:/r/health.sock")
    assert (state["running"], state["weight"]["running"]) == ("1", 30)


def test_one_that_starts_does_not_hide_another_that_fails() -> None:
    loads = answer(pid=8, status="starting", golden=None, release=None)
    starting = InstanceState(UNITS[0], "BTCUSD", process(pid=8), loads, "it is still loading r")
    well = InstanceState(UNITS[1], "ETHUSD", process(), answer(), "")
    away = InstanceState(UNITS[1], "ETHUSD", process(), {"unreachable": "timed out"}, "timed out")
    assert together([starting, well], {})["status"] == "starting"
    assert together([starting, away], {})["status"] == "failed"
