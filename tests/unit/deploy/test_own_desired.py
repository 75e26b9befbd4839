"""A team's own application: its units, what goes live with a release, and when a plan refuses."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.deploy import plan as planning
from macd.deploy.candidate import ReleaseCandidate
from macd.deploy.desired import Desired, render
from macd.deploy.drift import differing, drift
from macd.deploy.state import HostState, serving, unit_names
from macd.errors import UsageError
from macd.host import own
from macd.host.systemd import namespaces
from macd.host.systemd.unitfile import unit_word
from macd.inventory import Inventory, load

APP = "/opt/signals"
UNIT, WEB = "signals.service", "signals-web.service"
SECTION = """
app:
  name: ml-signals
  source: ../theirs
  check: python3 check.py
  serve:
    command: python3 live_runner.py --note "50% of $HOME" --phase paper
    ready: {http: "http://127.0.0.1:8080/health"}
    writes: [logs, data/live files]
    env: {MODE: paper}
    more: {web: {command: gunicorn web:app, ready: notify}}
  flag: {name: USE_STACK, live: "yes", shadow: "no"}
"""


def inventory(tmp_path: Path, section: str = SECTION) -> Inventory:
    (tmp_path / "tasks.py").touch()
    (tmp_path / "inventory").mkdir()
    host = f"{{role: serve, env: prod, ssh: prod, app_dir: {APP}, unit: signals}}"
    (tmp_path / "inventory" / "one.yml").write_text(f"hosts:\n  prod: {host}\n{section}")
    return load("one", root=tmp_path)


def host_state(**more: Any) -> HostState:
    python = {"executable": "/usr/bin/python3", "version": "3.11"}
    return HostState(app=APP, exists=True, python=python, endpoint="unix:/x", **more)


def wanted(known: Inventory, state: HostState | None = None, scope: str = "system") -> Desired:
    host = known.host("prod").model_copy(update={"scope": scope})
    return render(host, known, state or host_state())


def lines(text: str | None) -> list[str]:
    return (text or "").splitlines()


def test_every_unit_runs_from_the_release(tmp_path: Path) -> None:
    desired = wanted(inventory(tmp_path))
    assert set(desired.switched) == {UNIT, WEB, "service.json"}
    for name in (UNIT, WEB):
        unit = lines(desired.units[name])
        assert f"WorkingDirectory={APP}/current/source" in unit
        files = [line for line in unit if line.startswith("EnvironmentFile=")]
        assert files == [
            f"EnvironmentFile=-{APP}/.env",
            f"EnvironmentFile=-{APP}/current/release.env",
        ]
        assert f'ReadWritePaths={APP}/logs "{APP}/data/live files"' in unit
        assert "ProtectSystem=strict" in unit
        assert "User=macd" in unit
        assert not any(line.startswith(("MemoryDenyWriteExecute", "WatchdogSec")) for line in unit)
    python = f"{APP}/current/runtime/bin/python"
    start = f'ExecStart={python} live_runner.py --note "50%% of $$HOME" --phase paper'
    assert start in lines(desired.units[UNIT])
    assert "Type=exec" in lines(desired.units[UNIT])
    web = lines(desired.units[WEB])
    assert f"ExecStart={python} {APP}/current/runtime/bin/gunicorn web:app" in web
    assert "Type=notify" in web
    assert f"Before={UNIT} {WEB} sockets.target" in lines(desired.units["signals-recover.service"])


def test_what_the_host_is_told(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    desired = wanted(known)
    service = own.parse(desired.service_settings)
    assert service == desired.application.service("signals")
    assert service is not None
    assert (service.unit, service.writes) == (UNIT, ("logs", "data/live files"))
    assert desired.flags == {"USE_STACK": "no", "MODE": "paper"}
    assert (desired.symbols, desired.market, desired.max_age_days) == ((), None, 0)
    assert serving(known.host("prod"), known) == [UNIT, WEB]
    assert "signals.socket" not in unit_names(known.host("prod"), known)


def test_without_a_flag_none_is_set(tmp_path: Path) -> None:
    section = SECTION.replace('  flag: {name: USE_STACK, live: "yes", shadow: "no"}\n', "")
    assert wanted(inventory(tmp_path, section)).flags == {"MODE": "paper"}


def test_a_flag_in_a_dropin_is_not_set_in_env_which_would_win(tmp_path: Path) -> None:
    section = SECTION.replace('shadow: "no"}', 'shadow: "no", where: dropin}')
    assert wanted(inventory(tmp_path, section)).flags == {"MODE": "paper"}


def test_the_teams_own_keys_in_env_are_no_drift(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    state = host_state(env="EXCHANGE_API_KEY=x\nOTHER=y\n")
    texts = drift(state, wanted(known, state))
    assert not [line for line in texts if "does not know" in line], texts


def test_scope_user_confines_nothing_and_is_said(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    assert wanted(known).unconfined == ""
    as_login = wanted(known, scope="user")
    assert "MemoryMax" not in (as_login.units[UNIT] or "")
    assert "without hardening, MemoryMax" in as_login.unconfined
    notes = planning.make("a", host_state(), as_login, candidate("ml-signals"), now=0.0).notes
    assert as_login.unconfined in notes


def test_a_container_keeps_what_needs_no_namespaces(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    service = known.service.model_copy(update={"hardening": namespaces.CONTAINER})
    contained = wanted(known.model_copy(update={"service": service}))
    assert namespaces.wants(wanted(known).units[UNIT])
    assert not any(namespaces.wants(text) for text in contained.units.values() if text)
    assert {"NoNewPrivileges=yes", "CapabilityBoundingSet="} <= {*lines(contained.units[UNIT])}
    notes = planning.make("a", host_state(), contained, candidate("ml-signals"), now=0.0).notes
    assert contained.unconfined in notes and contained.unconfined


def test_a_second_new_unit_is_shown_by_what_differs(tmp_path: Path) -> None:
    desired = wanted(inventory(tmp_path))
    texts = {diff.name: diff.text for diff in differing(host_state(), desired, new=True)}
    assert "+ProtectSystem=strict" in texts[UNIT]
    assert texts[WEB].startswith(f"new, as {UNIT} but for:")
    assert "+ExecStart=" in texts[WEB] and "ProtectSystem" not in texts[WEB]


def test_a_unit_that_only_the_live_release_has_goes(tmp_path: Path) -> None:
    section = SECTION.replace("    more: {web: {command: gunicorn web:app, ready: notify}}\n", "")
    (tmp_path / "two").mkdir()
    live = wanted(inventory(tmp_path)).service_settings
    desired = wanted(inventory(tmp_path / "two", section), host_state(service_settings=live))
    assert desired.switched[WEB] is None
    assert desired.application.more == []


def test_a_file_of_the_source_is_no_program(tmp_path: Path) -> None:
    known = inventory(tmp_path, SECTION.replace("gunicorn web:app", "./web.sh"))
    with pytest.raises(UsageError, match="can't be started") as refused:
        wanted(known)
    assert "/bin/bash run.sh" in refused.value.hint


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for scope in ("system", "user"):
        (tmp_path / scope).mkdir()
        desired = wanted(inventory(tmp_path / scope), scope=scope)
        for name in (UNIT, WEB):
            path = tmp_path / scope / name
            text = (desired.units[name] or "").replace(
                f"{APP}/current/runtime/bin/python", "/bin/sh"
            )
            path.write_text(text.replace("User=macd", "User=root").replace("Group=macd", ""))
            done = subprocess.run(
                ["systemd-analyze", "verify", str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert name not in done.stderr, done.stderr


@pytest.mark.parametrize("word", ["a b", 'say "x"', "back\\slash", "50%", "$HOME", "", "*.py", "é"])
def test_a_word_reaches_the_program_as_it_is(word: str) -> None:
    said = unit_word(word).replace("%%", "%").replace("$$", "$")
    assert shlex.split(said) == [word]


# -- the plan


def candidate(name: str | None = "ml-signals", **more: Any) -> ReleaseCandidate:
    details = {"name": name, "writes": ["logs", "data/live files"], "units": ["web"], "check": ""}
    given: dict[str, Any] = {"own": {**details, **more} if name else None}
    return ReleaseCandidate(
        "20260301T000100Z-aaaaaaaa", "ml-signals", "prod", 1, 2e9, "f" * 64, "", (), **given
    )


def refused(desired: Desired, state: HostState, release: ReleaseCandidate) -> list[str]:
    state = replace(state, agent_archive=desired.agent_archive, free=1 << 40)
    made = planning.make("prod", state, desired, release, now=1000.0)
    assert all(problem.hint for problem in made.problems)
    return [problem.what for problem in made.problems]


def test_a_release_of_what_the_inventory_says_may_go(tmp_path: Path) -> None:
    desired = wanted(inventory(tmp_path))
    assert refused(desired, host_state(), candidate()) == []
    live = {"live": "20260301T000000Z-bbbbbbbb", "details": {"own": {"name": "ml-signals"}}}
    assert refused(desired, host_state(**live), candidate()) == []


@pytest.mark.parametrize(
    ("release", "there", "why"),
    [
        (candidate(None), {}, "the release is of the built-in application, the inventory of"),
        (candidate("others"), {}, "the release is of the application others, the inventory of"),
        (candidate(), {"live": "20260301T000000Z-bbbbbbbb"}, "is live here, which is not of"),
        (candidate(writes=["logs"]), {}, "serve.writes: the inventory has data/live files, logs;"),
        (
            candidate(units=[]),
            {},
            "serve.more: the inventory has web; the release",
        ),
        (candidate(), {"no_directory": ["logs"]}, f"logs: not a directory of {APP}"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, release: ReleaseCandidate, there: dict[str, Any], why: str
) -> None:
    problems = refused(wanted(inventory(tmp_path)), host_state(**there), release)
    assert len(problems) == 1
    assert why in problems[0]


def test_an_own_release_and_an_inventory_without_app(tmp_path: Path) -> None:
    problems = refused(
        wanted(inventory(tmp_path, "release: {app: ml-signals}\nservice: {symbol: BTCUSD}\n")),
        host_state(),
        replace(candidate(), serves=("ETHUSDT",)),
    )
    assert problems == [
        "the release is of the application ml-signals, the inventory of the built-in application"
    ]
