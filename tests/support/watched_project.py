"""A project whose hosts have weeks of history, for tests and pictures of the dashboard.

No host stands behind it: what each would have answered is a stored look. Journals and signal lines
are written by the real writers, positions by the service's own policy, reports by the real gate.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from macd import application
from macd.app.predict.policy import FLAT, Policy, bases, decide
from macd.app.service.signal_log import SignalLog
from macd.dashboard import look
from macd.dashboard.look import Look
from macd.deploy.state import HostState
from macd.gate import doctor, report
from macd.gate.logs import logs_of
from macd.host import record
from macd.host.judge import drift, reading, skill
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import ALPHA, Decision, Findings
from macd.host.judge.gate import decide as verdict_of
from macd.inventory import Host, Inventory, load
from macd.journal import Journal
from tests.support import signal_lines

NOW = datetime(2026, 3, 22, 12, 0, 7, tzinfo=UTC)
OLD, LIVE, NEXT = (
    "20260225T090000Z-0a11ce55",
    "20260306T101500Z-7e2accb5",
    "20260318T083000Z-51ab0c0d",
)
_SPREAD = {"mean": 0.02, "spread": 0.003}
DETAILS = {
    "run": "20260305T211500Z-weekly",
    "host": "h800",
    "symbol": "BTCUSD",
    "tf": "1h",
    "drift": {
        "block": 168,
        "assets": {
            "BTCUSD": {
                "features": 82,
                "count": 60,
                "outside": _SPREAD,
                "worst": {"mean": 0.3, "spread": 0.1},
            }
        },
    },
}
EVIL = "<script>document.title='owned'</script><img src=http://x.invalid/a.png onerror=alert(1)>"
_INVENTORY = """
known_hosts: known_hosts
hosts:
  h800: {role: train, ssh: h800, work_dir: ~/work}
  prod-a: {role: serve, env: prod, ssh: prod-a, app_dir: /opt/macd-analysis}
  prod-b: {role: serve, env: prod, ssh: prod-b, app_dir: /opt/macd-analysis}
  stage: {role: serve, env: staging, ssh: stage, app_dir: /opt/macd-analysis}
train: {symbol: BTCUSD, data_dir: data}
gate: {days: 5}
release: {identity: ci@team}
"""


@dataclass(frozen=True)
class Project:
    root: Path
    inventory: Inventory

    def host(self, name: str) -> Host:
        return self.inventory.host(name)


def empty(root: Path) -> Project:
    """Three serving hosts of which nothing is known."""
    (root / "inventory").mkdir(parents=True)
    (root / "inventory" / "team.yml").write_text(_INVENTORY)
    return Project(root, load("team", root=root))


def make(root: Path, *, hours: int = 24 * 16, error: str | None = None) -> Project:
    """Two hosts that serve, of which one reverted a deploy, and one that nothing was deployed to.

    hours: bars of the live release. error: text that some lines and the service carry.
    """
    project = empty(root)
    _here(project)
    for seed, name in enumerate(("prod-a", "prod-b")):
        _lines(project, name, hours, seed, error)
        look.store(_look(project, name, error), project.inventory)
    look.store(nothing(project, "stage"), project.inventory)
    return project


def nothing(project: Project, name: str) -> Look:
    """What a provisioned host says to which nothing was deployed."""
    state = HostState("/opt/macd-analysis", True, {}, "unix", free=40 << 30, alerts=_alerts())
    host = project.host(name)
    finding = doctor.Finding("serving", False, "no release is live", "invoke deploy")
    return Look(host.name, host.env, NOW, NOW, state, findings=(finding,), no_report="no release")


def _alerts(text: str = "") -> dict[str, Any]:
    """As `status` of macd/host/alerts/look.py answers."""
    one = {"name": "disk", "since": "2026-03-22T09:14:00Z", "text": text, "hint": "make room"}
    seen = {"installed": True, "runs": True, "late": False, "age_s": 40.0, "unsent": 0}
    return {**seen, "sending": "", "open": [one] if text else []}


def _here(project: Project) -> None:
    """The operator's journal: what `release`, `deploy`, `shadow-gate` and `enable-stacking` add."""
    journal = Journal(project.inventory.state_dir / "journal.jsonl")
    who = {"who": "ana@ops", "env": "prod"}
    for day, kind, fields in (
        (24, "release.made", {"release": OLD, "run": "20260224T200000Z-first"}),
        (16, "release.made", {"release": LIVE, "run": "20260305T211500Z-weekly"}),
        (10, "gate.judged", {"host": "prod-a", "release": LIVE, "verdict": "INCONCLUSIVE"}),
        (8, "gate.judged", {"host": "prod-a", "release": LIVE, "verdict": "PASS"}),
        (7.9, "gate.judged", {"host": "prod-b", "release": LIVE, "verdict": "FAIL"}),
        (4.9, "train.started", {"host": "h800", "run": "20260317T201500Z-weekly"}),
        (
            4.1,
            "train.finished",
            {"host": "h800", "run": "20260317T201500Z-weekly", "state": "DONE"},
        ),
        (4, "release.made", {"release": NEXT, "run": "20260317T201500Z-weekly"}),
        (3.5, "deploy.ended", {"host": "prod-b", "result": "failed", "why": "the link was lost"}),
    ):
        more = {"report": f"gate/{fields.get('host')}/x/report.json"} if "gate" in kind else {}
        journal.append(kind, {**who, **fields, **more}, now=NOW - timedelta(days=day))


def _own_journal(directory: Path, name: str) -> tuple[record.Record, ...]:
    path = directory / f"{name}.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    flag = {"flag": "ML_ENABLE_STACKING", "release": LIVE, "who": "ana@ops", "report": "aa"}
    rows: list[tuple[float, str, Mapping[str, Any]]] = [
        (24, "committed", {"release": OLD, "activation": 1}),
        (16, "committed", {"release": LIVE, "activation": 2}),
    ]
    if name == "prod-a":
        rows.append((7.8, "flag.set", {**flag, "wanted": "1", "was": "0", "wrong": ""}))
        for step in range(12):
            judged = {"release": LIVE, "verdict": "PASS" if step % 5 else "INCONCLUSIVE"}
            rows.append((7.8 - step / 12, "guard.judged", judged))
    else:
        why = {"reason": "the new release did not serve: golden predictions differ by 0.31"}
        rows.append((3.9, "reverted", {"release": NEXT, "activation": 3, **why}))
    for day, kind, fields in rows:
        record.append(str(path), kind, dict(fields), now=NOW - timedelta(days=day))
    return tuple(record.parse(path.read_bytes())[0])


def _lines(project: Project, name: str, hours: int, seed: int, error: str | None) -> None:
    """Bars of the live release, each written when it closed, with the policy's positions."""
    made = list(signal_lines.lines(hours, end=NOW, release=LIVE, seed=seed))
    closes = pl.Series([line["data"]["components"]["close"] for line in made])
    scores = bases(closes)
    terms, held = Policy().at("5h"), FLAT
    rng, moment = random.Random(seed), [NOW]
    log = SignalLog(logs_of(project.inventory, project.host(name)), clock=lambda: moment[0])
    for at, line in enumerate(made):
        opened = NOW.replace(minute=0, second=0) - timedelta(hours=hours - at)
        moment[0] = opened + timedelta(hours=1, seconds=2)
        parts = line["data"]["components"]
        buy, sell = scores["buy"][at], scores["sell"][at]
        action, buy, sell, held = decide(terms, buy, sell, parts["ml_bull_prob"], held)
        line["data"] |= {
            "action_taken": action,
            "buy_score": buy,
            "sell_score": sell,
            "position": held.as_json(1.0),
        }
        parts["ml_latency_ms"] = round(6 + 3 * rng.random() + (at > hours * 0.7) * 4, 3)
        parts |= {"ml_avg_prob": 0.35 + 0.3 * rng.random(), "ml_horizon": "12h"}
        parts["ml_features_outside"] = rng.choice((0, 0, 1, 2)) + 3 * (at > hours * 0.8)
        parts["ml_feature_worst"] = "ret_24" if parts["ml_features_outside"] else None
        if name == "prod-b" and at % 9 == 4:
            parts["ml_error"] = error or "tft: no finite output for 1 of 64 windows"
        line["bar_time"] = f"{opened:%Y-%m-%dT%H:%M:%SZ}"
        log.write(
            "SIGNAL", {k: v for k, v in line.items() if k not in ("timestamp", "level", "seq")}
        )
        if at % 100 == 50:
            event = {"event": "gap", "detail": "2 bars never came"}
            about = {k: line[k] for k in ("release", "symbol", "tf", "bar_time")}
            log.write("WARN", {**about, "data": event})
    log.close()


def _look(project: Project, name: str, error: str | None) -> Look:
    host, inventory = project.host(name), project.inventory
    stacking = "1" if name == "prod-a" else "0"
    days = {OLD: 24, LIVE: 16}
    history = [
        {
            "number": number,
            "release": release,
            "serial": 40 + number,
            "at": (NOW - timedelta(days=day)).timestamp(),
            "kind": "deploy",
            "who": "ana@ops",
        }
        for number, (release, day) in enumerate(days.items(), start=1)
    ]
    reverted = None
    if name == "prod-b":
        at = (NOW - timedelta(days=3.9)).timestamp()
        why = "the new release did not serve: golden predictions differ by 0.31"
        reverted = {"number": 3, "state": "reverted", "release": NEXT, "at": at, "reason": why}
    state = HostState(
        "/opt/macd-analysis",
        True,
        {"version": "3.11"},
        "unix:/run/x",
        live=LIVE,
        details=DETAILS,
        expires=(NOW + timedelta(days=14)).timestamp(),
        history=history,
        last=reverted,
        process={"active": "active", "pid": 812, "restarts": 0},
        health={
            "status": "ok",
            "release": LIVE,
            "flags": {"ML_ENABLE_STACKING": stacking},
            "last_error": error,
        },
        stacking={
            "in_file": [stacking],
            "unread": "",
            "passed_over": [],
            "beside": [],
            "next": stacking,
            "running": stacking,
            "guard": "watches" if stacking == "1" else "none",
            "changing": False,
        },
        alerts=_alerts(error or "4 % of /opt are free") if name == "prod-b" else _alerts(),
        accepts=json.dumps({"app": "macd-analysis", "env": "prod", "identity": "ci@team"}),
        free=40 << 30,
    )
    document = _report(project, host)
    case = doctor.Case(
        application.of(inventory),
        state,
        {},
        (),
        0.0,
        0.1,
        doctor.feed_of(inventory),
        NOW.timestamp(),
        document,
    )
    findings = tuple(f for f in doctor.diagnose(case) if f.ok is False)
    records = _own_journal(project.root / "hosts", name)
    return Look(host.name, host.env, NOW, NOW, state, (), findings, document, "", records)


def _report(project: Project, host: Host) -> dict[str, Any]:
    """As macd/gate/report.py makes it of a host's logs."""
    inventory, rule = project.inventory, report.rule_of(project.inventory)
    days = inventory.gate.days
    start, end = (round(t.timestamp() * 1000) for t in (NOW - timedelta(days=days), NOW))
    analysis = Analysis(Window(start, end, LIVE, compared_from=0))
    reading.analyse(reading.ordered(logs_of(inventory, host)), analysis)
    compared = skill.judged(analysis.compared, rule.skill, ALPHA)
    found = Findings(analysis.tally(), (), (), analysis.causes(), compared)
    decision: Decision = verdict_of(found, rule)
    about = report.About(host.name, host.env, LIVE, "aa", NOW, days, {})
    document = report.build(about, analysis, decision, rule, [], inventory)
    sources = reading.ordered(logs_of(inventory, host))
    drifted = drift.of_logs(sources, LIVE, DETAILS)
    audited = {"bars": 118, "equal": 117, "made": (NOW - timedelta(hours=30)).isoformat()}
    return {**document, "drift": drifted and drifted.document(), "replay": audited}
