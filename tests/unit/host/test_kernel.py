"""What the kernel says of a process, told from a /proc made by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from macd.host.processes import Kernel

RELEASE = "20260301T000100Z-aaaaaaaa"
UNIT = "app.service"
MAIN, CHILD, NEIGHBOUR, STRANGER = 10, 11, 12, 99


class Fake:
    """A /proc below `top`, and a release with its runtime beside it."""

    def __init__(self, top: Path) -> None:
        self.proc = top / "proc"
        self.release = top / "app/releases" / RELEASE
        (self.release / "source/inner").mkdir(parents=True)
        (top / "app/runtimes/lock/bin").mkdir(parents=True)
        (self.release / "runtime").symlink_to("../../runtimes/lock")
        (top / "app/current").symlink_to(f"releases/{RELEASE}")
        self.python = f"{top}/app/current/runtime/bin/python"
        (self.proc / "net").mkdir(parents=True)
        self.listening({})

    @property
    def kernel(self) -> Kernel:
        return Kernel(str(self.proc), clock=lambda: 1000.0)

    def process(
        self,
        pid: int,
        *,
        parent: int = 1,
        cwd: Path | None = None,
        argv: str = "",
        environ: bytes | None = None,
        maps: str = "",
        group: str = "/user.slice",
        sockets: tuple[int, ...] = (),
    ) -> None:
        place = self.proc / str(pid)
        (place / "fd").mkdir(parents=True)
        (place / "cwd").symlink_to(cwd or self.release / "source")
        (place / "cmdline").write_bytes((argv or self.python).encode() + b"\0live.py\0")
        text = f"PATH=/bin\0MACD_RELEASE={RELEASE}\0".encode()
        (place / "environ").write_bytes(text if environ is None else environ)
        (place / "maps").write_text(maps)
        (place / "cgroup").write_text(f"0::{group}\n")
        ticks = 900 * os.sysconf("SC_CLK_TCK")
        fields = ["S", str(parent), *["0"] * 17, str(ticks), "0"]
        (place / "stat").write_text(f"{pid} (a name) with ) {' '.join(fields)}\n")
        for number, inode in enumerate(sockets):
            (place / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    def listening(self, tables: Mapping[str, list[tuple[str, int, str, int]]]) -> None:
        """By table: address as the kernel writes it, port, state, inode."""
        for name in ("tcp", "tcp6"):
            rows = [
                f"  0: {at}:{port:04X} 00:0000 {state} 0:0 0:0 0 0 0 {inode} 1"
                for at, port, state, inode in tables.get(name, [])
            ]
            (self.proc / "net" / name).write_text("\n".join(["  sl  local_address", *rows]) + "\n")


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def findings(fake: Fake) -> list[str]:
    kernel, place = fake.kernel, fake.release
    return [
        kernel.wrong_directory(MAIN, f"{place}/source"),
        kernel.wrong_interpreter(MAIN, f"{place}/runtime"),
        kernel.wrong_variable(MAIN, "MACD_RELEASE", RELEASE),
    ]


def test_a_process_of_the_release(fake: Fake) -> None:
    fake.process(MAIN)
    assert findings(fake) == ["", "", ""]
    assert fake.kernel.age(MAIN) == 100


def test_it_may_work_below_its_tree(fake: Fake) -> None:
    fake.process(MAIN, cwd=fake.release / "source/inner")
    assert findings(fake)[0] == ""


def test_each_sign_of_another_origin_is_named(fake: Fake, tmp_path: Path) -> None:
    other = fake.release.parent / "20260301T000000Z-bbbbbbbb/source"
    other.mkdir(parents=True)
    old = b"MACD_RELEASE=20260301T000000Z-bbbbbbbb\0"
    fake.process(MAIN, cwd=other, argv="/usr/bin/python3", environ=old)
    directory, interpreter, variable = findings(fake)
    assert f"its working directory is {other}, not" in directory
    assert "it was started by /usr/bin/python3, not by" in interpreter
    assert variable == "its environment has MACD_RELEASE=20260301T000000Z-bbbbbbbb"


def test_a_directory_beside_the_tree_is_not_below_it(fake: Fake) -> None:
    beside = fake.release / "source-of-another"
    beside.mkdir()
    fake.process(MAIN, cwd=beside)
    assert "its working directory is" in findings(fake)[0]


def test_a_title_over_its_command_and_environment(fake: Fake) -> None:
    """As setproctitle writes it; the runtime's libraries still say whose it is."""
    library = f"7f00-7f01 r-xp 00000000 08:01 7   {fake.release.resolve()}"
    lock = (fake.release / "runtime").resolve()
    fake.process(
        MAIN,
        argv="gunicorn: master",
        environ=b"ter [app]\0\0\0",
        maps=f"7f r-xp 0 {lock}/lib/x.so\n",
    )
    assert findings(fake)[1] == ""
    assert "SPT_NOENV=1" in findings(fake)[2]
    (fake.proc / str(MAIN) / "maps").write_text(library)
    assert "it was started by gunicorn: master" in findings(fake)[1]


def test_what_can_not_be_read_is_no_proof(fake: Fake) -> None:
    directory, interpreter, variable = findings(fake)
    assert "its working directory can't be read" in directory
    assert "its command can't be read" in interpreter
    assert "its environment can't be read" in variable
    assert fake.kernel.age(MAIN) == 0


def test_text_of_a_process_reaches_no_terminal(fake: Fake) -> None:
    fake.process(MAIN, argv="\x1b[31mred", environ=b"MACD_RELEASE=\x1b]0;title\x07\0A=1\0")
    assert "\x1b" not in "".join(findings(fake))


V4, ANY4 = "0100007F", "00000000"
V6, ANY6 = "00000000000000000000000001000000", "0" * 32
MAPPED = "0000000000000000FFFF00000100007F"


@pytest.mark.parametrize(
    ("host", "table", "at"),
    [
        ("127.0.0.1", "tcp", V4),
        ("127.0.0.1", "tcp", ANY4),
        ("127.0.0.1", "tcp6", ANY6),
        ("127.0.0.1", "tcp6", MAPPED),
        ("::1", "tcp6", V6),
        ("::1", "tcp6", ANY6),
    ],
)
def test_who_holds_a_port(fake: Fake, host: str, table: str, at: str) -> None:
    fake.process(MAIN)
    fake.process(CHILD, parent=MAIN, sockets=(7,))
    fake.process(STRANGER, argv="/old/python", sockets=(8,))
    fake.listening({table: [(at, 8080, "0A", 7), (at, 8080, "01", 8), (at, 80, "0A", 8)]})
    assert fake.kernel.held_by_others(host, 8080, MAIN, UNIT) == ""
    fake.listening({table: [(at, 8080, "0A", 7), (at, 8080, "0A", 8)]})
    said = fake.kernel.held_by_others(host, 8080, MAIN, UNIT)
    assert said == f"port 8080 is held by pid 99 (/old/python live.py), which is not of {UNIT}"


def test_another_address_is_another_port(fake: Fake) -> None:
    fake.process(MAIN, sockets=(7,))
    fake.process(STRANGER, sockets=(8,))
    fake.listening({"tcp": [("0500000A", 8080, "0A", 8), (V4, 8080, "0A", 7)]})
    assert fake.kernel.held_by_others("127.0.0.1", 8080, MAIN, UNIT) == ""


def test_the_control_group_of_the_unit_counts_as_its_own(fake: Fake) -> None:
    fake.process(MAIN, group=f"/system.slice/{UNIT}")
    fake.process(NEIGHBOUR, group=f"/system.slice/{UNIT}", sockets=(7,))
    fake.listening({"tcp": [(V4, 8080, "0A", 7)]})
    assert fake.kernel.held_by_others("127.0.0.1", 8080, MAIN, UNIT) == ""
    # A group that is not the unit's own, as a login's: who is in it says nothing.
    assert "is held by pid 12" in fake.kernel.held_by_others("127.0.0.1", 8080, MAIN, "b.service")


def test_a_port_whose_holder_nobody_can_see(fake: Fake) -> None:
    fake.process(MAIN)
    fake.listening({"tcp": [(V4, 8080, "0A", 7)]})
    said = fake.kernel.held_by_others("127.0.0.1", 8080, MAIN, UNIT)
    assert said == f"port 8080 is held by a process that is not of {UNIT}"
    (fake.proc / str(MAIN) / "fd").rmdir()
    said = fake.kernel.held_by_others("127.0.0.1", 8080, MAIN, UNIT)
    assert said.startswith("whose port 8080 is can't be proved: pid 10")


def test_this_very_process_is_read_too() -> None:
    kernel = Kernel()
    assert kernel.wrong_directory(os.getpid(), str(Path.cwd())) == ""
    assert kernel.environment(os.getpid())["PATH"]
    assert kernel.age(os.getpid()) > 0
