"""Look for the failures that the team has met on a host: evidence and remedy for each.

`examine` asks the host and its logs; `diagnose` is pure: no clock, file or socket. Each failure is
looked for whatever the others say, so a cause that shows in three places is seen in three places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from macd import application
from macd.application import Application
from macd.deploy import desired, state
from macd.deploy.drift import (
    about_stacking,
    about_unknown_weight,
    drift,
    flag_in,
    is_about_units,
    to_what_was_proved,
)
from macd.deploy.ending import ending
from macd.deploy.state import HostState
from macd.errors import MacdError
from macd.gate import doctor_own, report
from macd.gate.finding import Finding, short
from macd.host.alerts.conditions import Alarm, epoch_of, lasting
from macd.host.alerts.webhook import SENT
from macd.host.flag.flag_file import SHADOW
from macd.host.judge.gate import FAIL
from macd.host.judge.parse import step_ms
from macd.host.store.age import TOO_OLD
from macd.host.systemd import namespaces, selinux
from macd.inventory import Host, Inventory
from macd.sizes import size
from macd.ssh.facts import Clock
from macd.ssh.session import open_session


@dataclass(frozen=True)
class Feed:
    """What bars should come: seconds between two of them, and whether they are of now."""

    kind: str
    every_s: float
    live: bool


@dataclass(frozen=True)
class Case:
    """Everything that `diagnose` judges by.

    checkup: {} where the host was not asked for one: what rests on it is then unknown.
    drift: as `invoke status` shows it. report: a gate document of now, None if there is none, and
    `no_report` says why. trainings: by host, state (DONE, FAILED, ...; "" if unknown),
    why and remedy. ending: what ends soon and the host itself does not report. now: the host's time
    in epoch seconds. tf: how long the bars are. unconfined: which protection its units do without.
    """

    application: Application
    state: HostState
    checkup: Mapping[str, Any]
    drift: Sequence[str]
    clock_offset: float
    clock_error: float
    feed: Feed
    now: float
    report: Mapping[str, Any] | None = None
    no_report: str = ""
    trainings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ending: Mapping[str, Alarm] = field(default_factory=dict)
    tf: str = ""
    unconfined: str = ""

    @property
    def restart(self) -> str:
        """What starts again what is live; without its name the newest release would go live."""
        named = f" --release {self.state.live}" if self.state.live else ""
        return f"invoke deploy --restart{named}"

    @property
    def goes_back(self) -> bool:
        """Whether `invoke rollback` has a release to go to."""
        return bool(self.state.rollback.get("ready"))


def examine(host: Host, inventory: Inventory) -> Case:
    """Everything `doctor.diagnose` asks for but for trainings, which are about no one host.

    Changes nothing on the host, keeps no report. Raises MacdError when it can't be reached.
    """
    with open_session(host, inventory) as session:
        question = state.ask(session, host, inventory)
        asked = session.submit(
            "checkup",
            app=host.app_dir,
            unit=f"{host.unit}.service",
            scope=host.scope,
        )
        observed = state.observed(question)
        checkup = asked.result()
        clock = session.clock
    return case_of(host, inventory, observed, clock, checkup)


def case_of(
    host: Host,
    inventory: Inventory,
    observed: HostState,
    clock: Clock,
    checkup: Mapping[str, Any] = MappingProxyType({}),
) -> Case:
    """The case of a host that said `observed`; its logs are pulled and judged here."""
    judged, why = None, ""
    app = application.of(inventory)
    if observed.live is not None and app.lines_known:
        try:
            judged = report.of_host(inventory, host, report.rule_of(inventory), inventory.gate.days)
        except MacdError as error:
            why = f"its logs can't be analysed: {error.what}"
    now = datetime.now(UTC).timestamp() + clock.offset
    wanted = desired.render(host, inventory, observed)
    return Case(
        application=app,
        state=observed,
        checkup=checkup,
        drift=drift(observed, wanted),
        clock_offset=clock.offset,
        clock_error=clock.error,
        feed=feed_of(inventory),
        now=now,
        report=judged.document if judged else None,
        no_report=why,
        ending=ending(observed, now, inventory.alerts.expires_days),
        tf=inventory.train.tf,
        unconfined=wanted.unconfined,
    )


def feed_of(inventory: Inventory) -> Feed:
    """How often bars should come."""
    feed = inventory.service.feed
    if feed.kind == "replay":
        return Feed(feed.kind, 1 / feed.speed if feed.speed else 0.0, live=False)
    return Feed(feed.kind, step_ms(inventory.train.tf) / 1000, live=True)


_CLOCK_OFF_S = 5.0
_FREE_BYTES, _FREE_SHARE, _FREE_INODES = 300 << 20, 0.03, 500
_FEED_GRACE_S = 120.0
_MISSING = re.compile(
    r"No module named '?([\w.]+)|cannot open shared object file|lib\w+\.so[.\d]*: cannot"
    r"|needs ccxt|DLL load failed|ImportError"
)


def diagnose(case: Case) -> list[Finding]:
    """A finding for each known failure, in the order in which they are worth looking at."""
    if not case.state.exists:
        return [
            Finding("provisioned", False, "the host has no state directory", "invoke provision")
        ]
    findings = [*_of_the_application(case)]
    findings += [finding(case) for finding in _AROUND_IT]
    findings += _alerts(case)
    findings += [Finding("ends", False, a.text, a.hint) for a in case.ending.values()]
    findings += _damaged(case)
    findings += _open_env(case)
    return [*findings, *_trainings(case)]


def _of_the_application(case: Case) -> Iterator[Finding]:
    own = bool(case.application.name)
    yield _serving(case)
    if own:
        log = str(case.checkup.get("log") or "")
        yield from doctor_own.units(case.state.health, log, case.restart)
    else:
        yield _old_process(case)
    yield _release(case)
    yield _flag(case)
    yield _dependency(case)
    yield from _of_own_lines(case) if own else _of_lines(case)


def _of_lines(case: Case) -> Iterator[Finding]:
    """What the built-in application's lines and feed say."""
    yield _coverage(case)
    yield _samples(case)
    yield from _outputs(case)
    yield from _features(case)
    yield from _symbols(case)
    yield _feed(case)


def _of_own_lines(case: Case) -> Iterator[Finding]:
    """What those of a team's own say; what can't be known of it is said at the end."""
    if case.state.live is not None:
        signals = case.application.signals
        yield from doctor_own.signals(signals, case.tf, case.report, case.no_report, case.now)
    yield doctor_own.not_looked_for()


def _serving(case: Case) -> Finding:
    state = case.state
    if state.live is None:
        return Finding("serving", False, "no release is live", "invoke deploy")
    process, health = state.process, state.health
    if process.get("active") != "active":
        unit = process.get("unit", "the unit")
        evidence = (
            f"{unit} is {process.get('active') or 'unknown'} ({process.get('result') or '-'})"
        )
        last = [line for line in str(case.checkup.get("log") or "").splitlines() if line.strip()]
        evidence += f"; it said: {last[-1]}" if last else ""
        remedy = f"invoke rollback, or {case.restart}" if case.goes_back else case.restart
        return Finding("serving", False, short(evidence), remedy)
    if "unreachable" in health:
        evidence = f"pid {process.get('pid')} runs, its health endpoint: {health['unreachable']}"
        return Finding("serving", False, short(evidence), case.restart)
    if health.get("status") != "ok":
        golden = health.get("golden") or {}
        evidence = (
            f"it says {health.get('status')}: {health.get('last_error') or golden.get('detail')}"
        )
        remedy = "invoke logs; invoke release and invoke deploy bring another one"
        if case.goes_back:
            remedy = "invoke rollback brings the last good back"
        if 0 < len(_wrong_instances(case)) < len(health.get("units", ())):
            remedy = f"{case.restart}; {remedy}"
        return Finding("serving", False, short(evidence), remedy)
    return Finding("serving", True, f"pid {process.get('pid')} is ok with {state.live}")


def _old_process(case: Case) -> Finding:
    name = "processes"
    health, process, others = case.state.health, case.state.process, case.checkup.get("others")
    answers = health.get("pid")
    if answers is not None and process.get("pid") and answers != process["pid"]:
        evidence = f"pid {answers} answers, but the unit's process is {process['pid']}"
        return Finding(name, False, evidence, f"on the host: kill {answers}; {case.restart}")
    if others:
        pids = " ".join(map(str, others))
        evidence = f"beside the unit's process {process.get('pid') or '(none)'} run {pids}"
        return Finding(name, False, evidence, f"on the host: kill {pids}; {case.restart}")
    if others is None:
        return Finding(name, None, "this host has no /proc to look for others")
    return Finding(name, True, "no other process of this application")


def _release(case: Case) -> Finding:
    name, state = "release", case.state
    if state.live is None:
        return Finding(name, None, "no release is live")
    answers = state.health.get("release")
    if answers is not None and answers != state.live:
        evidence = f"the process serves {answers}, current is {state.live}"
        return Finding(name, False, evidence, case.restart)
    if not state.readiness.get("ready", True):
        why, runtime = state.readiness.get("why"), state.readiness.get("runtime")
        evidence = f"{state.live} is not as it was deployed: {why}"
        remedy = "invoke rollback; then invoke deploy it again"
        if runtime and why == runtime:
            remedy = f"{case.restart} builds its runtime again"
        return Finding(name, False, short(evidence), remedy)
    if state.live not in [entry["release"] for entry in state.history]:
        evidence = f"{state.live} is live, but this host never committed it"
        return Finding(name, False, evidence, "invoke history --env; invoke deploy")
    if answers is None:
        return Finding(name, None, "nobody answers which release it serves")
    return Finding(name, True, f"{state.live}, and its files are as signed")


def _flag(case: Case) -> Finding:
    name, said = "flag", case.state.stacking
    if case.application.flag is None:
        return Finding(name, None, "app.flag is left out of the inventory")
    flag = flag_in(said)
    unknown = about_unknown_weight(said, case.state.health)
    wrong = [*about_stacking(said), *unknown]
    if wrong:
        remedy = "invoke disable-stacking"
        if not unknown:
            remedy += f", or {to_what_was_proved(said)}, sets and proves both"
        if said["beside"]:
            remedy = f"take it out there, on the host; then {remedy}"
        elif said["unread"]:
            remedy = "mend .env on the host; invoke disable-stacking works all the same"
        return Finding(name, False, short("; ".join(wrong)), remedy)
    unjudged = case.checkup.get("unjudged")
    if unjudged and said.get("next") != SHADOW:
        remedy = "invoke logs shows what the service writes; invoke disable-stacking ends it"
        return Finding(name, False, short(f"stacking decides, its guard {unjudged}"), remedy)
    if said.get("changing"):
        return Finding(name, None, "a flip or a deploy is under way; invoke status shows it")
    if said.get("running") is None:
        upcoming = flag.said(said.get("next", SHADOW))
        words = f"{flag.place} says {flag.name}={upcoming}; no process can be asked"
        return Finding(name, None, words)
    is_weighed = case.state.exposure and case.application.has_weights
    how = case.state.exposure if is_weighed else case.state.taken_back
    share = f", {how}" if how else ""
    value = f"{flag.name}={flag.said(said['next'])}"
    unset = not said["in_file"] and flag.place == ".env"
    where = "the process; .env does not set it" if unset else f"{flag.place} and in the process"
    return Finding(name, True, f"{value} in {where}{share}")


def _dependency(case: Case) -> Finding:
    name, check = "dependencies", case.checkup.get("check")
    if not check:
        why = "app.check is empty: nothing is asked" if case.checkup else "its check was not run"
        return Finding(name, None, why if case.state.live else "no release is live")
    said = f"{check['said']}\n{case.checkup.get('log') or ''}"
    lacking = _MISSING.search(str(check["said"])) or (
        _MISSING.search(said) if case.state.process.get("active") != "active" else None
    )
    if lacking:
        line = next(line for line in said.splitlines() if lacking.group(0) in line)
        remedy = "invoke release makes the lock again, invoke deploy builds its runtime"
        if case.application.name:
            file = case.application.requirements or "serve.requirements"
            remedy = f"add it to {file}; {remedy}"
        if ".so" in lacking.group(0):
            remedy = "invoke provision names the package of this library (libgomp1 for LightGBM)"
        return Finding(name, False, short(line), remedy)
    if check["code"] is None:
        remedy = check.get("hint") or "invoke deploy builds the runtime again"
        return Finding(name, False, short(f"its check does not run: {check['said']}"), remedy)
    if check["code"] != 0:
        evidence = f"its own check fails with {check['code']}: {check['said']}"
        return Finding(name, False, short(evidence), "invoke rollback; invoke health here")
    return Finding(name, True, "the live release's own check passes beside the service")


def _symbols(case: Case) -> Iterator[Finding]:
    """Of a service of several symbols, those whose models, bars or shares are not well."""
    symbols = case.state.health.get("symbols")
    if not isinstance(symbols, Mapping):
        return
    failed = {
        str(row["symbol"]): str(row["reasons"][0] if row["reasons"] else row["verdict"])
        for row in (case.report or {}).get("symbols", ())
        if row["verdict"] == FAIL
    }
    for name, said in symbols.items():
        if not isinstance(said, Mapping) or said.get("ok") is not True:
            why = said.get("error") if isinstance(said, Mapping) else ""
            failed[str(name)] = str(why or "its models fail: it gets the base signal")
        elif said.get("stopped"):
            failed[str(name)] = "its bars have stopped"
    if not failed:
        yield Finding("symbols", True, f"all {len(symbols)} have models that agree, and bars")
        return
    named = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
    evidence = f"{len(failed)} of {len({*symbols, *failed})}: {named}"
    remedy = "invoke shadow-gate --symbol shows one; invoke logs --grep bars_stopped"
    if away := _wrong_instances(case):
        remedy = f"invoke logs --unit {away[0]}; {case.restart}"
    yield Finding("symbols", False, short(evidence), remedy)


def _wrong_instances(case: Case) -> list[str]:
    """The symbols whose own process is away or fails; none where one process serves all."""
    symbols, units = case.state.health.get("symbols"), case.state.health.get("units")
    if not units or not isinstance(symbols, Mapping):
        return []
    return [str(n) for n, said in symbols.items() if isinstance(said, Mapping) and not said["ok"]]


def _feed(case: Case) -> Finding:
    """By the age of the last bar too: that something comes is no sign of what comes."""
    name, feed = "feed", case.state.health.get("feed")
    if not isinstance(feed, Mapping):
        return Finding(name, None, "the service does not say how its feed is")
    state, arrived = str(feed.get("state")), feed.get("last_arrival")
    remedy = f"service.feed of the inventory is {case.feed.kind}; invoke logs --grep feed"
    if state.startswith(("failing", "no file of", "at the end")):
        return Finding(name, False, short(f"it is {state}"), remedy)
    allowed = 2 * case.feed.every_s + _FEED_GRACE_S
    due = f"one is due every {case.feed.every_s:g} s"
    if not isinstance(arrived, (int, float)):
        began = epoch_of(case.state.health.get("started"))
        if began is None or case.now - began <= allowed:
            return Finding(name, None, f"no bar has come since the start; it is {state}")
        evidence = (
            f"no bar has come in the {case.now - began:.0f} s since the start ({state}); {due}"
        )
        return Finding(name, False, short(evidence), remedy)
    age = case.now - arrived
    said = f"the last bar came {age:.0f} s ago ({state}); {due}"
    opened = epoch_of(case.state.health.get("last_bar"))
    if case.feed.live and opened is not None and age <= allowed:
        # What comes may be old: an exchange that gives yesterday's bars, a file written late.
        age = case.now - opened - case.feed.every_s
        said = f"{said}, and closed {age:.0f} s ago"
    return Finding(name, age <= allowed, said, "" if age <= allowed else remedy)


def _disk(case: Case) -> Finding:
    # The quick look of the dashboard has no checkup, and knows no total.
    quick = {"free": case.state.free, "total": 0, "inodes": case.state.free_inodes}
    disk = case.checkup.get("disk") or quick
    free, total, inodes = disk["free"], disk["total"], disk["inodes"]
    evidence = f"{size(free)} of {size(total)} free" if total else f"{size(free)} free"
    full = free < _FREE_BYTES or free < _FREE_SHARE * total
    if 0 <= inodes < _FREE_INODES:
        full, evidence = True, f"{evidence}, {inodes} inodes free"
    logs = " and ".join(case.application.writes)
    remedy = f"make room on the host: old logs in {case.state.app}/{logs}, release.keep"
    return Finding("disk", not full, evidence, remedy if full else "")


def _clock(case: Case) -> Finding:
    off = abs(case.clock_offset) - case.clock_error > _CLOCK_OFF_S
    evidence = f"{case.clock_offset:+.1f} s against this machine, known to {case.clock_error:.1f} s"
    remedy = "timedatectl set-ntp true, on whichever of the two is wrong"
    return Finding("clock", not off, evidence, remedy if off else "")


def _alerts(case: Case) -> Iterator[Finding]:
    """The open alerts of the host itself, and whether it looks for any."""
    seen, unwatched = case.state.alerts, case.state.unwatched
    if unwatched:
        ok = False if seen.get("installed") else None  # the inventory may want none
        yield Finding("alerts", ok, unwatched, "invoke provision")
    for one in seen.get("open", ()):
        evidence = short(f"{one['name']}, since {one['since']}: {one['text']}")
        yield Finding("alerts", False, evidence, short(one["hint"]))
    if seen.get("unsent"):
        evidence = short(f"a message could not be sent yet: {seen['sending'] or 'not tried yet'}")
        yield Finding("alerts", False, evidence, "alerts.notify_url; invoke doctor --notify-test")
    if not unwatched and not seen["open"] and not seen["unsent"]:
        age = seen["age_s"]
        looked = "the first look is to come" if age is None else f"looked {lasting(age)} ago"
        yield Finding("alerts", True, f"none is open; {looked}")


def notify_test(host: Host, inventory: Inventory, who: str) -> Finding:
    """Have the host send a test message to its webhook."""
    with open_session(host, inventory) as session:
        outcome = session.call("notify_test", app=host.app_dir, who=who)["outcome"]
    remedy = "alerts.notify_url and alerts.format of the inventory; invoke provision"
    if not outcome:
        return Finding("webhook", False, "no address is on the host", remedy)
    sent = outcome == SENT
    evidence = "a test message was sent; look whether it arrived" if sent else short(outcome)
    return Finding("webhook", sent, evidence, "" if sent else remedy)


def _units(case: Case) -> Finding:
    changed = [text for text in case.drift if is_about_units(text)]
    if changed:
        remedy = f"invoke plan shows the difference; invoke provision, {case.restart}"
        if case.state.dropins:
            remedy = f"remove it on the host, or have it in templates/; {remedy}"
        return Finding("units", False, short("; ".join(changed)), remedy)
    if case.state.no_namespaces and not case.unconfined:
        remedy = f"{namespaces.REMEDY}, {case.restart}"
        return Finding("units", False, short(case.state.no_namespaces), remedy)
    if case.state.selinux:
        return Finding("units", False, short(case.state.selinux), selinux.REMEDY)
    more = f"; {case.unconfined}" if case.unconfined else ""
    return Finding("units", True, f"units are as the inventory and templates say{more}")


def _open_env(case: Case) -> Iterator[Finding]:
    """That every account can read .env; nothing is said where only those can that need it."""
    if mode := case.checkup.get("env_open"):
        path = f"{case.state.app}/.env"
        evidence = f"every account on the host can read {path} (mode {mode}; warns only)"
        remedy = f"on the host: chmod o= {path}; first chgrp it to a service that opens it itself"
        yield Finding("secrets", None, evidence, remedy)


def _damaged(case: Case) -> Iterable[Finding]:
    """Releases that lie on the host and can't be read; nothing is said where all can."""
    for release, why in case.state.damaged.items():
        remedy = (
            f"nothing can go back to it; on the host: rm -r {case.state.app}/releases/{release}"
        )
        if release == case.state.live:
            remedy = "invoke rollback; or invoke release and invoke deploy"
        yield Finding("stored releases", False, short(f"{release} is damaged: {why}"), remedy)


def _trainings(case: Case) -> Iterable[Finding]:
    for host, training in case.trainings.items():
        name = f"training on {host}"
        if not training["state"]:
            yield Finding(name, None, short(training["why"]))
        elif training["state"] == "FAILED":
            yield Finding(
                name, False, short(training["why"]), training["remedy"] or "invoke train.status"
            )
        else:
            yield Finding(name, True, f"the newest run is {training['state']}")


_FEW_SAMPLES = re.compile(r"n_oof_samples .* is below ML_STACKING_MIN_SAMPLES")


def _coverage(case: Case) -> Finding:
    """No bar, or too few, with a prediction and no error."""
    name = "ML coverage"
    if case.report is None:
        return _no_report(name, case)
    criterion = _criterion(case.report, "ml_coverage")
    if not criterion["trials"]:
        return Finding(name, None, "no bar of the live release in the window")
    evidence = (
        f"{criterion['successes']} of {criterion['trials']} bars have a prediction and no error"
    )
    if criterion["successes"] > criterion["threshold"] * criterion["trials"]:
        return Finding(name, True, evidence)
    errors = [
        f"{group['count']} × {group['example']}" for group in case.report["findings"]["errors"][:3]
    ]
    if errors:
        evidence += "; " + "; ".join(errors)
    remedy = "the error names the model: invoke health checks it here; invoke rollback goes back"
    age = case.state.health.get("age")
    if isinstance(age, Mapping) and age.get("state") == TOO_OLD:
        evidence += f"; {age.get('text')}"
        remedy = "invoke train on newer bars, invoke release, invoke deploy"
    return Finding(name, False, short(evidence), remedy)


def _samples(case: Case) -> Finding:
    """Stacking skipped because it was fitted on fewer samples than wanted."""
    name = "stacking samples"
    if case.report is None:
        return _no_report(name, case)
    for group in case.report["findings"]["not_activated"]:
        if _FEW_SAMPLES.search(group["example"]):
            evidence = f"{group['count']} bars: {group['example']}"
            remedy = (
                "more bars (invoke data.fetch) and invoke train; or lower ML_STACKING_MIN_SAMPLES "
                f"in service.env of the inventory, invoke provision, {case.restart}"
            )
            return Finding(name, False, short(evidence), remedy)
    criterion = _criterion(case.report, "stacking_activation")
    if not criterion["trials"]:
        return Finding(name, None, "no covered bar in the window")
    evidence = (
        f"stacking was active on {criterion['successes']} of {criterion['trials']} covered bars"
    )
    return Finding(name, True, evidence)


@dataclass(frozen=True)
class _Model:
    """name: in the analysis. mode: of `invoke train`, which makes it again. least: so many equal
    answers are a constant; a tree, unlike a net, gives neighbouring bars the same leaf."""

    title: str
    name: str
    mode: str
    least: int = 2


_MODELS = (
    _Model("TFT output", "tft", "tft"),
    _Model("LSTM output", "lstm", "lstm"),
    _Model("LightGBM output", "lgb", "lgbm", least=20),
)


def _outputs(case: Case) -> Iterator[Finding]:
    """Of each model: the same answer whatever comes in, or none."""
    for model in _MODELS:
        yield _no_report(model.title, case) if case.report is None else _output(model, case.report)


def _output(model: _Model, report: Mapping[str, Any]) -> Finding:
    name, said = model.title, report["findings"]["models"][model.name]
    remedy = (
        f"invoke health shows what the file says here; invoke train --mode {model.mode}, "
        "invoke release, invoke deploy; until then invoke disable-stacking, or invoke rollback"
    )
    if said["answers"] >= model.least and said["min"] == said["max"]:
        evidence = f"{said['answers']} answers, every one of them {said['min']:g}"
        return Finding(name, False, evidence, remedy)
    silent = said["missing"] + said["not_finite"]
    if not said["answers"]:
        if silent:
            return Finding(name, False, f"no number on any of {silent} bars", remedy)
        return Finding(name, None, "it was never asked in the window")
    spread = f"{said['min']:.3g} to {said['max']:.3g} in {said['answers']} answers"
    if said["stuck"]:
        return Finding(name, False, f"{said['stuck']} answers are stuck; {spread}", remedy)
    return Finding(name, True, spread)


def _features(case: Case) -> Iterable[Finding]:
    """Whether the models see what they were trained on; earlier releases don't say what that is."""
    drift = (case.report or {}).get("drift")
    if drift is not None:
        ok = {"drift": False, "none": True}.get(drift["outcome"])
        remedy = "invoke logs --grep ml_feature; train on newer bars, then release and deploy"
        yield Finding("features", ok, short(drift["text"]), remedy if ok is False else "")


def _criterion(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    criterion: Mapping[str, Any] = next(row for row in report["criteria"] if row["name"] == name)
    return criterion


def _no_report(name: str, case: Case) -> Finding:
    return Finding(name, None, case.no_report or "no logs were analysed")


_AROUND_IT: tuple[Callable[[Case], Finding], ...] = (_disk, _clock, _units)
