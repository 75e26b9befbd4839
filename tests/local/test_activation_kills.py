"""Killed at any system call that changes the disk, or refused it: old or new, never between.

Every point is a process of the product's own code, ended by strace right before one call. What
must hold straight after the kill, after the host's own recovery, and after the next deploy is
written in tests/kills/ward.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kills.ward import UNIT, Ward, unit_of, ward

Point = tuple[str, int, str]
# A kill before these shows nothing that a kill before the call next to it does not show.
_SAME_DISK = ("fsync", "fdatasync", "openat", "fchmod", "ftruncate")
_BAD, _NEXT = 4, 7


def traceable() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not traceable(), reason="strace can't trace here")


@pytest.fixture(scope="module")
def host() -> Iterator[Ward]:
    """Releases 1 (which had been allowed to stack) and 2 were live, 3 to 7 may come, 4 is bad."""
    with ward({1: "good", 2: "good", 3: "good", 4: "bad", 5: "good", 7: "good"}) as made:
        made.save("empty")
        assert made.deploy(1) == "committed"
        shadow = "ML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES={}\n"
        made.flags = {serial: shadow.format(serial) for serial in (1, 2)}
        (made.app / ".env").write_text(made.flags[1].replace("STACKING=0", "STACKING=1", 1))
        assert made.deploy(2) == "committed"
        (made.app / ".env").write_text(made.flags[2])
        assert made.deploy(2) == "committed"  # the same release again: its flags are taken up
        made.check_settled()
        made.check_tidy()
        made.save("two")
        yield made


Prepare = Callable[[Ward], None]


def from_two(host: Ward) -> None:
    host.restore("two")


def sent(serial: int, start: str = "two") -> Prepare:
    def prepare(host: Ward) -> None:
        host.restore(start)
        number = host.send(serial)["said"]
        host.step("confirm", number=int(number))

    return prepare


def about_to_roll_back(host: Ward) -> None:
    host.restore("two")
    host.step("confirm", number=int(host.step("rollback", keep=0)["said"]))


def offer(host: Ward, serial: int) -> dict[str, Any]:
    folder = host.top / "offers" / str(serial)
    return {"release": str(folder), "units": {UNIT: unit_of(serial)}, "keep": 2}


# name: what stood before, the step that is ended, what may be live afterwards
CASES: dict[str, tuple[Prepare, str, int, tuple[int | None, ...]]] = {
    "sending": (from_two, "send", 3, (2,)),
    "deploying": (sent(3), "run", 0, (2, 3)),
    "reverting a bad one": (sent(4), "run", 0, (2,)),
    "the first of all": (sent(5, "empty"), "run", 0, (None, 5)),
    "asking for a rollback": (from_two, "rollback", 0, (2,)),
    "rolling back": (about_to_roll_back, "run", 0, (2, 1)),
}


def arguments(host: Ward, step: str, serial: int) -> dict[str, Any]:
    return offer(host, serial) if step == "send" else {"keep": 2} if step == "rollback" else {}


def prepared(host: Ward, prepare: Prepare, name: str) -> str:
    prepare(host)
    host.save(name)
    return name


def recover(host: Ward, how: str) -> None:
    """As systemd does (started again), as a boot does, or as the next deploy does."""
    answer = host.step(how)
    assert answer.get("said") in ("committed", "reverted", "nothing"), answer
    host.check_settled(serving=how != "boot")


def telling(calls: list[Point]) -> list[Point]:
    """The points that differ: those that change the disk, and the one behind each rename, where
    what was renamed is in view but nobody (systemd, say) was told of it yet."""
    behind = [calls[n] for n in range(1, len(calls)) if calls[n - 1][0] == "rename"]
    return [call for call in calls if call[0] not in _SAME_DISK or call in behind]


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_call(host: Ward, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, step, serial, allowed = CASES[case]
    start = prepared(host, prepare, case.replace(" ", "-"))
    words = arguments(host, step, serial)
    points = telling(host.system_calls(step, **words))
    ended: Counter[str] = Counter()
    for index, (call, nth, what) in enumerate(points):
        host.restore(start)
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        answer = host.step(step, trace=(f"trace={call}", inject), **words)
        where = f"{case}: killed before {call} {nth}: {what}"
        assert answer["status"] == -9, where
        check(host, where, allowed, ("run", "recover", "boot")[index % 3])
        ended[f"live {host.live}"] += 1
        check_next(host, where)
    with capsys.disabled():
        print(f"\n{case}: {len(points)}/{len(points)} kills, then {dict(ended)}, next deploy good")


def check(host: Ward, where: str, allowed: tuple[int | None, ...], how: str) -> None:
    try:
        assert host.live in (*allowed, _BAD)  # a bad one while it is on trial
        host.check_whole()
        recover(host, how)
        assert host.live in allowed
    except AssertionError as error:
        raise AssertionError(where) from error


def check_next(host: Ward, where: str) -> None:
    try:
        assert host.deploy(_NEXT) == "committed"
        host.check_settled()
        host.check_tidy()
    except AssertionError as error:
        raise AssertionError(where) from error


FAULTS = {
    "ENOSPC": ("openat", "write", "pwrite64", "mkdir", "symlink", "link", "rename", "fallocate"),
    "EIO": ("write", "fsync", "rename", "unlink", "rmdir", "unlinkat", "symlink", "link"),
}


@pytest.mark.parametrize(
    "every", [7, pytest.param(1, marks=[pytest.mark.full, pytest.mark.timeout(1200)])]
)
@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails(
    host: Ward, case: str, error: str, every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The call fails once, or from then on until the disk is mended."""
    prepare, step, serial, allowed = CASES[case]
    start = prepared(host, prepare, case.replace(" ", "-"))
    words = arguments(host, step, serial)
    points = [p for p in host.system_calls(step, **words) if p[0] in FAULTS[error]]
    # Opening for reading goes on working on a full disk, so openat can only fail once.
    tried = [
        (p, lasting) for p in points for lasting in ("", "+") if not lasting or p[0] != "openat"
    ]
    tried = tried[len(case) % every :: every]
    ended: Counter[str] = Counter()
    for (call, nth, what), lasting in tried:
        host.restore(start)
        inject = f"inject={call}:error={error}:when={nth}{lasting}"
        answer = host.step(step, trace=(f"trace={call}", inject), **words)
        where = f"{case}: {error} at {call} {nth}{lasting}: {what}: {answer}"
        check(host, where, allowed, "recover")
        ended[str(answer.get("said", "gave up")) if step == "run" else "gave up or begun"] += 1
        check_next(host, where)
    with capsys.disabled():
        print(f"\n{case}: {len(tried)}/{len(tried)} {error}: {dict(ended)}, next deploy good")
