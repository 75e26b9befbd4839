"""Run an application's own check here before its release is signed, as the host will run it.

In the built tree, with the packages of the release's lock and none of this machine's, nothing of
the caller's environment but what programs need, and a limit of time. It ends with the caller,
however that ends. What it writes outside of serve.writes is found: on a host it could not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from macd.checklist import Item
from macd.errors import MacdError
from macd.host.deploy.health import CHECK_TIMEOUT_S
from macd.host.durable import one_at_a_time
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.own import SOURCE, argv
from macd.host.processes import of_session
from macd.host.rpc import blobs
from macd.host.store import runtimes
from macd.host.untrusted import line, text
from macd.release.lock import Lock
from macd.release.wheelhouse import Target

_NAME = "check"
_RUNTIMES = 3  # as many stay here
_LAST_LINES, _LAST_BYTES = 15, 8192
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
_OURS = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
_Stat = tuple[int, int, int]


@dataclass(frozen=True)
class OwnCheck:
    """How the check of one application is run here.

    command: "" where none is declared. programs: what the runtime has to bring -> the key that
    names it. state: a directory of ours, where runtimes are kept per lock. say: called with what
    takes its time, before it begins.
    """

    command: str
    writes: Sequence[str]
    programs: dict[str, str]
    lock: Lock
    wheels: Sequence[Path]
    state: Path
    limit_s: float = CHECK_TIMEOUT_S  # as on a host
    say: Callable[[str], None] = lambda _: None

    def run(self, building: Path) -> Item:
        """Check the release being built in `building`, which holds source/; leaves it as it was.

        Raises MacdError where its packages can't be installed here although the lock is for such a
        machine.
        """
        python = python_for(self.lock)
        if python is None:
            where = f"the packages are for Python {self.lock.python}, {self.lock.platform}"
            return Item(_NAME, True, f"not run here: {where}; the host runs it", done=False)
        runtime = self._runtime(python)
        for program, key in self.programs.items():
            if not (runtime / "bin" / program).exists():
                shown = line(program)
                cause = "serve.requirements lacks it"
                remedy = f"add the package that has {shown} to it, or write python3 -m"
                if (building / SOURCE / program).is_file():
                    cause = "it is a file of the source, which a shell would find by its path alone"
                    remedy = f"write python3 {shown} if it is Python"
                what = f"{key} starts {shown}, which no package of the runtime brings"
                return Item(_NAME, False, what, cause, remedy)
        if not self.command:
            return Item(_NAME, True, "none is declared (app.check)", done=False)
        with self._made_ready(building, runtime):
            before = _stats(building / SOURCE)
            item = self._run(building)
            changed = _changed(before, building / SOURCE, self.writes)
        if item.ok and changed:
            return Item(
                _NAME,
                False,
                f"it wrote {', '.join(map(line, changed[:3]))}; on a host it can't",
                "a release is read-only there, but for serve.writes",
                "name its directory in serve.writes, or have it write to a temporary one",
            )
        return item

    def _runtime(self, python: str) -> Path:
        """The path of a virtual environment with the lock's packages, built once per lock."""
        layout = Layout(str(self.state))
        runtime = Path(layout.runtime(self.lock.sha256))
        self.state.mkdir(parents=True, exist_ok=True)
        if self.lock.wheels and not runtime.exists():
            self.say(f"installing {len(self.lock.wheels)} packages here, as a host will")
        with one_at_a_time(self.state / ".lock"):
            by_name = {path.name: path for path in self.wheels}
            given = [Path(blobs.path_of(layout.app, wheel.sha256)) for wheel in self.lock.wheels]
            try:
                for wheel, blob in zip(self.lock.wheels, given, strict=True):
                    blob.parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(by_name[wheel.file], blob)
                runtimes.install(layout, self.lock.raw, [], python=python)
            except HostError as error:
                raise MacdError(
                    f"the release's packages can't be installed here: {error.what}",
                    why=error.why,
                    live="no release was made",
                    hint="mend serve.requirements, or this machine's Python",
                ) from error
            finally:
                for blob in given:  # a wheel is stored once, where locks are resolved
                    blob.unlink(missing_ok=True)
            os.utime(runtime)
            for older in _by_use(runtime.parent)[_RUNTIMES:]:
                shutil.rmtree(older, ignore_errors=True)
        return runtime

    @contextlib.contextmanager
    def _made_ready(self, building: Path, runtime: Path) -> Iterator[None]:
        """What a host would add to the tree, for as long as the check runs."""
        link = building / "runtime"
        made = [building / SOURCE / path for path in self.writes]
        try:
            link.symlink_to(runtime)
            for directory in made:
                directory.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            link.unlink(missing_ok=True)
            for directory in made:
                shutil.rmtree(directory, ignore_errors=True)
                _remove_empty(directory.parent, building / SOURCE)
            for cache in (building / SOURCE).rglob("__pycache__"):
                shutil.rmtree(cache, ignore_errors=True)

    def _run(self, building: Path) -> Item:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _OURS
        words = argv(self.command, str(building))
        self.say(f"app.check runs, {self.limit_s:g} s at most: {line(self.command)}")
        began = time.monotonic()
        with tempfile.TemporaryFile() as out:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-m", "macd.release.keeper", *words],
                cwd=building / SOURCE,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = keeper.wait(self.limit_s)
                how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                code, how = 1, f"not done in {self.limit_s:g} s"
            finally:
                if keeper.stdin:
                    keeper.stdin.close()  # ends the check
                keeper.wait()
                for left in of_session(keeper.pid):  # the keeper was killed itself
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left, signal.SIGKILL)
            said = _last_lines(out)
        if code != 0:
            return self._failed(how, said)
        seconds = time.monotonic() - began
        return Item(_NAME, True, f"{line(self.command)} exited with 0 in {seconds:.1f} s")

    def _failed(self, how: str, said: str) -> Item:
        remedy = "run it in the source, mend what it names, then: invoke release"
        cause = "what it printed last says it" if said else "it printed nothing"
        detail = f"{line(self.command)}: {how}" + (f"\n{said}" if said else "")
        return Item(_NAME, False, detail, cause, remedy)


def python_for(lock: Lock) -> str | None:
    """A Python here on which a runtime of that lock works; None without one."""
    here = Target.here()
    if not replace(here, python=lock.python).runs(lock):
        return None
    if here.python == lock.python:
        return sys.executable
    return shutil.which(f"python{lock.python}")


def _link_or_copy(path: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:  # another file system
        shutil.copyfile(path, target)


def _by_use(runtimes_here: Path) -> list[Path]:
    """The runtimes here, the one that was used last first."""
    return sorted(runtimes_here.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)


def _last_lines(out: IO[bytes]) -> str:
    size = out.seek(0, os.SEEK_END)
    out.seek(max(0, size - _LAST_BYTES))
    said = out.read().decode("utf-8", "replace").replace("\r", "\n")
    lines = [f"  {line(one)}" for one in said.splitlines() if one.strip()]
    return text("\n".join(lines[-_LAST_LINES:]), _LAST_BYTES)


def _stats(top: Path) -> dict[str, _Stat]:
    """What tells that a file was written: (inode, size, time of change) by path."""
    stats = {}
    for directory, _, names in os.walk(top):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            stats[path.relative_to(top).as_posix()] = seen
    return stats


def _changed(before: dict[str, _Stat], top: Path, writes: Sequence[str]) -> list[str]:
    after = _stats(top)
    kept = tuple(f"{path}/" for path in writes)
    differs = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return sorted(
        path for path in differs if not path.startswith(kept) and "__pycache__" not in path
    )


def _remove_empty(directory: Path, top: Path) -> None:
    with contextlib.suppress(OSError):
        while directory != top:
            directory.rmdir()
            directory = directory.parent
