"""What a host's timers run: begin a training on new bars, and report how one ended.

    python -m macd.host.jobs.scheduled start|report WORK

`start` brings the bars, begins a run as `invoke train` would, and returns. `report` waits for
nothing: of a run that is over it has the application check the models and compare them with the run
that is live, and stores a message before it sends it. Either may be killed at any moment: the next
`report` goes on. Nothing is signed and nothing is deployed here: no key lies on a training host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, untrusted
from macd.host.alerts import webhook
from macd.host.failure import HostError
from macd.host.jobs import operations
from macd.host.layout import Layout, load
from macd.host.rpc import blobs

_FETCH_S, _CHECK_S = 5 * 3600, 1800
_KEPT_MESSAGES, _LONGEST = 20, 600
_SYMBOLS = "symbols"  # below a run of several


@dataclass(frozen=True)
class Place:
    """Where a schedule keeps what it has, below the work directory `work`."""

    work: str

    @property
    def root(self) -> str:
        return os.path.join(self.work, "schedule")

    @property
    def plan(self) -> str:
        return os.path.join(self.root, "plan.json")

    @property
    def state(self) -> str:
        return os.path.join(self.root, "state.json")

    @property
    def bars(self) -> str:
        return os.path.join(self.root, operations.BARS)

    @property
    def log(self) -> str:
        return os.path.join(self.root, "log")

    @property
    def lock(self) -> str:
        return os.path.join(self.work, ".schedule.lock")

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def addresses(self) -> str:
        return self.layout.state(webhook.ADDRESSES)


def read(place: Place) -> dict[str, Any]:
    """runs: {run, tree, blobs, bars, ended (a state, "" before)}. outbox: messages not sent yet.

    messages: the newest of all, each with `sent` (how that went). attempt: since when a run is
    being started, "" for none.
    """
    empty: dict[str, Any] = {"runs": [], "outbox": [], "messages": [], "attempt": ""}
    return {**empty, **load(place.state, {})}


def as_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def start(work: str) -> None:
    """Begin a run, or store a message that says why not."""
    place = Place(work)
    with durable.one_at_a_time(place.lock):
        plan, state = _plan(place), read(place)
        _settle(place, plan, state)
        state["attempt"] = _iso(datetime.now(UTC))
        _save(place, state)
        try:
            _begin(place, plan, state)
            state["attempt"] = ""
            _save(place, state)
        except (HostError, OSError) as error:
            why = getattr(error, "why", "") or str(error)
            state["attempt"] = ""
            _add(place, state, _not_started(plan, error, why), "not begun", "")


def report(work: str) -> None:
    """Store a message of each run that is over, and send what is stored."""
    place = Place(work)
    taken = HostError("a training is being begun", kind="busy")
    with durable.one_at_a_time(place.lock, taken=taken):
        plan, state = _plan(place), read(place)
        _settle(place, plan, state)
        _send(place, state)


def _settle(place: Place, plan: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Store a message of each run that is over, and remove what is too many.

    The lock is ours: an attempt that is still noted was killed. Where it noted a run, that says it.
    """
    if since := state["attempt"]:
        state["attempt"] = ""
        if not any(run["started"] >= since for run in state["runs"]):
            error = HostError(f"what began it at {since} was killed, or the host went down")
            _add(place, state, _not_started(plan, error, ""), "not begun", "")
    for run in [run for run in state["runs"] if not run["ended"]]:
        ended, text = _ended(place, plan, run)
        if ended:
            run["ended"] = ended
            _add(place, state, text, ended, run["run"])
    _prune(place, plan, state)


def _begin(place: Place, plan: Mapping[str, Any], state: dict[str, Any]) -> None:
    free = durable.disk_of(place.work).free
    if free < plan["min_free"]:
        raise HostError(
            f"{free / 1e9:.1f} GB free in {place.work}, {plan['min_free'] / 1e9:.3g} GB wanted",
            hint="remove old runs and trees on the host while nothing trains (docs/jobs.md)",
        )
    operations.refuse_another(place.work)  # before bars are fetched for nothing
    bars = {path: blobs.keep(place.work, file) for path, file in _bars(place, plan).items()}
    before = next((r["bars"] for r in reversed(state["runs"]) if r["ended"] == "DONE"), None)
    if bars and bars == (before or {path: plan["files"][path] for path in bars}):
        raise HostError(
            "there are no new bars",
            why=f"{_source(plan)}: each file is what the last run, or the schedule, was given",
            hint="look at what brings them there; nothing was trained",
        )
    files = sorted({**plan["files"], **bars}.items())
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    operations.job_tree(place.work, digest, files)
    now = datetime.now(UTC)
    mark = hashlib.sha256(json.dumps([digest, plan["request"]]).encode()).hexdigest()[:8]
    run = f"{now:%Y%m%dT%H%M%SZ}-{mark}"
    made = {"run": run, "tree": digest, "bars": bars, "ended": "", "started": _iso(now)}
    state["runs"].append(made)
    _save(place, state)  # before it starts: killed in between, it is reported as not begun
    try:
        status = operations.job_start(
            place.work,
            run,
            [plan["python"], *plan["argv"][1:]],
            plan["env"],
            digest,
            {**plan["about"], "scheduled": plan["on"]},
            plan["request"],
        )
        _link_bars(place.work, status["directory"], plan, bars)
    except (HostError, OSError):
        state["runs"].remove(made)
        _save(place, state)
        raise


def _link_bars(work: str, directory: str, plan: Mapping[str, Any], bars: Mapping[str, str]) -> None:
    if plan["source"]["kind"] == "none" or plan["own"]:
        return  # its data is read from its own source
    os.makedirs(os.path.join(directory, operations.BARS), exist_ok=True)
    for path, sha256 in bars.items():
        target = os.path.join(directory, operations.BARS, os.path.basename(path))
        with contextlib.suppress(FileExistsError):
            durable.link_or_copy(blobs.path_of(work, sha256), target)


def _bars(place: Place, plan: Mapping[str, Any]) -> dict[str, str]:
    """Where the new bars are: path in the tree -> file on this host. {}: the stages bring them.

    Raises HostError where they can't be had.
    """
    source, wanted = plan["source"], plan["bars"]  # path in the tree -> name
    if source["kind"] == "none":
        return {}
    if source["kind"] == "directory":
        top = durable.expand(source["directory"])
        files = {path: os.path.join(top, name) for path, name in wanted.items()}
        missing = [name for path, name in wanted.items() if not os.path.isfile(files[path])]
        if missing:
            raise HostError(
                f"{top} lacks {', '.join(missing[:5])}",
                why=f"{len(missing)} of {len(wanted)} files that a training reads are not there",
                hint="look at what brings the bars there",
            )
        return files
    durable.make_directories(place.bars)
    files = {path: os.path.join(place.bars, name) for path, name in wanted.items()}
    for path, file in files.items():
        if not os.path.exists(file):
            with open(blobs.path_of(place.work, plan["files"][path]), "rb") as sent:
                durable.replace_file(file, sent.read())
    question = {**source["question"], "directory": place.bars}
    _asked(place, plan, source["program"], question, _FETCH_S, "the bars could not be fetched")
    return files


def _asked(
    place: Place, plan: Mapping[str, Any], program: str, question: Any, within_s: float, what: str
) -> dict[str, Any]:
    """What a program of the application answers: JSON in and out. Raises HostError(what)."""
    code = os.path.join(place.work, "trees", plan["tree"])
    variables = {**os.environ, "PYTHONPATH": code, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [plan["python"], "-m", *program.split()]
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"limits": {"cpu_s": _CHECK_S}, "question": question}).encode(),
            capture_output=True,
            cwd=code,
            env=variables,
            timeout=within_s,
            check=False,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise HostError(what, why=f"{program} gave no answer in {within_s:g} s") from error
    except ValueError as error:
        said = untrusted.line(done.stderr.decode("utf-8", "replace").strip()[-_LONGEST:])
        raise HostError(what, why=f"{program} ended with {done.returncode}: {said}") from error
    failed = answer.get("error") if isinstance(answer, dict) else {"what": "another answer"}
    if failed:
        why = f"{failed.get('what', '')}: {failed.get('why', '')}".rstrip(": ")
        raise HostError(what, why=untrusted.line(why, _LONGEST), hint=failed.get("hint", ""))
    return dict(answer)


def _ended(place: Place, plan: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str]:
    """How a run ended, and the message; "" and "" while it goes on."""
    name = run["run"]
    try:
        status = operations.job_status(place.work, name, 2000)
    except HostError as error:
        return "FAILED", _message(plan, f"run {name} was not begun: {error}", [])
    state = str(status["state"])
    if state == "RUNNING":
        return "", ""
    if state != "DONE":
        last = untrusted.text(status["log_end"].strip().rpartition("\n")[2], _LONGEST)
        rows = [untrusted.line(status["reason"], _LONGEST)]
        rows += [f"its log ends: {last}"] if last else []
        return state, _message(plan, f"run {name} {state}", rows, name)
    _link_bars(place.work, status["directory"], plan, run["bars"])  # where the start was killed
    rows = [_judged(status["result"]), *_models(place, plan, status), *_beside(place, plan, status)]
    return state, _message(plan, f"run {name} is DONE", rows, name, "DONE")


def _judged(result: Mapping[str, Any]) -> str:
    said, blocked = dict(result.get("criteria") or {}), result.get("blocked_by") or []
    outcomes: dict[str, Any] = {}
    for name, met in said.items():  # of several symbols: by symbol
        each = {f"{name} {inner}": ok for inner, ok in met.items()} if isinstance(met, dict) else {}
        outcomes |= each or {name: met}
    missed = [name for name, ok in outcomes.items() if not ok]
    if blocked:
        return f"criteria: misses {', '.join(blocked)}, which block a release"
    if missed:
        return f"criteria: nothing blocks; warned of {', '.join(missed)}"
    return f"criteria: all {len(outcomes)} met" if outcomes else "criteria: none"


def _models(place: Place, plan: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    """Whether the application can load and run what was trained."""
    if not plan["check"] or plan["own"]:
        return []
    rows = []
    for symbol, directory in _directories(status["directory"]).items():
        question = {"run": directory, "data": os.path.join(status["directory"], operations.BARS)}
        try:
            what = "the models could not be checked"
            items = _asked(place, plan, plan["check"], question, _CHECK_S, what)["items"]
        except HostError as error:
            rows.append(f"{error.what}: {error.why}")
            continue
        failed = [untrusted.line(f"{i['name']}: {i['detail']}") for i in items if not i["ok"]]
        said = f"models: {'; '.join(failed)}" if failed else f"models: {len(items)} checks passed"
        rows.append(f"{symbol} {said}".strip())
    return rows


def _beside(place: Place, plan: Mapping[str, Any], status: Mapping[str, Any]) -> list[str]:
    """The run beside the one that is live."""
    champion = plan["champion"]
    if not champion.get("run"):
        return [f"not compared: {champion['why']}"]
    label = f"beside {champion['run']} (release {champion['release']}, live in {champion['env']})"
    if plan["own"]:
        before, after = champion.get("metrics", {}), status["result"].get("metrics") or {}
        pairs = [
            f"{name} {_figure(before.get(name))} -> {_figure(after.get(name))}"
            for name in dict.fromkeys([*before, *after])
        ]
        return [untrusted.line(f"{label}: {', '.join(pairs) or 'no metrics'}", _LONGEST)]
    old = _directories(os.path.join(place.work, "trees", champion["tree"]))
    rows = []
    for symbol, directory in _directories(status["directory"]).items():
        if symbol not in old:
            rows.append(f"{symbol}: the live run has none of it")
            continue
        question = {"champion": old[symbol], "challenger": directory}
        try:
            what = "the comparison failed"
            answer = _asked(place, plan, plan["compare"], question, _CHECK_S, what)
            said = untrusted.line(answer["verdict"]["text"], _LONGEST)
        except (HostError, LookupError, TypeError) as error:
            said = f"not compared: {getattr(error, 'why', '') or error}"
        rows.append(f"{symbol + ' ' if symbol else ''}{label}: {said}")
    return rows


def _directories(run: str) -> dict[str, str]:
    """The directory of each symbol of a run; of a run of one: itself, under "" ."""
    top = os.path.join(run, _SYMBOLS)
    if not os.path.isdir(top):
        return {"": run}
    return {name: os.path.join(top, name) for name in sorted(os.listdir(top))}


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not measured"


def _source(plan: Mapping[str, Any]) -> str:
    source = plan["source"]
    return str(source.get("directory") or source.get("question", {}).get("exchange", ""))


def _not_started(plan: Mapping[str, Any], error: Exception, why: str) -> str:
    hint = getattr(error, "hint", "")
    rows = [untrusted.line(why, _LONGEST)] if why not in ("", str(error)) else []
    rows += [f"do: {untrusted.line(hint, _LONGEST)}"] if hint else []
    return _message(plan, f"the scheduled training did not begin: {untrusted.line(error)}", rows)


def _message(
    plan: Mapping[str, Any], what: str, rows: list[str], run: str = "", state: str = ""
) -> str:
    begins = f"macd on {socket.gethostname()}: {plan['title']}: {what}"
    after = [line.replace("{run}", run) for line in plan["next"][state]] if run else []
    return "\n".join([begins, *rows, *after])


def _add(place: Place, state: dict[str, Any], text: str, what: str, run: str) -> None:
    now = _iso(datetime.now(UTC))
    state["outbox"] = [*state["outbox"], {"at": now, "what": what, "run": run, "text": text}]
    state["outbox"] = state["outbox"][-_KEPT_MESSAGES:]
    _save(place, state)


def _send(place: Place, state: dict[str, Any]) -> None:
    """Send what is stored; what could not be sent stays for the next look."""
    for message in list(state["outbox"]):
        document = {"event": "training", "host": socket.gethostname(), **message}
        outcome = webhook.post(place.layout, document).outcome
        if outcome not in (webhook.SENT, ""):
            _print(f"a message was not sent: {outcome}")
            return
        state["outbox"].remove(message)
        said = {**message, "sent": outcome or "no address is set"}
        state["messages"] = [*state["messages"], said][-_KEPT_MESSAGES:]
        _save(place, state)


def _prune(place: Place, plan: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Remove what is left of the oldest scheduled runs; never what the plan or a run needs."""
    over = [run for run in state["runs"] if run["ended"]]
    gone = over[: max(0, len(over) - plan["keep"])]
    gone = [run for run in gone if run["run"] != plan["champion"].get("run")]
    if not gone:
        return
    stay = [run for run in state["runs"] if run not in gone]
    trees = {plan["tree"], *(run["tree"] for run in stay)}
    used = {*plan["files"].values(), *(sha for run in stay for sha in run["bars"].values())}
    for run in gone:
        directory = os.path.join(place.work, "runs", run["run"])
        if os.path.isdir(directory):
            durable.set_aside(directory, ".gone-")
        tree = os.path.join(place.work, "trees", run["tree"])
        if run["tree"] not in trees and os.path.isdir(tree):
            durable.set_aside(tree, ".gone-")
        for sha256 in set(run["bars"].values()) - used:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(blobs.path_of(place.work, sha256))
    state["runs"] = stay
    _save(place, state)


def _plan(place: Place) -> dict[str, Any]:
    plan = load(place.plan, None)
    if not isinstance(plan, dict):
        raise HostError("nothing is scheduled on this host", hint="invoke train.schedule")
    return plan


def _save(place: Place, state: Mapping[str, Any]) -> None:
    durable.replace_file(place.state, as_json(state))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _print(text: str) -> None:
    sys.stderr.write(f"macd schedule: {text}\n")


def main(verb: str, work: str) -> int:
    """Exit 1: nothing could be stored or is scheduled; 0 also where a training did not begin."""
    os.umask(0o022)
    try:
        if verb == "start":
            start(work)
        report(work)
    except HostError as error:
        _print(f"{error} {error.why}")
        return int(error.kind != "busy")
    except OSError as error:  # a full disk, most often: nothing can be stored, so it is only sent
        text = (
            f"macd on {socket.gethostname()}: the schedule in {work} can't go on: {error.strerror}"
        )
        _print(text)
        if verb == "start":  # a look comes every few minutes
            webhook.post(Place(work).layout, {"event": "training", "text": text})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], durable.expand(sys.argv[2])))
