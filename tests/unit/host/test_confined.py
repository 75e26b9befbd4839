"""Nothing that came with a release is run as root: refused where there is nobody else to be.

The walls themselves are tests/hosts/test_confined_hosts.py, on a real systemd.
"""

from __future__ import annotations

import pytest

from macd.host.failure import HostError
from macd.host.systemd.sandbox import Sandbox, flags, properties, writing

NOBODY = "[Service]\nType=notify\nExecStart=/bin/true\n"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A system's systemd asked by root, as far as a confinement can tell; what started there."""
    started: list[object] = []
    monkeypatch.setattr(Sandbox, "is_real", True)
    monkeypatch.setattr("subprocess.run", lambda *words, **_: started.append(words))
    return started


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "the service's unit is not there"),
        ("", "the service's unit names no User="),
        (NOBODY, "the service's unit names no User="),
        (NOBODY + "User=macd\nUser=\n", "the service's unit names no User="),
        (NOBODY + "[Install]\nUser=nobody\n", "the service's unit names no User="),
        (NOBODY + "User=root\n", "the account root of its unit is root"),
        (NOBODY + "User=0\n", "the account 0 of its unit is root"),
        (NOBODY + "User=no-such-account\n", "no-such-account of its unit is not on this host"),
    ],
)
def test_nobody_to_be_is_a_refusal_and_nothing_runs(
    real: list[object], text: str | None, why: str, tmp_path: object
) -> None:
    walls = Sandbox("system", text, "/opt/app")
    for do in (lambda: walls.run(["/bin/true"], timeout=5), lambda: walls.give(str(tmp_path))):
        with pytest.raises(HostError) as caught:
            do()
        assert caught.value.kind == "refused"
        assert why in caught.value.why
        assert "invoke provision" in caught.value.hint
    assert real == []


def test_without_a_system_manager_whoever_logs_in_runs_it() -> None:
    done = Sandbox("user", None).run(["/bin/echo", "fine"], timeout=20)
    assert (done.returncode, done.stdout) == (0, "fine\n")


def test_only_the_walls_are_taken_over_from_a_unit() -> None:
    of_a_service = """Type=notify
ExecStart=/bin/x
ExecStopPost=/bin/x
EnvironmentFile=-/opt/app/.env
LoadCredential=token:/etc/token
SetCredentialEncrypted=token:AAAA
KillMode=process
KillSignal=SIGCONT
RestartKillSignal=SIGCONT
SendSIGKILL=no
SendSIGHUP=yes
FinalKillSignal=SIGCONT
WatchdogSec=30
WatchdogSignal=SIGCONT
LimitFSIZE=infinity
ReadWritePaths=/opt/app/data/live
StateDirectory=app
CacheDirectory=app
OOMPolicy=continue
"""
    walls = [
        ("User", "macd"),
        ("UnsetEnvironment", "PATH LD_PRELOAD"),
        ("Environment", "A=1"),
        ("NoExecPaths", "/"),
        ("ExecPaths", "/opt/app /usr"),
        ("SystemCallFilter", "@system-service"),
        ("SystemCallFilter", "~@privileged"),
        ("RestrictSUIDSGID", "yes"),
        ("MemoryMax", "1G"),
    ]
    lines = "".join(f"{name} = {value}\n" for name, value in walls)
    text = f"[Unit]\nRequires=x\n[Service]\n{of_a_service}# User=root\n{lines}[Install]\nAlias=x\n"
    assert properties(text) == walls


def test_an_older_systemd_is_not_asked_for_what_it_refuses() -> None:
    walls = [("User", "macd"), ("RestrictSUIDSGID", "yes"), ("ExecPaths", "/usr")]
    assert flags(walls, 241) == ["--property=User=macd"]
    assert len(flags(walls, 247)) == 2
    assert len(flags(walls, None)) == 3


def test_the_one_directory_to_write_is_one_word_and_bounded() -> None:
    place = '/opt/my "app"/x'
    assert writing(place, [("ProtectSystem", "strict")], 9) == [
        ("LimitFSIZE", "9"),
        ("ReadWritePaths", '"/opt/my \\"app\\"/x"'),
    ]
    assert ("ExecPaths", '"/opt/x"') in writing("/opt/x", [("NoExecPaths", "/")], 9)


@pytest.mark.parametrize(
    ("scope", "uid", "runtime", "booted", "refused"),
    [
        ("user", 0, "/run/user/0", True, True),
        ("user", 0, "", True, True),  # sudo takes the variable away
        ("user", 0, "/tmp/lab-of-its-own", True, False),
        ("user", 0, "/run/user/0", False, False),  # nothing here starts services
        ("user", 1000, "/run/user/1000", True, False),
        ("system", 0, "/run/user/0", True, False),  # it runs as the unit's account
    ],
)
def test_roots_own_user_services_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    scope: str,
    uid: int,
    runtime: str,
    booted: bool,
    refused: bool,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("os.path.isdir", lambda path: booted and path == "/run/systemd/system")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    walls = Sandbox(scope, None, "/opt/app")
    if not refused:
        walls.refuse_root()
        return
    with pytest.raises(HostError, match="not run as root") as caught:
        walls.refuse_root()
    assert caught.value.kind == "refused"
    assert "scope: system" in caught.value.hint
