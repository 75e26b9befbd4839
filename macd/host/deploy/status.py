"""What a host is asked without changing anything: the facts of a deploy, and a diagnosis.

The diagnosis runs the live release's own check beside the service. The check imports everything,
loads the models and computes the golden predictions, so it names what is missing or broken here. An
audit has it repeat bars in the same way.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from macd.host import durable, own, untrusted
from macd.host.alerts import look
from macd.host.deploy import adopt, byhand, ledger, locks, rollback
from macd.host.deploy.health import ProbeError, ask, run_check
from macd.host.deploy.probe import Together, prover_of
from macd.host.failure import HostError
from macd.host.flag import flag_file, guard_config
from macd.host.layout import Layout, live_release, load
from macd.host.own import Service
from macd.host.processes import stat_of
from macd.host.rpc import blobs
from macd.host.store import releases, runtimes, signature
from macd.host.systemd import namespaces, selinux
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor

_CHECK_TIMEOUT_S = 180
_REPLAY_TIMEOUT_S = 300
_LONGEST_REPLAY = 4 << 20
_LONGEST = 2000
_LOG_LINES = 30
_SERVICES = ("macd.app.service", "macd.service")  # the second in releases before the rooms moved
_ONLY_ASKED = frozenset(("--check", "--replay"))  # of processes that serve nothing
_QUOTES_ENV = re.compile(r"environment (assignment|variable)|invalid UTF-8", re.IGNORECASE)


def deploy_facts(
    app: str,
    unit: str,
    units: Sequence[str],
    scope: str,
    endpoint: str,
    wanted: Sequence[tuple[str, int]] = (),
    flags: Sequence[str] = (),
    writes: Sequence[str] = (),
    commands: Sequence[Sequence[str]] = (),
    flag: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything a plan needs, in one answer; changes nothing and needs no lock.

    `endpoint` may be "unix": the answer says where that is on this host. `flags` are the keys of
    .env that the tool sets. `writes` are the directories that an own application is to write,
    `commands` the words of what its units run. `flag` is that of the application to be served.
    """
    layout = Layout(durable.expand(app))
    supervisor = Supervisor(scope)
    endpoint = layout.endpoint(endpoint, scope)
    service = _service(layout, supervisor, unit)
    main = service.unit or unit
    process = _process(supervisor, service, main)
    units = list(dict.fromkeys([*units, *service.units]))
    history = ledger.history(layout)
    # Before provision nobody has kept what people may have at `current`.
    live = live_release(layout) if os.path.isdir(layout.state()) else None
    bad = ledger.bad_releases(layout)
    bad_ids = [entry["release"] for entry in bad]
    readiness = ReadinessCheck(layout, Sandbox(scope, supervisor.unit_text(main), layout.app))
    manifest = None
    with contextlib.suppress(HostError):
        manifest = releases.read_manifest(layout, live) if live else None
    return {
        # First: `broken`, below, names what these two checked.
        "rollback": _rollback_target(readiness, history, live, bad_ids),
        "readiness": readiness.of(live),
        "app": layout.app,
        "exists": os.path.isdir(layout.state()),
        "python": {"executable": sys.executable, "version": "%d.%d" % sys.version_info[:2]},
        "endpoint": endpoint,
        "live": live,
        "live_files": [[f.path, f.size, f.sha256] for f in manifest.files] if manifest else [],
        "details": manifest.details if manifest else {},
        "expires": manifest.expires.timestamp() if manifest else None,
        "history": history,
        "bad": bad,
        "releases": releases.on_host(layout),
        "damaged": releases.damaged(layout),
        "foreign": [n for n in _names(layout.releases) if n not in releases.on_host(layout)],
        # A damaged one is built again by the next deploy that needs it.
        "runtimes": [n for n in _names(layout.runtimes) if n not in readiness.broken],
        "serial": load(layout.state("serial.json"), {"serial": 0, "release": ""}),
        "pending": _pending_public(layout),
        "last": ledger.last_end(layout) if os.path.isdir(layout.state("activations")) else None,
        "flag_change": _flag_change_public(layout),
        "lock": _lock(layout),
        "process": process,
        "stacking": guard_config.stacking_state(
            layout, supervisor, unit, endpoint, flag_file.from_document(flag)
        ),
        "alerts": look.status(layout, supervisor, unit),
        # With a socket but no release, asking would only make systemd try to start nothing.
        "health": _health(layout, service, supervisor, unit, endpoint, live)
        if live
        else {"unreachable": "no release is live"},
        "no_directory": [path for path in writes if not os.path.isdir(f"{layout.app}/{path}")],
        "units": {name: supervisor.unit_text(name) for name in units},
        "dropins": supervisor.dropins(units),
        "not_read": supervisor.not_read(units),
        "by_hand": byhand.processes(layout, supervisor, units, commands),
        "adopted": adopt.describe(layout, supervisor),
        # Lines of an own application name no release.
        "others_ran": ledger.others_ran(layout, live) if live and service.name else [],
        "env": durable.text(layout.env),
        "service_settings": durable.text(layout.service_settings),
        "agent_archive": _file_sha256(layout.agent_archive),
        "allowed_signers": durable.text(layout.state("allowed_signers")),
        "accepts": durable.text(layout.state(signature.POLICY)),
        "revoked": _file_sha256(layout.state(signature.REVOKED)),
        "missing": blobs.missing(layout.app, wanted)["missing"] if wanted else [],
        "returns": rollback.previews(layout, supervisor, units, live, history, list(flags)),
        **runtimes.room(layout.app),
        "lacks": runtimes.missing_programs(),
        "no_namespaces": namespaces.trouble(scope, supervisor.unit_text(main), process["pid"]),
        "selinux": _selinux(layout, scope, is_own=bool(service.name)),
    }


def _service(layout: Layout, supervisor: Supervisor, unit: str) -> Service:
    """What is live; where people broke its settings, and nobody knows the ones before, a guess."""
    try:
        return own.read(layout)
    except own.UNREADABLE:
        return flag_file.service_of(layout, supervisor, unit)


def _process(supervisor: Supervisor, service: Service, main: str) -> dict[str, Any]:
    """The main unit's process; of instances, with its `unit`, the first one that does not run."""
    shown = vars(supervisor.show(main))
    if not service.instances:
        return shown
    each = ({**vars(supervisor.show(unit)), "unit": unit} for unit in service.units)
    down = next((one for one in each if one["active"] != "active"), None)
    return down or {**shown, "unit": main}


def _selinux(layout: Layout, scope: str, *, is_own: bool) -> str:
    """Whether the runtime's Python may be started, and an own application's programs beside it."""
    python = os.path.realpath(sys.executable)
    programs = [python, layout.app] if is_own else [python]
    return selinux.trouble(programs) if scope == "system" else ""


def _rollback_target(
    readiness: ReadinessCheck, history: list[dict[str, Any]], live: str | None, bad: list[str]
) -> dict[str, Any]:
    """The release that a rollback goes to, and whether it is ready; or why there is none."""
    target = releases.rollback_target(history, live, bad)
    if target is not None or not history:
        return readiness.of(target)
    here = releases.on_host(readiness.layout)
    names = [str(entry["release"]) for entry in reversed(history)]
    left = [name for name in dict.fromkeys(names) if name not in (live, *bad) and name in here]
    why = "no other release was committed here yet"
    if set(names) - {live}:
        why = "the others that were live here were rolled back from, failed, or are gone"
        if left:
            why += "; invoke rollback --to %s goes to the newest" % left[0]
    return {"release": None, "ready": False, "why": why}


class ReadinessCheck:
    """Whether this host could go back to a release now, without anything sent.

    The release's files are hashed and its runtime is checked (macd/host/store/runtimes.py). Loading
    the models is left to the release's own check before a switch.
    """

    def __init__(self, layout: Layout, sandbox: Sandbox) -> None:
        self.layout = layout
        self._sandbox = sandbox
        self._runtimes: dict[str, str] = {}  # releases share them

    @property
    def broken(self) -> list[str]:
        """The runtimes that were checked and are damaged."""
        return [lock for lock, wrong in self._runtimes.items() if wrong]

    def of(self, release: str | None) -> dict[str, Any]:
        """`why` it is not ready; `runtime` is the part of it about the runtime."""
        if release is None:
            return {"release": None, "ready": False, "why": "nothing was committed here before"}
        damage, runtime = "", ""
        try:
            damage = releases.damage(self.layout, release)
            runtime = self._of_runtime(release)
        except (HostError, OSError) as error:
            damage = str(error)
        why = "; ".join(part for part in (damage, runtime) if part)
        return {"release": release, "ready": not why, "why": why, "runtime": runtime}

    def _of_runtime(self, release: str) -> str:
        lock = releases.read_manifest(self.layout, release).lock
        if lock not in self._runtimes:
            place = self.layout.runtime(lock)
            wheels = _wheels(os.path.join(self.layout.release(release), "lock.json"))
            self._runtimes[lock] = runtimes.wrong_with(place, wheels, self._sandbox)
        return self._runtimes[lock]


def _wheels(path: str) -> list[dict[str, Any]]:
    """What a lock lists. Raises HostError for a file that is no lock."""
    lock = load(path, {"wheels": []})
    wheels = lock.get("wheels") if isinstance(lock, dict) else None
    names = {"name", "sha256"}
    if not isinstance(wheels, list) or not all(
        isinstance(w, dict) and names <= {*w} for w in wheels
    ):
        raise HostError(f"{path} is no lock")
    return wheels


def unable(layout: Layout, release: str, sandbox: Sandbox) -> str:
    """Why a rollback to `release` must fail; "" if it is worth a try.

    It asks less than ReadinessCheck: the release's own check will say whether it can do without
    what its runtime lacks, and somebody wants it back now.
    """
    try:
        damage = releases.damage(layout, release)
        runtime = layout.runtime(releases.read_manifest(layout, release).lock)
    except (HostError, OSError) as error:
        return str(error)
    return damage or runtimes.python_wrong(runtime, sandbox)


def _pending_public(layout: Layout) -> dict[str, Any] | None:
    pending = ledger.read_pending(layout)
    if pending is None:
        return None
    names = ("number", "kind", "to", "origin", "who", "started", "state")
    shown = {name: getattr(pending, name) for name in names}
    return {**shown, "runner": locks.holder_of(layout, locks.ACTIVATION) is not None}


def _flag_change_public(layout: Layout) -> dict[str, Any] | None:
    change = flag_file.interrupted(layout)
    if change is None:
        return None
    names = ("wanted", "was", "release", "who", "started", "state", "weight", "was_weight")
    return {name: getattr(change, name) for name in names}


def _lock(layout: Layout) -> dict[str, Any] | None:
    """Who holds it and for how many seconds, by the host's clock; None when it is free."""
    held = locks.holder_of(layout, locks.DEPLOY) if os.path.isdir(layout.state()) else None
    if held is None:
        return None
    return {**held, "age_s": max(0.0, time.time() - float(held.get("since", time.time())))}


def _health(
    layout: Layout,
    service: Service,
    supervisor: Supervisor,
    unit: str,
    endpoint: str,
    live: str,
) -> dict[str, Any]:
    """What serves says of itself; of an own application what the host knows of it."""
    prover = prover_of(layout, service, supervisor, unit, endpoint)
    if isinstance(prover, Together):
        try:
            return prover.report(live, releases.manifest_sha256(layout, live))
        except OSError as error:
            return {"unreachable": f"its manifest can't be read: {error.strerror}"}
    try:
        return ask(os.path.expanduser(prover.endpoint))
    except ProbeError as error:
        return {"unreachable": str(error)}


def _names(directory: str) -> list[str]:
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(name for name in names if not name.startswith("."))


def _file_sha256(path: str) -> str | None:
    return durable.sha256_of(path) if os.path.isfile(path) else None


def checkup(app: str, unit: str, scope: str) -> dict[str, Any]:
    """What a diagnosis asks for beyond `deploy_facts`; None is unknown.

    Returns:
        others (pids of further processes of this application), check ({"code", "said"}), log (the
        unit's newest lines), disk ({"free", "total", "inodes"}), unjudged (how often in a row the
        guard could not judge, "" while it can), env_open (the mode of .env where every account can
        read it, else "").
    """
    layout = Layout(durable.expand(app))
    supervisor = Supervisor(scope)
    service = _service(layout, supervisor, unit)
    mains = [supervisor.show(name).pid for name in service.units or (unit,)]
    unit, disk = service.unit or unit, durable.disk_of(layout.app)
    return {
        "others": _others(layout, mains) if not service.name else None,
        "check": _check(layout, Sandbox(scope, supervisor.unit_text(unit), layout.app)),
        "log": _log(supervisor, _to_look_at(supervisor, service, unit)),
        "disk": {name: getattr(disk, name) for name in ("free", "total", "inodes")},
        "unjudged": _unjudged(layout),
        "env_open": _open_to_all(layout.env),
    }


def _to_look_at(supervisor: Supervisor, service: Service, main: str) -> str:
    """Of instances the first that does not run; else the main unit."""
    if not service.instances:
        return main
    return str(_process(supervisor, service, main)["unit"])


def _open_to_all(path: str) -> str:
    """The mode of a file that every account can read, such as "644"; "" where not all can."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        above = path
        while above != os.path.dirname(above):
            above = os.path.dirname(above)
            if not os.stat(above).st_mode & stat.S_IXOTH:
                return ""
    except OSError:
        return ""
    return f"{mode:o}" if mode & stat.S_IROTH else ""


def _unjudged(layout: Layout) -> str:
    try:
        return guard_config.unjudged(guard_config.read_watch(layout))
    except HostError as error:
        return f"does not know what to watch: {error}"


def _check(layout: Layout, sandbox: Sandbox) -> dict[str, Any] | None:
    live = live_release(layout)
    if live is None:
        return None
    release, argv = "", _serve(layout, "--check")
    try:
        of_release = releases.own_of(releases.read_manifest(layout, live))
        if of_release is not None:
            if not of_release["check"]:
                return None
            release = layout.release(live)
            argv = own.argv(of_release["check"], release)
        done = run_check(argv, sandbox, release, _CHECK_TIMEOUT_S)
    except HostError as error:
        said = untrusted.text(f"{error}: {error.why}", _LONGEST)
        return {"code": None, "said": said, "hint": error.hint}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": None, "said": untrusted.text(error, _LONGEST)}
    said = (done.stdout.strip() + "\n" + done.stderr.strip()).strip()
    return {"code": done.returncode, "said": untrusted.text(said[-_LONGEST:], _LONGEST)}


def _serve(layout: Layout, doing: str) -> list[str]:
    """The live release's own service, for what it does instead of serving."""
    argv = [os.path.join(layout.current, "runtime", "bin", "python"), "-I"]
    argv += [os.path.join(layout.current, "app", "serve.py"), "--root", layout.app, doing]
    return [*argv, "--release", os.path.realpath(layout.current)]


def replay(app: str, unit: str, scope: str, release: str, question: bytes) -> dict[str, Any]:
    """What the live release's own code answers to an audit's question, in the service's sandbox.

    question, and `said` in the answer: see macd/app/service/replay.py. Changes nothing.

    Raises:
        HostError: another release than `release` is live, it can't be run here, or takes too long.
    """
    layout = Layout(durable.expand(app))
    live = live_release(layout)
    if live != release:
        raise HostError(
            f"{release} is not live any more", live=live or "nothing", hint="run it again"
        )
    if own.read(layout).name:
        raise HostError(
            "an application of the team's own can't be asked to repeat bars",
            why="only the built-in application computes again what it logged",
            kind="refused",
        )
    unit = own.read(layout).unit or unit
    sandbox = Sandbox(scope, Supervisor(scope).unit_text(unit), layout.app)
    sandbox.refuse_root()
    argv = _serve(layout, "--replay")
    try:
        done = sandbox.run(argv, timeout=_REPLAY_TIMEOUT_S, given=question.decode())
    except subprocess.TimeoutExpired as error:
        raise HostError(f"the release gave no answer in {_REPLAY_TIMEOUT_S} s") from error
    except OSError as error:
        raise HostError("the release's own code can't be run", why=str(error)) from error
    return {
        "code": done.returncode,
        "said": done.stdout[:_LONGEST_REPLAY].encode(),
        "complained": untrusted.text(done.stderr[-_LONGEST:], _LONGEST),
    }


def _others(layout: Layout, mains: Sequence[int]) -> list[int] | None:
    """Processes of this application's service besides the units' own and their children."""
    if not os.path.isdir("/proc/self"):
        return None
    pids = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (*mains, os.getpid()):
            continue
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = [os.fsdecode(word) for word in file.read().split(b"\0")]
            is_ours = _serves(words, layout.app, f"/proc/{name}/cwd")
            if is_ours and int(stat_of(name)[1]) not in mains:
                pids.append(int(name))
    return sorted(pids)


def _serves(words: list[str], app: str, cwd: str) -> bool:
    """Whether it is this application's service, started by a release's serve.py or by hand."""
    program = any(os.path.basename(word) == "serve.py" for word in words)
    module = any(word.removeprefix("-m") in _SERVICES for word in words)
    if not (program or module) or not _ONLY_ASKED.isdisjoint(words):
        return False
    roots = [words[at] for at in range(1, len(words)) if words[at - 1] == "--root"]
    roots += [word.partition("=")[2] for word in words if word.startswith("--root=")]
    return os.path.realpath(app) in [os.path.realpath(os.path.join(cwd, root)) for root in roots]


def _log(supervisor: Supervisor, unit: str) -> str:
    # systemd prints the lines of .env that it refuses, with their values.
    lines = [line for line in supervisor.log(unit, _LOG_LINES) if not _QUOTES_ENV.search(line)]
    return untrusted.text("\n".join(lines)[-_LONGEST:], _LONGEST)
