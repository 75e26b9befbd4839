"""Diffs of what stands on a host: every change is seen, no secret is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from macd import application
from macd.deploy.desired import Desired
from macd.deploy.drift import Diff, differing, drift, is_about_units, unified
from macd.deploy.state import HostState
from macd.inventory.models import ServiceSettings

BUILT_IN = application.built_in(ServiceSettings())
BASE = json.loads((Path(__file__).parents[2] / "cases" / "plan" / "base.json").read_text())


def differs(*, new: bool = False, desired: Any = None, **facts: Any) -> list[Diff]:
    host_state = HostState(**{**BASE["facts"], **facts})
    return differing(
        host_state, Desired(**{**BASE["desired"], **(desired or {})}, application=BUILT_IN), new=new
    )


def test_a_secret_that_changes_is_seen_to_change_and_not_shown() -> None:
    diff = unified("MODE=a\nAPI_TOKEN=old1\n", "MODE=a\nAPI_TOKEN=new2\n", ".env")
    assert diff.splitlines()[-2:] == ["-API_TOKEN=••••", "+API_TOKEN=••••"]
    before, after = (json.dumps({"tokens": ["x", secret]}, indent=1) for secret in ("old1", "new2"))
    diff = unified(before, after, "service.json")
    assert {"-••••", "+••••"} <= set(diff.splitlines())
    assert "old1" not in diff
    assert "new2" not in diff


def test_units_and_settings_are_shown_without_what_was_put_there_by_hand() -> None:
    name = "macd-analysis.service"
    units = {**BASE["facts"]["units"], name: "[Service]\nEnvironment=TOKEN=s3cret\n"}
    settings = '{\n "proxy": "http://bob:s3cret@proxy",\n "symbol": "BTCUSD"\n}\n'
    diffs = {diff.name: diff for diff in differs(units=units, service_settings=settings)}
    assert diffs[name].text.count("TOKEN=••••") == 1
    assert "http://••••@proxy" in diffs["service.json"].text
    assert "s3cret" not in repr(diffs)


def test_the_flags_file_shows_what_a_deploy_and_what_provision_would_change() -> None:
    env = "ML_ENABLE_STACKING=1\nAPI_TOKEN=s3cret\nTHEIRS=x\nML_STACKING_MIN_SAMPLES=9\n"
    flags = {"flags": {"ML_ENABLE_STACKING": "0", "ML_STACKING_MIN_SAMPLES": "50"}}
    deploys, provisions = differs(new=True, env=env, desired=flags)
    assert (deploys.name, deploys.by) == (".env", "deploy")
    assert "-ML_ENABLE_STACKING=1\n+ML_ENABLE_STACKING=0" in deploys.text
    assert (provisions.name, provisions.by) == (".env", "provision")
    assert "-ML_STACKING_MIN_SAMPLES=9\n+ML_STACKING_MIN_SAMPLES=50" in provisions.text
    assert "s3cret" not in deploys.text + provisions.text
    assert "THEIRS" not in deploys.text + provisions.text
    [only] = differs(new=False, env=env, desired=flags)  # the same release keeps its flags
    assert only.by == "provision"
    assert "hidden" not in only.text
    flags["flags"]["API_TOKEN"] = "other"
    [only] = differs(new=False, env=env, desired=flags)
    assert only.text.endswith("+ML_STACKING_MIN_SAMPLES=50\nvalues of API_TOKEN change (hidden)")
    assert "other" not in only.text


def test_keys_that_may_sign_are_shown_for_provision_to_put_right() -> None:
    ours = "release@test ssh-ed25519 AAAA\n"
    [diff] = differs(
        allowed_signers=f"{ours}mallory@test ssh-ed25519 BBBB\n", desired={"allowed_signers": ours}
    )
    assert (diff.name, diff.by) == ("state/allowed_signers", "provision")
    assert "-mallory@test ssh-ed25519 BBBB" in diff.text


TIMER = "macd-analysis-alerts.timer"
LOOKS = {"installed": True, "runs": True, "late": False, "checked": "2026-03-02T11:13:00+00:00"}


def test_an_instance_that_was_disabled_is_told_so() -> None:
    names, text = ("a@A.service", "a@B.service"), "# Written by macd\n"
    health = {**BASE["facts"]["health"], "units": {name: {"wrong": ""} for name in names}}

    def drifts(first: str | None, second: str | None) -> list[str]:
        units = dict(zip(names, (first, second), strict=True))
        state = HostState(**{**BASE["facts"], "units": units, "health": health})
        desired = {**BASE["desired"], "units": dict.fromkeys(names, text)}
        return drift(state, Desired(**desired, application=BUILT_IN))

    said = "a@B.service is not enabled, so a boot does not start it"
    assert said in drifts(text, None) and is_about_units(said)
    assert said not in drifts(text, text)
    assert "a@B.service was changed or is missing" in drifts(text, "other")
    assert "a@B.service was changed or is missing" in drifts("other", None)


def test_what_looks_for_alarms_is_provisions_and_no_drift_where_it_never_was() -> None:
    wanted = {"units": {**BASE["desired"]["units"], TIMER: "[Timer]\n"}}
    [only] = differs(desired=wanted)
    assert (only.name, only.by) == (TIMER, "provision")

    def drifts(text: str | None, alerts: dict[str, Any]) -> list[str]:
        units = {**BASE["facts"]["units"], TIMER: text}
        host_state = HostState(**{**BASE["facts"], "units": units, "alerts": alerts})
        return drift(host_state, Desired(**{**BASE["desired"], **wanted}, application=BUILT_IN))

    clean = drifts("[Timer]\n", LOOKS)
    assert drifts(None, {}) == clean  # a host of an earlier version
    changed = f"{TIMER} was changed or is missing"
    assert changed in drifts(None, LOOKS) and changed in drifts("[Timer]\nOnBootSec=1\n", {})
    stopped = drifts("[Timer]\n", {**LOOKS, "runs": False})
    assert set(stopped) - set(clean) == {
        "nobody looks for alarms: the timer does not run; invoke provision starts it"
    }
