"""An application of a team's own goes live as the built-in one does: proved, or as it was."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError
from macd.host.own import Flag, Probe
from macd.ssh.failures import RemoteError
from tests.support.local_host import UNIT, place
from tests.support.own_host import WEB, OwnPlace, own_place
from tests.support.sweeps import sweep


@pytest.fixture(scope="module")
def host() -> Iterator[OwnPlace]:
    """Its first release is live."""
    with own_place() as made:
        assert made.deploy(made.release(1)) == "committed"
        yield made


def running(host: OwnPlace) -> dict[str, Any]:
    """What serves there, by the host's own proof."""
    health: dict[str, Any] = host.facts()["health"]
    return health


def pids(host: OwnPlace) -> dict[str, int]:
    return {name: unit["pid"] for name, unit in running(host)["units"].items()}


def reason(host: OwnPlace) -> str:
    return str(host.state("bad.json")[-1]["reason"])


def test_first_second_and_rollback(host: OwnPlace) -> None:
    first, second = str(host.live), host.release(2)
    health = running(host)
    assert (health["release"], health["status"], health["last_error"]) == (first, "ok", None)
    before = pids(host)
    assert set(before) == {UNIT, WEB}
    source = host.app / "releases" / first / "source"
    assert all(Path(f"/proc/{pid}/cwd").resolve() == source for pid in before.values())
    assert (source / "logs").readlink() == Path("../../../logs")
    assert (source / "data/live").resolve() == host.app / "data/live"
    (host.app / ".env").write_text("KEY=rotated\nUSE_STACK=on\n")
    assert host.deploy(second) == "committed"
    assert (host.app / ".env").read_text() == "KEY=rotated\nUSE_STACK=off\n", "a release is new"
    assert not set(before.values()) & set(pids(host).values()), "every unit has a new process"
    assert host.rollback() == "committed"
    assert running(host)["release"] == first
    # What it writes outlives each of its releases.
    lines = (host.app / "logs/signals.jsonl").read_text().split()
    assert lines == [first, second.id, first]


WAITED_S = 12.0  # for what never comes; a busy machine must have got that far by then
FAILS = {
    "exits": "its last words: no models, no service",
    "hangs": "nobody listens there",
    "exits 0": "it ended by itself, without an error",
    "forks away": "it ended by itself, without an error",
    "check fails": "its own check failed here: lstm_1h.onnx is broken",
    "crashes soon": "it did not stay up",
    "never ready": "/health answers 503",
    "other directory": "its working directory is /, not",
    "other python": "it was started by python3, not by",
    "forgets its name": "its environment can't be read",
    "web exits": f"{WEB}: it does not start",
    "web is silent": f"{WEB}: not healthy within 12 s: it has written no line that matches",
}
KINDS = ("exits", "hangs", "forks away", "check fails")
KINDS += ("other directory", "forgets its name", "web is silent")


@pytest.mark.parametrize("variant", sweep(FAILS, *KINDS))
def test_a_bad_release_is_reverted_and_the_old_one_serves(host: OwnPlace, variant: str) -> None:
    before = host.live
    bad = host.release(10 + len(host.state("bad.json", [])), variant)
    waits = variant in ("hangs", "never ready", "web is silent")
    health_s = WAITED_S if waits else 90.0
    assert host.deploy(bad, soak_s=1.5, health_s=health_s) == "reverted"
    assert FAILS[variant] in reason(host)
    assert host.live == before
    assert running(host)["status"] == "ok", running(host)
    assert running(host)["release"] == before
    assert host.state("pending.json") is None
    ran = [one for one in host.facts()["others_ran"] if one["release"] == bad.id]
    assert len(ran) == (variant != "check fails"), "what was switched to ran for a while"
    assert all(one["until"] > one["since"] for one in ran)


def test_a_port_that_another_process_holds_proves_nothing(host: OwnPlace) -> None:
    """It answers well all the while, and is not what was started."""
    before = host.live
    host.systemctl("stop", UNIT)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", host.port))
        stranger.listen()
        answer = "import os, time, http.server as h; s = h.HTTPServer(('127.0.0.1', 0), "
        answer += "h.SimpleHTTPRequestHandler, bind_and_activate=False); import socket; "
        answer += f"s.socket = socket.socket(fileno={stranger.fileno()}); s.serve_forever()"
        argv = ["python3", "-c", answer]
        with subprocess.Popen(
            argv, cwd=host.app / "logs", pass_fds=[stranger.fileno()], stderr=subprocess.DEVNULL
        ) as old:
            (host.app / "logs/health").write_text("ok")
            try:
                assert host.deploy(host.release(40, "no port"), health_s=3.0) == "reverted"
            finally:
                old.kill()
    assert f"port {host.port} is held by pid" in reason(host)
    assert f"which is not of {UNIT}" in reason(host)
    host.systemctl("restart", UNIT)
    assert host.live == before


def test_units_come_and_go_with_their_release(host: OwnPlace) -> None:
    alone = {UNIT: host.units[UNIT]}
    unit_file = host.top / "home/.config/systemd/user" / WEB
    before, page = host.live, pids(host)[WEB]
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        release = host.release(41)
        host.stage(session, release)
        after = {**host.texts(alone), WEB: None}
        number = host.begin(session, "deploy", release.id, after=after)["number"]
    assert host.finish(number)[-1]["state"] == "committed"
    assert set(pids(host)) == {UNIT}
    assert not unit_file.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(page, signal.SIG_DFL)
    assert host.rollback() == "committed"
    assert host.live == before
    assert running(host)["status"] == "ok"
    assert set(pids(host)) == {UNIT, WEB}
    assert unit_file.exists()


def test_a_unit_that_came_with_a_reverted_release_goes_again(host: OwnPlace) -> None:
    more = {**host.units, "macd-analysis-more.service": Probe(running=600)}
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        release = host.release(42, "web exits")
        host.stage(session, release)
        number = host.begin(session, "deploy", release.id, after=host.texts(more))["number"]
    assert host.finish(number)[-1]["state"] == "reverted"
    assert not (host.top / "home/.config/systemd/user/macd-analysis-more.service").exists()
    assert running(host)["status"] == "ok"


def test_a_boot_in_the_middle_brings_back_a_unit_that_had_gone(host: OwnPlace) -> None:
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        release = host.release(44)
        host.stage(session, release)
        after = {**host.texts({UNIT: host.units[UNIT]}), WEB: None}
        number = host.begin(session, "deploy", release.id, after=after, soak_s=60.0)["number"]
    states: list[str] = []
    while "soaking" not in states:
        told = host.watching.call("follow", app=str(host.app), number=number, wait=0.05)
        states = [event["state"] for event in told["events"]]
    kill_runner(host)
    host.systemctl("stop", UNIT)
    archive = host.app / "bin/macd-host.pyz"
    argv = [sys.executable, "-IS", str(archive), "recover", "--booting", "--app", str(host.app)]
    subprocess.run(argv, env=host.environment, check=True)
    host.systemctl("start", UNIT)  # what was enabled when it booted
    assert running_soon(host)["status"] == "ok"
    assert set(pids(host)) == {UNIT, WEB}


def test_a_link_that_leads_elsewhere_is_damage(host: OwnPlace) -> None:
    release = host.release(45)
    assert host.deploy(release) == "committed"
    link = host.app / "releases" / release.id / "source/logs"
    link.unlink()
    link.symlink_to("/tmp")
    assert host.facts()["readiness"]["why"] == "changed: source/logs"
    link.unlink()
    assert host.facts()["readiness"]["why"] == "missing: source/logs"
    link.symlink_to("../../../logs")
    (link.parent / "elsewhere").symlink_to("/etc")
    (link.parent.parent / "release.env").write_text("MACD_RELEASE=another\n")
    why = "extra: source/elsewhere; changed: release.env"
    assert host.facts()["readiness"]["why"] == why
    (link.parent / "elsewhere").unlink()
    (link.parent.parent / "release.env").write_text(f"MACD_RELEASE={release.id}\n")
    assert host.facts()["readiness"]["ready"] is True


@pytest.mark.parametrize(
    ("writes", "more", "why"),
    [
        (["../etc"], {}, "unsafe path"),
        (["logs", "logs/live"], {}, "is among the release's files"),
        (["data"], {}, "is among the release's files"),
        (["engine.py/x"], {}, "is among the release's files"),
        (["cache"], {}, "it writes cache, which"),
    ],
)
def test_what_it_may_write_is_checked_before_it_is_linked(
    host: OwnPlace, writes: list[str], more: dict[str, bytes], why: str
) -> None:
    release = host.release(50, writes=writes, more=more)
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        with pytest.raises(RemoteError, match=r"refused|nowhere to write") as refused:
            host.stage(session, release)
    assert why in str(refused.value.why)
    assert not (host.app / "releases" / release.id).exists()


def test_another_kind_of_release_is_refused(host: OwnPlace) -> None:
    release = host.release(51)
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        host.stage(session, release)
        after = {UNIT: host.unit_text(), "service.json": "{}\n"}
        with pytest.raises(MacdError, match="no release of what the inventory describes"):
            host.begin(session, "deploy", release.id, after=after)
    assert host.state("pending.json") is None


KILLED = [
    ("checking", "recover"),
    ("switched", "--booting"),
    ("restarting", "recover"),
    ("soaking", "--booting"),
    ("awaiting confirmation", "recover"),
]
STATES = ("checking", "switching", "switched", "restarting", "soaking", "awaiting confirmation")


@pytest.mark.parametrize(
    "at", sweep(itertools.product(STATES, ["recover", "--booting"]), *KILLED), ids=", ".join
)
def test_killed_at_each_step_the_old_one_serves(host: OwnPlace, at: tuple[str, str]) -> None:
    """The system calls between: tests/local/test_activation_kills.py."""
    state, how = at
    before = host.live
    release = host.release(60 + next(SERIAL))
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        host.stage(session, release)
        soak_s = 60.0 if state == "soaking" else 0.3  # none passes by unseen
        begun = host.begin(session, "deploy", release.id, soak_s=soak_s, confirm_s=90.0)
        number = begun["number"]
    states: list[str] = []
    while state not in states:
        told = host.watching.call("follow", app=str(host.app), number=number, wait=0.05)
        states = [event["state"] for event in told["events"]]
    kill_runner(host)
    if how == "recover":
        with host.session() as session:
            assert session.call("recover", app=str(host.app))["outcome"] == "reverted"
    else:  # nothing runs yet when a host boots, and systemd starts what is enabled afterwards
        for unit in host.units:
            host.systemctl("stop", unit)
        archive = host.app / "bin/macd-host.pyz"
        argv = [sys.executable, "-IS", str(archive), "recover", how, "--app", str(host.app)]
        subprocess.run(argv, env=host.environment, check=True)
        for unit in host.units:
            host.systemctl("restart", unit)
    assert host.live == before
    assert host.state("pending.json") is None
    assert running_soon(host)["status"] == "ok"


SERIAL = itertools.count()


def kill_runner(host: OwnPlace) -> None:
    """What runs the activation there. A child it forks is listed alike, and may be gone by then."""
    runners = processes(f"activate --app {host.app}")
    assert runners
    while runners:
        for pid in runners:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        runners = processes(f"activate --app {host.app}")


def processes(command: str) -> list[int]:
    listed = subprocess.run(
        ["ps", "-wweo", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if command in line]


def running_soon(host: OwnPlace) -> dict[str, Any]:
    """Once it has had the time to start."""
    deadline = time.monotonic() + 90
    while (health := running(host)).get("status") != "ok" and time.monotonic() < deadline:
        time.sleep(0.1)
    return health


def test_the_built_in_one_is_told_apart() -> None:
    with place() as made:
        assert made.deploy(made.release(1)) == "committed"
        assert made.facts()["health"]["release"] == made.live


def test_a_flag_in_a_dropin_goes_to_shadow_and_comes_back_with_a_revert() -> None:
    with own_place() as made:
        host = replace(made, flag=Flag("USE_STACK", "on", "off", "dropin"))
        (host.app / ".env").write_text("KEY=secret\n")
        assert host.deploy(host.release(1)) == "committed"
        dropin = host.top / f"home/.config/systemd/user/{UNIT}.d/override.conf"
        made_here = dropin.with_name("macd-flag.conf").read_text()
        assert made_here.endswith("[Service]\nEnvironment=USE_STACK=off\n")
        assert made_here.startswith("# Written by macd")  # by which an undo knows it
        dropin.with_name("macd-flag.conf").unlink()
        dropin.write_text('[Service]\n# Jun\nEnvironment=A=1 "USE_STACK=on"\nNice=5\n')
        host.systemctl("daemon-reload")
        assert host.deploy(host.release(2, "exits")) == "reverted"
        assert "USE_STACK=on" in dropin.read_text()
        assert host.deploy(host.release(3)) == "committed"
        text = "[Service]\n# Jun\nEnvironment=A=1 USE_STACK=off\nNice=5\n"
        assert dropin.read_text() == text
        assert "USE_STACK" not in (host.app / ".env").read_text()
