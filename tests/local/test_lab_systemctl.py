"""User services on prod: started, restarted, counted, kept alive, started again at the next up."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room
from macd.inventory import project_root
from macd.lab import LabState, processes
from tests.support.openssh import eventually, ssh, text

Write = Callable[..., None]


@pytest.fixture
def write_unit(lab: LabState) -> Iterator[Write]:
    """Writes a unit file into prod's home; stops and removes it afterwards."""
    home = lab.hosts["prod"].home
    folder = home / ".config/systemd/user"
    written: list[str] = []

    def write(name: str, service: str, install: str = "WantedBy=default.target") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.service").write_text(
            f"[Unit]\nDescription=test\n[Service]\n{service}\n[Install]\n{install}\n"
        )
        written.append(name)

    yield write
    for name in written:
        ssh(lab.ssh_config, "prod", f"systemctl --user disable --now {name}")
        (folder / f"{name}.service").unlink()


def show(lab: LabState, name: str) -> dict[str, str]:
    lines = text(
        lab.ssh_config,
        "prod",
        f"systemctl --user show {name} -p MainPID,NRestarts,InvocationID -p ActiveState,LoadState",
    ).splitlines()
    return dict(line.split("=", 1) for line in lines)


def systemctl(lab: LabState, words: str) -> tuple[int, str]:
    done = ssh(lab.ssh_config, "prod", f"systemctl --user {words}")
    return done.returncode, done.stdout.decode().strip()


def test_a_service_starts_restarts_and_stops(lab: LabState, write_unit: Write) -> None:
    home = lab.hosts["prod"].home
    (home / "flags.env").write_text("FLAG=one\n")
    write_unit(
        "story",
        "EnvironmentFile=%h/flags.env\n"
        'ExecStart=/bin/sh -c "echo $FLAG $INVOCATION_ID > seen; exec sleep 600"',
    )
    assert systemctl(lab, "daemon-reload")[0] == 0
    assert systemctl(lab, "is-active story") == (3, "inactive")
    assert show(lab, "story")["MainPID"] == "0"

    assert systemctl(lab, "start story")[0] == 0
    first = show(lab, "story")
    assert first["ActiveState"] == "active"
    assert processes.started_at(int(first["MainPID"]))
    assert (home / "seen").read_text().split() == ["one", first["InvocationID"]]
    assert systemctl(lab, "show --value -p MainPID story") == (0, first["MainPID"])
    assert systemctl(lab, "start story")[0] == 0
    assert show(lab, "story") == first  # starting what runs changes nothing

    (home / "flags.env").write_text("FLAG=two\n")
    assert systemctl(lab, "restart story")[0] == 0
    second = show(lab, "story")
    assert second["MainPID"] != first["MainPID"]
    assert second["InvocationID"] != first["InvocationID"]
    assert second["NRestarts"] == "0"  # by hand: not one of Restart='s
    assert (home / "seen").read_text().split() == ["two", second["InvocationID"]]
    assert processes.started_at(int(first["MainPID"])) is None

    assert systemctl(lab, "stop story")[0] == 0
    assert processes.started_at(int(second["MainPID"])) is None
    assert show(lab, "story")["ActiveState"] == "inactive"


def test_instances_that_one_call_names_have_a_process_each(
    lab: LabState, write_unit: Write
) -> None:
    write_unit("pair@", 'ExecStart=/bin/sh -c "exec sleep 6%i"')
    assert systemctl(lab, "start pair@1 pair@2")[0] == 0
    shown = [show(lab, f"pair@{number}") for number in (1, 2)]
    assert [one["ActiveState"] for one in shown] == ["active"] * 2
    assert len({one["MainPID"] for one in shown}) == 2
    assert systemctl(lab, "stop pair@1 pair@2")[0] == 0
    assert [processes.started_at(int(one["MainPID"])) for one in shown] == [None] * 2


def test_a_killed_service_is_restarted_and_counted(lab: LabState, write_unit: Write) -> None:
    write_unit("phoenix", "ExecStart=/bin/sleep 600\nRestart=on-failure\nRestartSec=100ms")
    systemctl(lab, "start phoenix")
    before = show(lab, "phoenix")
    text(lab.ssh_config, "prod", f"kill -9 {before['MainPID']}")

    def restarted() -> bool:
        now = show(lab, "phoenix")
        return (now["NRestarts"], now["ActiveState"]) == ("1", "active")

    eventually(restarted, every=0.4)
    after = show(lab, "phoenix")
    assert after["MainPID"] != before["MainPID"]
    assert after["InvocationID"] != before["InvocationID"]


def test_a_killed_service_without_restart_has_failed_until_reset(
    lab: LabState, write_unit: Write
) -> None:
    write_unit("mortal", "ExecStart=/bin/sleep 600")
    systemctl(lab, "start mortal")
    text(lab.ssh_config, "prod", f"kill -9 {show(lab, 'mortal')['MainPID']}")
    eventually(lambda: show(lab, "mortal")["ActiveState"] == "failed", every=0.2)
    assert systemctl(lab, "is-active mortal") == (3, "failed")
    assert systemctl(lab, "reset-failed mortal")[0] == 0
    assert show(lab, "mortal")["ActiveState"] == "inactive"
    assert systemctl(lab, "reset-failed mortal")[0] == 0  # nothing to reset is no error


def test_a_service_that_keeps_dying_is_given_up_until_reset(
    lab: LabState, write_unit: Write
) -> None:
    write_unit(
        "doomed",
        "ExecStart=/bin/sh -c 'echo run >> runs; test -e cured && exec sleep 600; exit 1'\n"
        "Restart=on-failure\nRestartSec=50ms\n"
        "StartLimitBurst=2\nStartLimitIntervalSec=600",
    )
    runs = lab.hosts["prod"].home / "runs"
    cured = lab.hosts["prod"].home / "cured"
    for old in (runs, cured):
        old.unlink(missing_ok=True)
    status = "$XDG_RUNTIME_DIR/run/doomed.service.status"
    assert systemctl(lab, "start doomed")[0] != 0
    eventually(lambda: runs.read_text().count("run") >= 3)
    eventually(
        lambda: ssh(lab.ssh_config, "prod", f"grep error {status}").returncode == 0, every=0.4
    )
    assert show(lab, "doomed")["ActiveState"] == "failed"
    cured.touch()
    for word in ("start", "restart"):
        refused = ssh(lab.ssh_config, "prod", f"systemctl --user {word} doomed")
        assert refused.returncode != 0
        assert b"reset-failed doomed" in refused.stderr
    assert systemctl(lab, "reset-failed doomed")[0] == 0
    assert systemctl(lab, "restart doomed")[0] == 0
    assert show(lab, "doomed")["ActiveState"] == "active"


def test_notify_waits_for_ready(lab: LabState, write_unit: Write) -> None:
    home = lab.hosts["prod"].home
    (home / "ready.py").write_text(
        "import os, socket, time\n"
        "time.sleep(1)\n"
        "open('served', 'w').close()\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n"
        "time.sleep(600)\n"
    )
    (home / "served").unlink(missing_ok=True)
    python = home.parent / "bin/python3"
    write_unit("notifier", f"Type=notify\nExecStart={python} {home}/ready.py")
    assert systemctl(lab, "start notifier")[0] == 0
    assert (home / "served").exists()
    assert show(lab, "notifier")["ActiveState"] == "active"


def test_show_says_the_same_with_and_without_a_manager_to_ask(
    lab: LabState, write_unit: Write
) -> None:
    write_unit("shown", "ExecStart=/bin/sleep 600\nEnvironment=A=b")
    systemctl(lab, "start shown")
    manager = "$XDG_RUNTIME_DIR/systemctl"
    for words in ("shown", "shown -p MainPID,InvocationID", "--value -p ActiveState no-such-unit"):
        show = f"systemctl --user show {words}"
        asked = ssh(lab.ssh_config, "prod", f"test -S {manager} && {show}")
        alone = f"mv {manager} {manager}.away; {show}; code=$?; mv {manager}.away {manager}"
        itself = ssh(lab.ssh_config, "prod", f"{alone}; exit $code")
        assert (asked.returncode, asked.stdout) == (itself.returncode, itself.stdout)
        assert asked.stderr == itself.stderr
        assert asked.stdout


def test_unknown_units_and_the_system_manager_are_refused(lab: LabState) -> None:
    assert systemctl(lab, "start no-such-unit")[0] != 0
    assert show(lab, "no-such-unit")["LoadState"] == "not-found"
    assert show(lab, "no-such-unit")["ActiveState"] == "inactive"
    system = ssh(lab.ssh_config, "prod", "systemctl start story")
    assert system.returncode == 1
    assert b"systemctl --user" in system.stderr
    assert ssh(lab.ssh_config, "prod", "systemctl is-system-running").stdout == b"offline\n"
    assert systemctl(lab, "is-system-running") == (0, "running")


def test_a_detached_service_is_stopped_with_the_lab_and_an_enabled_one_is_back_after_up(
    tmp_path: Path,
) -> None:
    state = lab_room.up(tmp_path)
    try:
        folder = state.hosts["prod"].home / ".config/systemd/user"
        folder.mkdir(parents=True)
        for name in ("enabled", "other"):
            (folder / f"{name}.service").write_text(
                "[Service]\nExecStart=/bin/sleep 600\nRestart=always\n"
                "[Install]\nWantedBy=default.target\n"
            )
            systemctl(state, f"start {name}")
        systemctl(state, "enable enabled")
        pids = [int(show(state, name)["MainPID"]) for name in ("enabled", "other")]
        lab_room.down(tmp_path)
        assert [processes.started_at(pid) for pid in pids] == [None, None]
        state = lab_room.up(tmp_path)
        eventually(lambda: show(state, "enabled")["ActiveState"] == "active", every=0.4)
        assert show(state, "other")["ActiveState"] == "inactive"
    finally:
        lab_room.down(tmp_path)


def test_the_last_words_of_each_life_of_a_service(lab: LabState, write_unit: Write) -> None:
    """A life that says nothing has no last words, whatever the one before it said."""
    home = lab.hosts["prod"].home
    (home / "says.sh").write_text("printf 'first\\n\\tthe \"last\" w\\\\rds\\n'; exit 3\n")
    write_unit("talker", "ExecStart=/bin/sh %h/says.sh")

    def said(life: str) -> str:
        asked = "import sys; from macd.host.systemd.supervisor import Supervisor as S; "
        asked += "print(repr(S('user').last_line('talker.service', "
        asked += "lambda life, at: life in sys.argv[1:] and at > 1.7e9)))"
        words = f"python3 -c {shlex.quote(asked)} {life}"
        return text(lab.ssh_config, "prod", f"cd {shlex.quote(str(project_root()))} && {words}")

    systemctl(lab, "start talker")
    first = show(lab, "talker")["InvocationID"]
    wanted = """'the "last" w\\\\rds'"""
    eventually(lambda: said(first).strip() == wanted, every=0.4)
    (home / "says.sh").write_text("exec sleep 600\n")
    systemctl(lab, "restart talker")
    second = show(lab, "talker")["InvocationID"]
    assert first != second
    assert said(second).strip() == "''"
    assert said(f"{first} {second}").strip() == wanted
    assert said("").strip() == "''"
