"""Killed at any system call that changes the disk, or refused it: old or new, never between.

Every point is a process of the product's own code, ended by strace right before one call. What
must hold straight after the kill, after the host's own recovery, and after the next deploy is
written in tests/support/kills/traced_host.py.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from macd.host.own import Service
from tests.support.kills.traced_host import OWN, TracedHost, traced_host

Point = tuple[str, int, str]
# What the team wrote into .env since release 1 was live; nothing may lose it.
TEAM = "# rotated\nEXCHANGE_KEY='new'  \n"
_BAD, _NEXT, _PACKED = 4, 7, (8, 9)


def traceable() -> bool:
    if shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not traceable(), reason="strace can't trace here")


@contextlib.contextmanager
def host_of(own: Service | None) -> Iterator[TracedHost]:
    """Releases 1 (which had been allowed to stack) and 2 were live, 3 to 9 may come, 4 is bad,
    8 and 9 need a runtime of their own."""
    packed = dict.fromkeys(_PACKED, "packages")
    good = {1: "good", 2: "good", 3: "good", 5: "good", 7: "good"}
    with traced_host({**good, 4: "bad", **packed}, own) as made:
        made.save("empty")
        assert made.deploy(1) == "committed"
        shadow = "ML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES={}\n"
        made.flags = {serial: shadow.format(serial) + TEAM for serial in (1, 2)}
        stacking = shadow.format(1).replace("STACKING=0", "STACKING=1", 1)
        (made.app / ".env").write_text(stacking)
        assert made.deploy(2) == "committed"
        (made.app / ".env").write_text(made.flags[2])
        assert made.deploy(2) == "committed"  # the same release again: its flags are taken up
        made.check_settled()
        made.check_tidy()
        made.save("two")
        yield made


Prepare = Callable[[TracedHost], None]


def from_two(host: TracedHost) -> None:
    host.restore("two")


def sent(serial: int, start: str = "two") -> Prepare:
    def prepare(host: TracedHost) -> None:
        host.restore(start)
        number = host.send(serial)["said"]
        host.step("confirm", number=int(number))

    return prepare


def about_to_roll_back(host: TracedHost) -> None:
    host.restore("two")
    host.step("confirm", number=int(host.step("rollback", keep=0)["said"]))


def asked_for(host: TracedHost) -> None:
    """A deploy that nobody has confirmed yet."""
    host.restore("two")
    host.send(3)


def interrupted(call: str, path: str) -> Prepare:
    """A deploy of 3 killed at the last `call` that has to do with `path`."""

    def prepare(host: TracedHost) -> None:
        sent(3)(host)
        host.save("to-interrupt")
        calls = host.system_calls("run")
        nth = [nth for name, nth, what in calls if name == call and path in what][-1]
        host.restore("to-interrupt")
        killed = host.step("run", trace=(f"trace={call}", f"inject={call}:signal=KILL:when={nth}"))
        assert killed["status"] == -9

    return prepare


uncommitted = interrupted("rename", "committed.json")
committed = interrupted("unlink", "room-to-go-back")


@dataclass(frozen=True)
class Case:
    """What stood before, the step that is ended, what may be live then and when all has ended."""

    prepare: Prepare
    step: str
    after: tuple[int | None, ...]
    serial: int = 0  # what is sent, by "send"
    on_trial: tuple[int | None, ...] = ()  # live only until the host has ended the matter
    within: str = ""  # only calls that have to do with this path
    next: int = _NEXT


CASES = {
    "sending": Case(from_two, "send", (2,), 3),
    "building a runtime": Case(from_two, "send", (2,), 8, within="/runtimes", next=9),
    "confirming": Case(asked_for, "confirm", (2, 3)),
    "deploying": Case(sent(3), "run", (2, 3)),
    "reverting a bad one": Case(sent(4), "run", (2,), on_trial=(_BAD,)),
    "the first of all": Case(sent(5, "empty"), "run", (None, 5)),
    "asking for a rollback": Case(from_two, "rollback", (2,)),
    "rolling back": Case(about_to_roll_back, "run", (2, 1)),
    "taking back": Case(uncommitted, "recover", (2,), on_trial=(3,)),
    "taking back at boot": Case(uncommitted, "boot", (2,), on_trial=(3,)),
    "clearing up": Case(committed, "recover", (3,)),
    "clearing up at boot": Case(committed, "boot", (3,)),
}


# What runs an application of one's own is a prover of its own, and two units; the rest is shared.
_OWN = ("deploying", "reverting a bad one", "taking back at boot")
WHOSE: dict[str, Service | None] = {"built-in": None, "own": OWN}


def marks(whose: str, name: str, *, full: bool = False) -> list[pytest.MarkDecorator]:
    full = full or (whose == "own" and name not in _OWN)
    return [pytest.mark.full] if full else []


RUNS = [pytest.param(whose, name, marks=marks(whose, name)) for whose in WHOSE for name in CASES]


def arguments(host: TracedHost, case: Case) -> dict[str, Any]:
    if case.step == "send":
        return {"keep": 0, **host.offered(case.serial)}
    if case.step == "confirm":
        return {"number": host.state("pending.json")["number"]}
    return {"keep": 0} if case.step == "rollback" else {}


@dataclass(frozen=True)
class Prepared:
    """A case, what its host is saved as, what its step is told, and what it does undisturbed."""

    host: TracedHost
    case: Case
    start: str
    words: dict[str, Any]
    calls: list[Point]
    asked: int


@pytest.fixture(scope="module")
def prepared() -> Iterator[Callable[[str, str], Prepared]]:
    """Prepares a case by its application and name; once, since the host is saved then."""
    with contextlib.ExitStack() as hosts:

        @functools.cache
        def host(whose: str) -> TracedHost:
            return hosts.enter_context(host_of(WHOSE[whose]))

        @functools.cache
        def prepare(whose: str, name: str) -> Prepared:
            on, case, start = host(whose), CASES[name], name.replace(" ", "-")
            case.prepare(on)
            on.save(start)
            words = arguments(on, case)
            calls = on.system_calls(case.step, **words)
            within = [call for call in calls if case.within in call[2]]
            return Prepared(on, case, start, words, within, 0 if case.within else on.asked)

        yield prepare


def recover(host: TracedHost, case: Case, how: str) -> None:
    """As systemd does (started again), as a boot does, or as the next deploy does."""
    answer = host.step(how)
    assert answer.get("said") in ("committed", "reverted", "nothing"), answer
    # At boot only the files are put back: systemd starts what serves, and there is none here.
    host.check_settled(serving="boot" not in (how, case.step))


def telling(calls: list[Point]) -> list[Point]:
    """The points that differ: a kill before a call shows the disk as the one before left it.

    So none behind a sync, which a kill (unlike a power cut) can't tell from the call before it;
    and none before the mode of a file is set that is out of view.
    """
    synced = ("fsync", "fdatasync")
    return [
        call
        for n, call in enumerate(calls)
        if call[0] != "fchmod" and (n == 0 or calls[n - 1][0] not in synced)
    ]


Kill = tuple[str, dict[str, Any]]


def kills(calls: list[Point], asked: int) -> list[Kill]:
    """At each call, and before and after each change of systemd took effect: where, and how."""
    found: list[Kill] = []
    for call, nth, what in telling(calls):
        inject = f"inject={call}:signal=SIGKILL:when={nth}"
        found.append((f"before {call} {nth}: {what}", {"trace": (f"trace={call}", inject)}))
    for number in range(1, asked + 1):
        for when in ("before", "after"):
            at = f"{number} {when}"
            found.append((f"at change {at} of systemd", {"ended_at": at}))
    return found


# Prime, so that all kinds of calls come up; `make test-full` has every point.
_SPREAD, _FEW = 23, 11
_TRIES = 8
EVERY = [
    pytest.param(False, id="spread"),
    pytest.param(True, id="all", marks=[pytest.mark.full, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize("whole", EVERY)
@pytest.mark.parametrize(("whose", "name"), RUNS)
def test_killed_at_every_call(
    prepared: Callable[[str, str], Prepared],
    whose: str,
    name: str,
    whole: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = prepared(whose, name)
    host, case = made.host, made.case
    points = kills(made.calls, made.asked)
    tried = points if whole else points[::_SPREAD]
    ended: Counter[str] = Counter()
    for index, (at, how) in enumerate(tried):
        answer = tried_at(made, lambda answer: answer["status"] == -9, [how] * _TRIES)
        where = f"{name}: killed {at}"
        assert answer["status"] == -9, where
        check(host, where, case, ("run", "recover", "boot")[index % 3])
        ended[f"live {host.live}"] += 1
        check_next(host, where, case)
    with capsys.disabled():
        of = f"{whose}, {name}: {len(tried)}/{len(points)} kills"
        print(f"\n{of}, then {dict(ended)}, next deploy good")


def tried_at(
    made: Prepared, met: Callable[[Any], bool], ways: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """The step from its start, killed or refused a call in one of the `ways`; its answer."""
    for how in ways:
        made.host.restore(made.start)
        answer = made.host.step(made.case.step, **how, **made.words)
        if met(answer):
            break
    return answer


def refusals(made: Prepared, point: Point, error: str, lasting: str) -> Iterator[dict[str, Any]]:
    """Ways to refuse that call.

    A step that waits makes more calls at one time than at another. So after a miss the call is
    counted again, on the machine as busy as it is now.
    """
    call, nth, what = point
    for _ in range(_TRIES):
        yield {"trace": (f"trace={call}", f"inject={call}:error={error}:when={nth}{lasting}")}
        made.host.restore(made.start)
        calls = made.host.system_calls(made.case.step, **made.words)
        alike = [n for name, n, of in calls if name == call and site(of) == site(what)]
        nth = min(alike, key=lambda n: abs(n - point[1]), default=nth)


def refused(host: TracedHost, place: str, _answer: object) -> bool:
    """Whether the first call that was refused is the one of that file."""
    return bool(host.injected) and place in site(host.injected[0])


def check(host: TracedHost, where: str, case: Case, how: str) -> None:
    try:
        assert host.live in (*case.after, *case.on_trial)
        host.check_whole()
        recover(host, case, how)
        assert host.live in case.after
    except AssertionError as error:
        raise AssertionError(where) from error


def check_next(host: TracedHost, where: str, case: Case) -> None:
    try:
        assert host.deploy(case.next) == "committed"
        host.check_settled()
        host.check_tidy()
    except AssertionError as error:
        raise AssertionError(where) from error


FAULTS = {
    "ENOSPC": ("openat", "write", "pwrite64", "mkdir", "symlink", "link", "rename", "fallocate"),
    "EIO": ("write", "fsync", "rename", "unlink", "rmdir", "unlinkat", "symlink", "link"),
}
_NAMES = (r"\d{8}T\d{6}Z-[0-9a-f]{8}", r"[0-9a-f]{12,}", r"sha256>?/[0-9a-f]{2}\b", r"\d+")


def site(what: str) -> str:
    """Of which file a call is, whatever its release, number or random name."""
    what = re.sub(r"\)\s+= .*", "", what)
    # a tree is removed in whichever order its directory lists it
    what = re.sub(r'(/\.(trash|building)-)[^>"]*>.*', r"\1", what)
    for pattern in _NAMES:
        what = re.sub(pattern, "#", what)
    return what


def chosen(tried: list[tuple[Point, str]]) -> list[tuple[Point, str]]:
    """One of each kind of call and file, the error passing for one and staying for the next."""
    kinds: dict[tuple[str, str], list[tuple[Point, str]]] = {}
    for point, lasting in tried:
        kinds.setdefault((point[0], site(point[2])), []).append((point, lasting))
    return [found[n % len(found)] for n, found in enumerate(kinds.values())]


# Each step meets one of the errors, each error half of the steps; both in `make test-full`.
FAILING = [
    pytest.param(whose, name, error, marks=marks(whose, name, full=bool((step + kind) % 2)))
    for whose in WHOSE
    for step, name in enumerate(CASES)
    for kind, error in enumerate(FAULTS)
]


@pytest.mark.parametrize("whole", EVERY)
@pytest.mark.parametrize(("whose", "name", "error"), FAILING)
def test_a_disk_that_fails(
    prepared: Callable[[str, str], Prepared],
    whose: str,
    name: str,
    error: str,
    whole: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The call fails once, or from then on until the disk is mended."""
    made = prepared(whose, name)
    host, case = made.host, made.case
    points = [p for p in made.calls if p[0] in FAULTS[error]]
    # Opening for reading goes on working on a full disk, so openat can only fail once.
    every = [
        (p, lasting) for p in points for lasting in ("", "+") if not lasting or p[0] != "openat"
    ]
    tried = every if whole else chosen(every)[::_FEW]
    ended: Counter[str] = Counter()
    for (call, nth, what), lasting in tried:
        met = functools.partial(refused, host, site(what))
        answer = tried_at(made, met, refusals(made, (call, nth, what), error, lasting))
        where = f"{name}: {error} at {call} {nth}{lasting}: {what}: {answer}"
        assert host.injected, where
        assert site(what) in site(host.injected[0]), f"{where}: {host.injected[0]}"
        check(host, where, case, "recover")
        ended[str(answer.get("said", "gave up")) if case.step == "run" else "gave up or begun"] += 1
        check_next(host, where, case)
    with capsys.disabled():
        of = f"{whose}, {name}: {len(tried)}/{len(every)} {error}"
        print(f"\n{of}: {dict(ended)}, next deploy good")
