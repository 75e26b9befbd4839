"""Taking over a service by hand, and giving it back: cut off anywhere, and done again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.host import durable
from macd.host.deploy import adopt, byhand, originals
from macd.host.deploy.provision import provision
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, point_current_at
from macd.host.systemd.supervisor import Supervisor

UNIT = "bot.service"
_END = "[Install]\nWantedBy=default.target\n"
MINE = f"[Service]\nExecStart=/usr/bin/python3 bot.py\nEnvironment=TOKEN=s3cret\n{_END}"
OURS = f"# Written by macd from templates/x\n[Service]\nExecStart=/app/current/bot.py\n{_END}"
RELEASE = "20260301T000100Z-0123abcd"


class Killed(BaseException):
    """As if the process had been killed there."""


def label(path: Path) -> None:
    """Account 1234 may read the file by its ACL, and a team's tool has marked it."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 4, 1234), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    with contextlib.suppress(OSError, AttributeError):  # a file system without them
        os.setxattr(path, "user.team", b"ops")
        os.setxattr(path, "system.posix_acl_access", packed)


class Host:
    """A login's home with a unit, a drop-in and an application; systemctl is this object."""

    def __init__(self, top: Path) -> None:
        self.app, self.units = top / "app", top / ".config/systemd/user"
        self.layout, self.supervisor = Layout(str(self.app)), Supervisor("user")
        self.running = {UNIT}

    def put(self, current: str = "") -> None:
        (self.app / "logs").mkdir(parents=True, mode=0o700)
        (self.app / ".env").write_text("KEY=1\n")
        (self.app / ".env").chmod(0o640)
        (self.units / f"{UNIT}.d").mkdir(parents=True)
        (self.units / f"{UNIT}.d/override.conf").write_text("[Service]\nUser=jun\n")
        (self.units / UNIT).write_text(MINE)
        (self.units / UNIT).chmod(0o600)
        for path in (self.units / UNIT, self.app / ".env"):
            label(path)
        self.enable(UNIT)
        if current == "directory":
            (self.app / "current").mkdir()
            (self.app / "current/bot.py").write_text("theirs")
        elif current:
            (self.app / "current").symlink_to(current)

    def enable(self, unit: str) -> None:
        link = self.units / "default.target.wants" / unit
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(self.units / unit)

    def provision(self, **options: Any) -> dict[str, Any]:
        made = [{"path": path, "mode": 0o755, "owner": ""} for path in ("", "state", "bin")]
        made += [{"path": "logs", "mode": 0o750, "owner": "", "data": True}]
        return provision(
            app=str(self.app),
            scope="user",
            account="",
            directories=made,
            files=[{"path": "service.json", "data": b"{}\n", "mode": 0o644}],
            flags={"ML_ENABLE_STACKING": "0"},
            units={UNIT: OURS, "bot-recover.service": OURS},
            enable=[UNIT, "bot-recover.service"],
            who="tester",
            switched=[UNIT],
            **{"adopt": True, **options},
        )

    def switch(self) -> None:
        """What an activation does about it."""
        adopt.take_over(self.layout, self.supervisor)
        self.supervisor.install({UNIT: OURS})
        (self.app / "releases" / RELEASE).mkdir(parents=True, exist_ok=True)
        point_current_at(self.layout, RELEASE)
        self.running.add(UNIT)

    def revert(self, text: str = MINE) -> None:
        """What it does once that failed, in its order."""
        if not adopt.waits(self.layout):
            self.supervisor.stop(UNIT)
        point_current_at(self.layout, None)
        self.supervisor.install({UNIT: text})
        adopt.give_back(self.layout, self.supervisor, start=True)

    def looks(self) -> dict[str, object]:
        seen: dict[str, object] = {}
        for path in (*self.units.rglob("*"), *self.app.rglob("*"), self.app):
            name = path.relative_to(self.app.parent).as_posix()
            ours = "state" in name or name.startswith(("app/bin", "app/releases"))
            if ours or name.endswith(("-tmp", ".tmp")):  # of a kill; the next write removes it
                continue
            if path.is_symlink():
                seen[name] = str(path.readlink())
            else:
                content = path.read_text() if path.is_file() else ""
                seen[name] = (path.stat().st_mode & 0o7777, content, durable.xattrs_of(path))
        return seen

    def call(self, *words: str, check: bool = True) -> str:
        verb, unit = words[0], words[1] if len(words) > 1 else ""
        path = self.units / unit
        if verb == "show" and words[-1] == "FragmentPath":
            return f"FragmentPath={path if path.is_file() else ''}\n"
        if verb == "show" and words[-1] == "EnvironmentFiles":
            return "Environment=TOKEN=s3cret\n"
        if verb == "show":
            up = unit in self.running and path.is_file()
            loaded = "loaded" if path.is_file() else "not-found"
            state = "active" if up else "inactive"
            pid = os.getpid() if up else 0
            link = self.units / "default.target.wants" / unit
            said = f"LoadState={loaded}\nActiveState={state}\nMainPID={pid}\nInvocationID=a\n"
            return f"{said}UnitFileState={'enabled' if link.is_symlink() else 'disabled'}\n"
        if verb == "enable":
            self.enable(unit)
        elif verb in ("stop", "disable"):
            self.running -= set(words)
            if verb == "disable":
                (self.units / "default.target.wants" / words[-1]).unlink(missing_ok=True)
        return ""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    made = iter(range(10_000))

    def one(current: str = "") -> Host:
        top = tmp_path / str(next(made))
        top.mkdir()
        monkeypatch.setenv("HOME", str(top))
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        fresh = Host(top)
        fresh.put(current)
        monkeypatch.setattr(Supervisor, "_call", lambda _, *words, **o: fresh.call(*words, **o))
        monkeypatch.setattr(Supervisor, "restart", lambda _, unit: fresh.running.add(unit))
        monkeypatch.setattr(Supervisor, "has_timers", lambda _: False)
        return fresh

    monkeypatch.setattr(adopt, "_STAYS_S", 0)
    return one


CHANGING = ("rename", "unlink", "symlink", "chmod", "fchmod")


def killed_at(number: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do it, and be killed before the change of that number; whether it was."""
    left = number
    with monkeypatch.context() as patched:
        for name in CHANGING:
            real = getattr(os, name)

            def instead(*words: Any, _real: Any = real, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return _real(*words, **options)

            patched.setattr(os, name, instead)
        try:
            do()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("current", ["", "directory", "/somewhere/v3"])
def test_a_switch_that_is_cut_off_anywhere_goes_back(
    host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, current: str
) -> None:
    for number in range(200):
        one = host(current)
        one.provision()
        before = one.looks()
        was_killed = killed_at(number, one.switch, monkeypatch)
        if not was_killed:
            assert live_release(one.layout) == RELEASE
            assert not (one.units / f"{UNIT}.d/override.conf").exists()
        one.revert()
        assert one.looks() == before, number
        assert one.running == {UNIT}
        assert live_release(one.layout) is None
        if not was_killed:
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("current", ["", "directory", "/somewhere/v3"])
def test_an_undo_that_is_cut_off_anywhere_is_done_again(
    host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, current: str
) -> None:
    for number in range(200):
        one = host(current)
        before = one.looks()
        one.provision()
        one.switch()
        answers: list[dict[str, Any]] = []

        def undo(one: Host = one, answers: list[Any] = answers) -> None:
            answers.append(adopt.undo(str(one.app), "user", "tester"))

        was_killed = killed_at(number, undo, monkeypatch)
        if was_killed and (one.app / "state").exists():
            if originals.read(one.layout).undoing:  # type: ignore[union-attr]
                with pytest.raises(HostError, match="an undo of provision was interrupted"):
                    adopt.refuse_undoing(one.layout)
            undo()
        assert one.looks() == before, number
        assert one.running == {UNIT}
        assert not (one.app / "state").exists()
        if not was_killed:
            assert answers[0]["serving"].startswith(f"{UNIT} as it was put there by hand runs")
            return
    raise AssertionError("it never came to its end")


def test_a_host_without_anything_by_hand(
    host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first deploy that fails leaves what provision made; undo takes that away too."""
    one = host("")
    for path in (one.units, one.app):
        shutil.rmtree(path)
    one.running.clear()
    assert one.provision(adopt=False)["adopts"] is None
    before = one.looks()
    one.switch()
    monkeypatch.setattr(adopt, "_STARTS_S", 0)
    one.revert(OURS)
    assert one.looks() == before
    one.switch()
    answer = adopt.undo(str(one.app), "user", "tester")
    assert answer["serving"] == "nothing serves: nothing ran here before macd"
    left = {name for name in one.looks() if name.startswith("app/")}
    assert left == {"app/logs"}  # a service may have written there
    assert not list(one.units.rglob("bot*"))
    assert not one.running


def test_the_originals_are_never_overwritten(host: Callable[[str], Host]) -> None:
    one = host("")
    one.provision()
    (one.app / ".env").write_text("KEY=2\n")
    assert [c["name"] for c in one.provision()["changes"]] == [str(one.app / ".env")]
    kept = originals.read(one.layout)
    assert kept is not None
    number = kept.last()[str(one.app / ".env")]["copy"]
    assert (one.app / f"state/adopted/files/{number}").read_text() == "KEY=1\n"
    # What people change in their unit before the first deploy is what a revert brings back.
    (one.units / UNIT).write_text(MINE + "# since\n")
    one.switch()
    adopt.give_back(one.layout, one.supervisor, start=True)
    assert (one.units / UNIT).read_text() == MINE + "# since\n"


def test_a_unit_that_people_put_there_after_provision(host: Callable[[str], Host]) -> None:
    one = host("")
    (one.units / UNIT).unlink()
    one.running.clear()
    one.provision(adopt=False)
    (one.units / UNIT).write_text(MINE)
    with pytest.raises(HostError, match="nobody agreed"):
        one.provision(adopt=False)
    one.provision()
    adopt.undo(str(one.app), "user", "tester")
    assert (one.units / UNIT).read_text() == MINE
    assert not list(one.units.glob("*.before-undo"))


def test_a_value_that_was_changed_since_is_not_lost(host: Callable[[str], Host]) -> None:
    one = host("")
    one.provision()
    env = one.app / ".env"
    env.write_text(env.read_text().replace("TOKEN=s3cret", "TOKEN=rotated"))
    adopt.undo(str(one.app), "user", "tester")
    assert env.read_text() == "KEY=1\n"
    assert "TOKEN=rotated" in (one.app / ".env.before-undo").read_text()


def test_an_undo_names_the_texts_that_were_set_aside(host: Callable[[str], Host]) -> None:
    one = host("")
    one.provision()
    aside = [one.app / "service.json.before-deploy-2", one.units / f"{UNIT}.before-rollback-3"]
    for path in aside:
        path.write_text("theirs")
    left = adopt.undo(str(one.app), "user", "tester")["left"]
    assert [path for path in left if "before" in path] == [str(path) for path in aside]
    assert all(path.exists() for path in aside)


def test_an_undo_waits_for_an_activation(host: Callable[[str], Host]) -> None:
    one = host("")
    one.provision()
    before = one.looks()
    pending = {name: "" for name in ("to", "origin", "token", "who", "unit", "scope", "endpoint")}
    more = {"number": 1, "kind": "deploy", "started": 0.0, "state": "switching", "serial": 1}
    document = {**pending, **more, "manifest_sha256": "", "who": "jun"}
    (one.app / "state/pending.json").write_text(json.dumps(document))
    with pytest.raises(HostError, match="activation 1 is under way") as refused:
        adopt.undo(str(one.app), "user", "tester")
    assert "undo when it has ended" in refused.value.hint
    assert one.looks() == before


def test_nobody_is_adopted_unasked(host: Callable[[str], Host]) -> None:
    one = host("")
    before = one.looks()
    with pytest.raises(HostError, match="nobody agreed to adopt it"):
        one.provision(adopt=False)
    assert one.looks() == before
    adopts = one.provision(adopt=False, dry_run=True)["adopts"]
    assert adopts["new"]
    assert "s3cret" not in json.dumps(adopts["words"])
    assert one.looks() == before


@pytest.mark.parametrize(
    ("sets", "wins"),
    [
        ("User=jun", True),
        ("ExecStartPre=/bin/true", True),
        ("Environment=A=1", True),
        ("LimitNOFILE=65536", False),
        ("MemoryMax=2G", True),
        ("Environment=FLAG=0", False),
        ("Environment=FLAG=0 OTHER=1", True),
    ],
)
def test_which_dropins_would_win(tmp_path: Path, sets: str, wins: bool) -> None:
    """MemoryMax is in macd's unit; FLAG may stand in a drop-in."""
    path = tmp_path / "x.conf"
    path.write_text(f"[Service]\n{sets}\n")
    one = byhand.Dropin(str(path), (sets.partition("=")[0],), shared=False)
    assert byhand.wins(one, "[Service]\nMemoryMax=500M\n", "FLAG") == wins


@pytest.mark.parametrize(
    ("name", "do"),
    [("supervisord", "supervisorctl stop NAME"), ("PM2 v5", "pm2 delete"), ("sh", "kill ")],
)
def test_who_keeps_a_copy_running_is_named(script: Path, name: str, do: str) -> None:
    """By the name of an ancestor, which is the name of the file that was started."""
    keeper = script.with_name(name)
    keeper.symlink_to(os.path.realpath(sys.executable))
    starts = (
        "import subprocess, sys; child = subprocess.Popen([sys.argv[1], 'bot_runner.py'],"
        " stdin=subprocess.PIPE); print(child.pid, flush=True); sys.stdin.read();"
        " child.communicate(b'')"
    )
    words = [str(keeper), "-c", starts, sys.executable]
    with subprocess.Popen(
        words, cwd=script.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        by, said, unit = byhand._keeper(pid, [UNIT])
        started.communicate(b"")
    assert (name in by or name == "sh", unit) == (True, "")
    assert said.startswith(do)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home/somewhere/bot_runner.py"
    path.parent.mkdir(parents=True)
    path.write_text("import sys\nsys.stdin.read()\n")
    yield path


@pytest.mark.parametrize(
    ("typed", "wanted", "scope", "copies"),
    [
        (["bot_runner.py", "--phase", "paper"], "python3 bot_runner.py --phase paper", "system", 1),
        (["-u", "bot_runner.py"], "python3 bot_runner.py", "system", 1),
        (["bot_runner.py", "--phase", "live"], "python3 bot_runner.py --phase paper", "system", 0),
        (["bot_runner.py", "--key", "hunter2"], "python3 other.py", "system", 0),
        (["bot_runner.py"], "python3 bot_runner.py", "user", 0),
    ],
)
def test_a_copy_elsewhere_is_found_by_its_command(
    script: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    wanted: str,
    scope: str,
    copies: int,
) -> None:
    """Of a login's own services only below its home: another one's are another one's."""
    monkeypatch.setattr(Supervisor, "_call", lambda *_, **__: "")
    monkeypatch.setenv("HOME", str(script.parents[2] / "another"))
    script.write_text("import sys\nprint(flush=True)\nsys.stdin.read()\n")
    words = [sys.executable, *typed]
    with subprocess.Popen(
        words, cwd=script.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as copy:
        assert copy.stdout is not None
        copy.stdout.readline()  # a process that has only just begun has no words yet
        said = byhand.processes(Layout("/opt/none"), Supervisor(scope), [UNIT], [wanted.split()])
        copy.communicate(b"")
    mine = [one for one in said if one["pid"] == copy.pid]
    assert len(mine) == copies
    if mine:
        assert mine[0]["cwd"] == str(script.parent)
        assert not mine[0]["apart"]
