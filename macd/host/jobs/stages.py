"""Train an application of the team's own: its commands one after another, in a copy of its source.

The runner starts this (`python -m macd.host.jobs.stages RUN_DIRECTORY`) in place of a training. It
writes logs/<stage>.log, events.jsonl and, last, result.json. A run is done only when each stage
exited with 0 and every glob of artefacts matches a file that this run wrote.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from macd.host import durable, untrusted
from macd.host.failure import HostError
from macd.host.jobs import artefacts, environments, figures
from macd.host.jobs.children import (
    Stopped,
    asked_already,
    end_processes,
    ignore_signals,
    own_descendants,
    stop_on_signals,
)
from macd.host.jobs.figures import Figure
from macd.host.jobs.operations import EVENTS, LOGS, RESULT
from macd.host.jobs.runner import SPEC, end_with
from macd.host.layout import load, save
from macd.host.masking import masked

REQUEST = "request.json"
SOURCE, ARTEFACTS = "source", "artefacts"
SETUP, KEEPING = "train.setup", "train.artefacts"  # no stage has such a name
_POLL_S = 0.2
_LINE_S = 2.0  # a chatty stage: so often its newest line becomes an event
_END_S = 10.0  # shorter than the runner's patience
_LAST_LINES = 12
_LAST_BYTES = 16384


def main(directory: str) -> int:
    """Run the stages of a run to their end; the exit code."""
    runner = own_descendants(directory)
    run = Stages(directory, now=time.time, end_left=end_processes)
    stop_on_signals()
    try:
        try:
            run.go()
        except OSError as error:
            raise _of_system(error) from error
    except HostError as error:
        ignore_signals()
        end_processes()
        return run.ended(error, "failed")
    except Stopped:
        end_processes(grace=_END_S, spared=asked_already(runner))
        return run.ended(HostError("the training was stopped"), "cancelled")
    return 0


class Stages:
    """One run of an own application's training, in its directory.

    request.json: name, symbol, tf, stages ([name, command] each), complete, setup, artefacts,
    metrics, criteria, env, executable (paths), code.
    """

    def __init__(
        self, directory: str, *, now: Callable[[], float], end_left: Callable[[], int]
    ) -> None:
        """end_left: ends the processes that stages left behind and tells how many there were."""
        self._directory = directory
        self._now = now
        self._end_left = end_left
        self._request: Mapping[str, Any] = load(os.path.join(directory, REQUEST), {})
        self._spec: Mapping[str, Any] = load(os.path.join(directory, SPEC), {})
        self._work = os.path.dirname(os.path.dirname(directory))
        self._tree = os.path.join(directory, SOURCE)
        self._stage = ""
        self._seconds: dict[str, float] = {}

    def go(self) -> None:
        """All of it. Raises HostError or OSError where the run fails."""
        started = self._now()
        request, patterns = self._request, self._request["artefacts"]
        self._event("run_started")
        self._save("settings.json", {"own": True, **_without(request, "env", "executable")})
        for tree in glob.glob(os.path.join(glob.escape(self._work), "runs", "*", SOURCE)):
            shutil.rmtree(tree, ignore_errors=True)  # of runs that are over: one runs at a time
        copied = self._copy(started)
        artefacts.make_directories(self._tree, patterns)
        env, python = self._environment()
        for number, (name, command) in enumerate(request["stages"], start=1):
            note = f"{number}/{len(request['stages'])}: {command}"
            self._run(name, self._argv(command, python, env), env, note)
        if left := self._end_left():
            self._event("warning", note=f"{left} processes that a stage left behind were ended")
        self._finish(self._keep(patterns, copied), copied, started)
        shutil.rmtree(self._tree, ignore_errors=True)

    def _finish(
        self,
        files: list[dict[str, Any]],
        copied: Mapping[int, artefacts.Copied],
        started: float,
    ) -> None:
        """Measure, judge and write the result, last."""
        request = self._request
        measured = {name: self._figure(place, copied) for name, place in request["metrics"].items()}
        findings = figures.judged(request["criteria"], measured)
        self._save("metrics.json", {"own": {name: value for name, (value, _) in measured.items()}})
        self._save("criteria.json", findings)
        for name in ("settings.json", "metrics.json", "criteria.json"):
            path = os.path.join(self._directory, name)
            files.append(_entry(name, os.path.getsize(path), durable.sha256_of(path)))
        for line in figures.lines(measured, findings):
            self._event("summary", note=line)
        seconds = round(self._now() - started, 3)
        result = {
            "state": "done",
            "own": request["name"],
            "complete": request["complete"],
            "stages": [name for name, _ in request["stages"]],
            "stage_seconds": self._seconds,
            "seconds": seconds,
            "code": request["code"],
            "metrics": {name: value for name, (value, _) in measured.items()},
            "criteria": {finding["name"]: finding["ok"] for finding in findings},
            "blocked_by": [
                finding["name"]
                for finding in findings
                if not finding["ok"] and finding["level"] == "block"
            ],
            "files": files,
        }
        self._save(RESULT, result)
        self._event("run_done", seconds=seconds, files=len(files))

    def ended(self, error: HostError, state: str) -> int:
        """Record why the run ended early; the exit code. What stages left stays for whoever looks.

        A run whose result is there is done, whatever came afterwards.
        """
        if load(os.path.join(self._directory, RESULT), {}).get("state") == "done":
            return 0
        said = self._of_every_stage() if self._stage == KEEPING else self._last_lines(self._stage)
        sys.stdout.buffer.write(said.encode())  # whatever the locale is
        sys.stdout.flush()
        reason = {name: getattr(error, name) for name in ("what", "why", "hint")}
        with contextlib.suppress(OSError):  # a full disk; the exit code says it as well
            self._event("run_failed", stage=self._stage, what=error.what, why=error.why)
            self._save(RESULT, {"state": state, "stage": self._stage, **reason})
        return 1

    # -- stages

    def _copy(self, started: float) -> Mapping[int, artefacts.Copied]:
        original = os.path.join(str(self._spec["cwd"]), SOURCE)
        try:
            return artefacts.copy(original, self._tree, self._request["executable"], now=started)
        except OSError:  # no room; half a copy helps nobody
            shutil.rmtree(self._tree, ignore_errors=True)
            raise

    def _environment(self) -> tuple[dict[str, str], str]:
        """The variables of the stages, and the Python that they run."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env.pop("PYTHONPATH", None)  # it leads to macd
        env["MACD_RUN"] = str(self._spec["run"])
        setup = self._request["setup"]
        if not setup:
            # As the host names it: a wrapper may set what its Python needs.
            return {**env, **self._request["env"]}, str(self._spec["argv"][0])
        note = f"packages of {setup}"
        try:
            made = environments.ensure(
                self._work, self._tree, setup, lambda argv: self._run(SETUP, argv, env, note)
            )
        except HostError as error:
            raise HostError(
                f"the packages of {setup} can't be installed on this host",
                why=error.why,
                hint="the end of pip's log says why; pip there uses the host's own settings"
                " (python3 -m pip config list). Without python3-venv: apt-get install it",
            ) from error
        if not made.built:
            self._event("note", note=f"{note}: environment {made.digest[:12]} is there")
        programs = os.path.dirname(made.python)
        env["VIRTUAL_ENV"] = os.path.dirname(programs)
        env["PATH"] = f"{programs}{os.pathsep}{env.get('PATH', os.defpath)}"
        return {**env, **self._request["env"]}, made.python

    def _argv(self, command: str, python: str, env: Mapping[str, str]) -> list[str]:
        words = shlex.split(command)
        if words[0] in ("python", "python3"):
            return [python, *words[1:]]
        program = words[0] if "/" in words[0] else shutil.which(words[0], path=env.get("PATH"))
        if program is None:
            raise HostError(
                f"there is no program {words[0]} on this host",
                why=f"a stage is {command}",
                hint="install it there, or let train.setup bring it",
            )
        return [program, *words[1:]]

    def _run(self, name: str, argv: list[str], env: Mapping[str, str], note: str) -> None:
        """Run a command of a stage in the tree. Raises HostError where it doesn't exit with 0."""
        if name != self._stage:
            self._event("stage_started", stage=name, note=note)
        self._stage = name
        path = os.path.join(self._directory, LOGS, f"{name}.log")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        started = self._now()
        with open(path, "ab") as log:
            try:
                child = subprocess.Popen(
                    argv,
                    cwd=self._tree,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=end_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
                )
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN):
                    raise
                raise HostError(
                    f"stage {name} can't be started: {error.strerror}: {argv[0]}",
                    hint="the source on the host holds what git tracks; a script must be executable"
                    " and begin with #!",
                ) from error
        reported_at, said = self._now(), ""
        while (code := child.poll()) is None:
            time.sleep(_POLL_S)
            if self._now() >= reported_at + _LINE_S:
                reported_at = self._now()
                said = self._report_line(name, path, said)
        self._report_line(name, path, said)
        self._seconds[name] = round(self._seconds.get(name, 0) + self._now() - started, 3)
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
            raise HostError(
                f"stage {name} failed: {how}",
                why=" ".join(argv),
                hint=f"the end of its log says why; mend it, then invoke train again"
                f" ({SOURCE}/ of the run on the host is as the stage left it)",
            )
        if name != SETUP:
            self._event("stage_done", stage=name, seconds=self._seconds[name])

    def _report_line(self, stage: str, path: str, before: str) -> str:
        """The newest line of a stage as an event, unless it was reported."""
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2048))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
        newest = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        if newest and newest != before:
            text = masked(newest) if stage == SETUP else newest
            with contextlib.suppress(OSError):  # a full disk is the stage's own matter
                self._event("line", stage=stage, text=untrusted.line(text.strip(), 200))
        return newest

    # -- what they left

    def _keep(
        self, patterns: list[str], copied: Mapping[int, artefacts.Copied]
    ) -> list[dict[str, Any]]:
        """Put the artefacts away. Raises HostError for a glob that no file of this run matches."""
        files: dict[str, dict[str, Any]] = {}
        for pattern in patterns:
            matches = artefacts.matches(self._tree, pattern, copied)
            if not matches.written:
                self._missing(pattern, matches)
            if matches.empty:
                self._event("warning", note=f"empty: {_few(matches.empty)}")
            for path, real in matches.written.items():
                name = f"{ARTEFACTS}/{artefacts.checked(path)}"
                if len(files) >= artefacts.MOST:
                    raise _too_many(pattern)
                if name not in files:
                    kept = artefacts.keep(real, os.path.join(self._directory, name))
                    files[name] = _entry(name, *kept)
        return list(files.values())

    def _missing(self, pattern: str, matches: artefacts.Matches) -> None:
        why = f"no file matches {pattern}"
        if matches.old:
            why = f"{_few(matches.old)} came with the source; no stage wrote it again"
        elif matches.empty:
            why = f"{_few(matches.empty)} holds nothing"
        if not self._request["complete"]:  # one stage alone
            self._event("note", note=f"artefacts {pattern}: {why}")
            return
        self._stage = KEEPING  # which stage should have written it is not known
        raise HostError(
            f"every stage exited with 0, but left no artefact {pattern}",
            why=why,
            hint=f"look in {LOGS}/ of the run at the stage that should write it; or mend"
            f" train.artefacts in the inventory. What the stages left is in {self._tree} on the"
            " host until the next run starts",
        )

    def _figure(self, place: str, copied: Mapping[int, artefacts.Copied]) -> Figure:
        """A metric's number: from the newest file of this run, or from the log of a stage."""
        pattern, _, where = place.partition("#")
        matches = artefacts.matches(self._tree, pattern, copied)
        paths = list(matches.written.values())
        stage = pattern.removeprefix(f"{LOGS}/").removesuffix(".log")
        if not paths and pattern == f"{LOGS}/{stage}.log" and stage in self._seconds:
            paths = [os.path.join(self._directory, pattern)]
        if not paths:
            return None, f"{pattern} is {'not of this run' if matches.old else 'not there'}"
        value, why = figures.extract(where, artefacts.text_of(max(paths, key=os.path.getmtime)))
        return value, f"{pattern}: {why}" if why else ""

    # -- records

    def _of_every_stage(self) -> str:
        """The ends of all stages' logs, each line with its stage."""
        names = [name for name, _ in self._request["stages"]]
        most = max(1, _LAST_LINES // len(names))
        ends = {name: self._last_lines(name).splitlines()[-most:] for name in names}
        return "".join(f"{name}: {line}\n" for name, lines in ends.items() for line in lines)

    def _last_lines(self, stage: str) -> str:
        """The end of a stage's log, for the log of the run."""
        path = os.path.join(self._directory, LOGS, f"{stage}.log")
        if not stage or not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
            text = file.read().decode("utf-8", "replace").replace("\r", "\n")
        if stage == SETUP:  # an index's address may hold a password
            text = masked(text)
        lines = [untrusted.line(line) for line in text.splitlines() if line.strip()]
        return "".join(f"{line}\n" for line in lines[-_LAST_LINES:])

    def _event(self, event: str, **fields: Any) -> None:
        record = {"t": round(self._now(), 3), "event": event, **fields}
        data = json.dumps(record).encode() + b"\n"
        path = os.path.join(self._directory, EVENTS)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            durable.write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def _save(self, name: str, document: Any) -> None:
        save(os.path.join(self._directory, name), document)


def _without(request: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in names}


def _entry(path: str, size: int, sha256: str) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": sha256}


def _few(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(untrusted.line, paths[:3])) + more


def _too_many(pattern: str) -> HostError:
    return HostError(
        f"the artefacts are more than {artefacts.MOST:,} files",
        why=f"{pattern} matches too much",
        hint="name fewer files in train.artefacts, or let the training pack them into one",
    )


def _of_system(error: OSError) -> HostError:
    where = f": {error.filename}" if error.filename else ""
    return HostError(
        f"the training could not read or write: {error.strerror or error}{where}",
        hint="check disk space (df -h) and permissions of work_dir on the host, then again",
    )


if __name__ == "__main__":
    sys.exit(main(durable.expand(sys.argv[1])))
