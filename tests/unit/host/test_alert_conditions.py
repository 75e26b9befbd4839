"""Each alarm's condition over facts: when it holds, when it does not, when nobody can tell."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from macd.host.alerts import conditions
from macd.host.alerts.conditions import UNKNOWN, Facts, Newest, Terms
from macd.host.durable import Disk
from macd.host.judge.drift import Drift
from macd.host.own import BUILT_IN, Probe, Service, Signals
from macd.host.systemd.supervisor import Process

NOW = datetime(2026, 3, 2, 12, 20, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86400.0
RUNS = Process("active", "running", 7, "a1", 0, "success", "enabled", "loaded")
TERMS = Terms(unit="macd-analysis")
LIVE = {"tf": "1h", "feed": {"kind": "ccxt"}}
REPLAY = {"tf": "1h", "feed": {"kind": "replay", "speed": 2}}
# The bar that opened at 11:00 closed at 12:00, and was written then.
NEWEST = Newest(round((NOW - 80 * 60) * 1000), round((NOW - 20 * 60) * 1000), "1h")
FACTS = Facts(
    now=NOW,
    live="20260301T000000Z-00000000",
    process=RUNS,
    health={"status": "ok", "started": "2026-03-01T00:00:00Z", "feed": {"state": "waiting"}},
    service=LIVE,
    newest=NEWEST,
    disk=Disk("/", 1000, 500, 500, 1000),
    expires=NOW + 20 * DAY,
    identity="release@macd",
    allowed_signers='release@macd namespaces="release-manifest@macd" ssh-ed25519 AAAA\n',
    synchronised=True,
    keeps=True,
    offset_s=0.4,
)


def health(**said: Any) -> dict[str, Any]:
    return {"health": {**FACTS.health, **said}}


def process(**said: Any) -> dict[str, Any]:
    return {"process": replace(RUNS, **said)}


def replay(state: str, age_s: float) -> dict[str, Any]:
    """A replay in such a state, whose last bar came so long ago."""
    feed = {"state": state, "last_arrival": NOW - age_s}
    return {"service": REPLAY, **bar(9999), **health(feed=feed)}


def bar(hours_ago: float) -> dict[str, Any]:
    """The newest bar closed so long ago."""
    closed = NOW - hours_ago * HOUR
    return {"newest": Newest(round((closed - HOUR) * 1000), round(closed * 1000), "1h")}


def own(hours_ago: float | None, signals: str = "logs/trade_*.jsonl") -> dict[str, Any]:
    """An application of the team's own, whose signals were last written so long ago."""
    written = None if hours_ago is None else NOW - hours_ago * HOUR
    said = {"signals": signals, "written": written, "newest": None, "health": {"status": "ok"}}
    return {**said, "service": {"tf": "1h"}, "committed": NOW - 30 * HOUR}


STARTED_NOW = health(started=datetime.fromtimestamp(NOW - 60, UTC).isoformat())
LATE = {"newest": Newest(NEWEST.bar, NEWEST.bar + 3_700_000, "1h")}
DRIFTS = Drift("drift", 168, 0, 0.08, 0.05, 0.1, 0.2, "rsi_14", "8.0 % of the features' values")
AGED = {**LIVE, "max_age_days": 30}
HOLDS = [
    ("old", {"service": AGED, "bars_end": datetime(2026, 1, 25, tzinfo=UTC)}, "36 days ago; 30"),
    ("old", {"service": AGED, "bars_end": datetime(2026, 1, 1, tzinfo=UTC)}, "too old: "),
    ("features", {"features": DRIFTS}, "drift: 8.0 % of the features' values"),
    ("service", process(active="inactive", sub="dead"), "the service is inactive (success)"),
    ("service", {"unit": "a@B", **process(active="failed", result="signal")}, "a@B is failed"),
    ("service", process(active="failed", result="exit-code"), "failed (exit-code)"),
    ("service", {"health": {"unreachable": "refused"}}, "does not answer: refused"),
    ("service", health(status="failed", last_error="disk full"), "failed: disk full"),
    ("restarting", {"restarts": 3}, "3 times"),
    ("restarting", {**own(0.1), "restarts": 3}, "3 times"),
    ("silent", bar(2.1), "no bar for 2 hours; the feed is waiting"),
    ("silent", {"newest": None}, "no bar for 36 hours"),
    ("silent", own(2.1), "no new line in logs/trade_*.jsonl for 2 hours"),
    ("silent", own(None), "no new line in logs/trade_*.jsonl for 30 hours"),
    ("service", {**own(0.1), **health(status="failed", last_error="a-web.service is failed")},
     "a-web.service is failed"),
    ("silent", replay("replaying", 200), "no bar"),
    ("disk", {"disk": Disk("/", 1000, 40, 500, 1000)}, "4.0% of the disk is free"),
    ("disk", {"disk": Disk("/", 1000, 500, 10, 1000)}, "1.0% of its inodes is free"),
    ("disk", {"disk": Disk("/", 1000, 0, 0, 1000)}, "is free and 0.0% of its inodes is free"),
    ("expires", {"expires": NOW + 6 * DAY}, "expires in 6 days (2026-03-08"),
    ("expires", {"expires": NOW - 1}, "has expired"),
    ("clock", {"offset_s": -31.0}, "31 s behind"),
    ("clock", {"offset_s": 45.0, "synchronised": True}, "45 s ahead of"),
    ("clock", {"synchronised": False}, "not synchronised"),
    ("clock", {**LATE, "synchronised": False, "keeps": False}, "came 100 s after its close"),
    ("guard", {"guard": "dead"}, "its guard is dead"),
    ("guard", {"guard": "failing"}, "not safe"),
    ("guard", {"unjudged": "could not judge, 1 of 3: x"}, "could not judge, 1 of 3"),
    ("pending", {"pending": {"number": 4, "started": NOW - 90, "runner": False}}, "no process is"),
    ("pending", {"pending": {"number": 4, "started": NOW - 2 * HOUR, "runner": True}}, "2 hours"),
    ("look", {"unread": ("the disk (EIO)",)}, "could not look at the disk (EIO)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "facts", "text"), HOLDS)
def test_holds(name: str, facts: dict[str, Any], text: str) -> None:
    answers = conditions.judge(replace(FACTS, **facts), TERMS)
    held = {which for which, answer in answers.items() if answer not in (None, UNKNOWN)}
    assert held == {name}
    alarm = answers[name]
    assert alarm is not None and text in alarm.text and alarm.hint


def test_a_remedy_names_the_live_release_and_goes_back_only_where_it_can() -> None:
    """Without its name a restart would bring the newest release live."""

    def hint(scope: str = "system", **facts: Any) -> str:
        alarm = conditions.service(replace(FACTS, **facts), replace(TERMS, scope=scope))
        assert alarm is not None
        return alarm.hint

    restart = f"invoke doctor; invoke deploy --restart --release {FACTS.live}"
    stopped = process(active="inactive")
    stop = f"disable {TERMS.unit}"
    assert hint(**stopped) == f"{restart}; meant to be stopped? on the host: systemctl {stop}"
    back = hint("user", **stopped, rollback="r1")
    assert back.startswith(f"{restart}, or invoke rollback; ")
    assert back.endswith(f"systemctl --user {stop}")
    assert hint(**health(status="failed")) == "invoke doctor; invoke logs"
    assert hint(**health(status="failed"), rollback="r1").endswith("; invoke rollback")
    assert hint(health={"unreachable": "refused"}, rollback="r1") == restart


CLEAR = [
    {},
    own(1.9),
    own(None, signals=""),  # the inventory names none, so nobody knows
    {**own(None), "committed": NOW - HOUR},
    bar(1.9),
    {**bar(50), **STARTED_NOW},  # it was stopped for days and has just been started
    {"live": None, "process": replace(RUNS, active="inactive"), "newest": None, "health": {}},
    # Stopped on purpose: whoever stops it for good disables the unit.
    {**process(active="inactive", enabled="disabled"), "health": {}, **bar(99)},
    {**process(active="inactive", enabled="masked"), "health": {}, **bar(99)},
    replay("at the end of its file", 9e8),
    replay("replaying", 100),
    {"disk": Disk("/", 1000, 51, -1, 0)},
    {"offset_s": None, "synchronised": False, "keeps": False},  # a guest whose host keeps the clock
    {"offset_s": 29.0},
    LATE,  # its writer was slow, the clock is kept
    {"pending": {"number": 4, "started": NOW - 90, "runner": True}},
    {"restarts": 2},
    {"service": AGED, "bars_end": datetime(2026, 2, 1, tzinfo=UTC)},
    {**replay("replaying", 9), "service": {**REPLAY, "max_age_days": 1},
     "bars_end": datetime(2000, 1, 1, tzinfo=UTC)},
    {"features": replace(DRIFTS, outcome="none")},
    {"features": replace(DRIFTS, outcome="unproved")},
]  # fmt: skip


@pytest.mark.parametrize("facts", CLEAR)
def test_does_not_hold(facts: dict[str, Any]) -> None:
    answers = conditions.judge(replace(FACTS, **facts), TERMS)
    assert {name: answer for name, answer in answers.items() if answer is not None} == {}


def test_a_deploy_at_work_tells_nothing_about_the_service() -> None:
    facts = replace(FACTS, changing=True, process=replace(RUNS, active="inactive"), newest=None)
    answers = conditions.judge(facts, TERMS)
    assert answers["service"] is answers["silent"] is UNKNOWN


def test_what_could_not_be_read_is_unknown() -> None:
    nothing = Facts(now=NOW, live=FACTS.live, unread=("x",))
    answers = conditions.judge(nothing, TERMS)
    unknown = {name for name, answer in answers.items() if answer is UNKNOWN}
    assert unknown == {"service", "silent", "disk", "expires", "clock"}
    assert {n for n, answer in answers.items() if answer not in (None, UNKNOWN)} == {"look"}


def test_terms_of_zero_switch_conditions_off() -> None:
    off = Terms(unit="u", silent_bars=0, disk_free=0, expires_days=0, clock_s=0)
    bad = {**bar(9), "disk": Disk("/", 1, 0, 0, 1), "expires": NOW, "offset_s": 999.0}
    answers = conditions.judge(replace(FACTS, **bad), off)
    assert set(answers.values()) == {None}


SIGN = 'namespaces="release-manifest@macd"'
GATE = 'namespaces="gate-report@macd"'
SOON, LATER, PAST = "20260305Z", "20270101Z", "20260201120000Z"
NEW = f"release@macd {SIGN} ssh-ed25519 B"
KEYS = [
    (f'release@macd {SIGN},valid-before="{SOON}" ssh-ed25519 A', "for releases expires 2026-03-05"),
    (f'release@macd {GATE},valid-before="{SOON}" ssh-ed25519 A', "for gate reports expires 2026-"),
    (f'release@macd valid-before="{PAST}",{SIGN} ssh-ed25519 A', "releases expired 2026-02"),
    (f'*@macd,!x valid-before="{SOON}" ssh-ed25519 A', "for releases expires"),
    (f'release@macd {SIGN},valid-before="{LATER}" ssh-ed25519 A', ""),
    (f'other@macd {SIGN},valid-before="{SOON}" ssh-ed25519 A', ""),
    # The change was made: another key goes on.
    (f'release@macd {SIGN},valid-before="{SOON}" ssh-ed25519 A\n{NEW}', ""),
    (f'release@macd valid-before="{SOON}" ssh-ed25519 A\n{NEW}\nrelease@macd {GATE} sk B', ""),
    (f'# release@macd valid-before="{SOON}" ssh-ed25519 A\n', ""),
    ('release@macd valid-before="99999999Z" ssh-ed25519 A', ""),
]  # fmt: skip


@pytest.mark.parametrize(("signers", "text"), KEYS)
def test_a_key_without_a_successor_is_told_before_it_expires(signers: str, text: str) -> None:
    answer = conditions.key(replace(FACTS, allowed_signers=signers), TERMS)
    assert (answer is not None) == bool(text)
    assert answer is None or text in answer.text


def test_what_no_look_can_tell_of_an_own_application_is_said() -> None:
    assert conditions.left_out(BUILT_IN) == []
    service = Service("bot", {"bot.service": Probe(running=10)})
    said = " ".join(conditions.left_out(service))
    assert "features, old" in said and "names no signals: silent, the heartbeat" in said
    signals = replace(service, signals=Signals("logs/x.jsonl", "SIGNAL"))
    assert len(conditions.left_out(signals)) == 1


def test_every_condition_lives_with_any_facts() -> None:
    """Facts come from a service and files that may hold anything."""
    strange: list[dict[str, Any]] = [
        {"health": {"feed": "x", "started": 3, "status": ["a"]}},
        {"health": {"feed": {"last_arrival": "x", "state": None}}, "service": REPLAY},
        {"service": {"feed": {"kind": "replay", "speed": "fast"}}},
        {"service": {"feed": {"kind": "ccxt"}, "tf": None}},
        {"newest": Newest(0, 0, ""), "service": {"feed": {}}},
        {"disk": Disk("/", 0, 0, 0, 0)},
    ]
    for facts in strange:
        conditions.judge(replace(FACTS, **facts), TERMS)


def test_a_symbol_whose_bars_stop_is_silent_while_the_others_come() -> None:
    def answered(**last: str | None) -> Facts:
        symbols = {name: {"ok": True, "last_bar": at} for name, at in last.items()}
        said = {"last_bar": "2026-03-02T11:00:00Z", "symbols": symbols}
        return replace(FACTS, **health(**said))

    here, behind, gone = ("2026-03-02T11:00:00Z", "2026-03-02T09:00:00Z", "2026-03-02T08:00:00Z")
    assert conditions.silent(answered(A=here, B=behind), TERMS) is None
    alarm = conditions.silent(answered(A=here, B=gone, C=gone), TERMS)
    assert alarm is not None
    assert alarm.text == "no bar of B, C, while other symbols' bars come"
    stopped = {"A": {"last_bar": here}, "D": {"stopped": True}}
    facts = replace(FACTS, **health(last_bar=here, symbols=stopped))
    alarm = conditions.silent(facts, TERMS)
    assert alarm is not None
    assert alarm.text.startswith("no bar of D,")


def test_an_instance_is_silent_by_its_own_bars_not_by_those_of_others() -> None:
    """Each replays at a pace of its own, and one that starts again later is behind."""
    began = "2026-03-01T00:00:00Z"

    def silent(service: dict[str, Any], **of: dict[str, Any]) -> str:
        symbols = {name: {"ok": True, "started": began, **said} for name, said in of.items()}
        feed = {"state": "replaying", "last_arrival": NOW}
        facts = replace(FACTS, service=service, **health(feed=feed, symbols=symbols, **bars))
        alarm = conditions.silent(facts, TERMS)
        return "" if alarm is None else f"{alarm.text}; {alarm.hint}"

    def came(bar: str, age_s: float, state: str = "replaying") -> dict[str, Any]:
        return {"last_bar": bar, "feed": {"state": state, "last_arrival": NOW - age_s}}

    bars = {"last_bar": "2019-06-01T00:00:00Z"}
    near, far = came("2019-06-01T00:00:00Z", 1), came("2019-01-01T00:00:00Z", 1)
    assert silent(REPLAY, A=near, B=far) == ""
    assert silent(REPLAY, A=near, B=came("2019-06-01T00:00:00Z", 500, "at the end")) == ""
    said = silent(REPLAY, A=near, B=came("2019-06-01T00:00:00Z", 500))
    assert said.startswith("no bar of B, while other symbols' bars come; invoke logs --unit B;")

    bars = {"last_bar": "2026-03-02T11:00:00Z"}
    here, gone = came("2026-03-02T11:00:00Z", 1), came("2026-03-02T08:00:00Z", 1)
    assert silent(LIVE, A=here, B={}).startswith("no bar of B,")  # since it started
    assert silent(LIVE, A=here, B={"started": None}) == ""
    assert silent(LIVE, A=here, B=gone).startswith("no bar of B,")
    assert silent(LIVE, A=here, B={**gone, "started": "2026-03-02T12:10:00Z"}) == ""


def test_of_instances_the_one_that_is_restarted_is_named() -> None:
    counts = {"a@B.service": 1, "a@E.service": 4}
    alarm = conditions.restarting(replace(FACTS, restarts=3, restarted=counts), TERMS)
    assert alarm is not None
    assert alarm.text.endswith(": a@E.service 4, a@B.service 1)")
    assert alarm.hint == "invoke logs --unit a@E"
