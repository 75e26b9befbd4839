"""The page: from what hosts said and did to HTML that says it, the same live and in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from macd.dashboard import events, figures, needs
from macd.dashboard.events import Event
from macd.dashboard.look import Look
from macd.dashboard.needs import Need
from macd.dashboard.served import Served
from macd.deploy import lineage
from macd.deploy.fleet import named
from macd.errors import MacdError
from macd.gate import page as gate_page
from macd.host.flag.flag_file import FLAG, LIVE
from macd.host.record import Record
from macd.inventory import Host, Inventory
from macd.report import numbers
from macd.report.page import Figure, Table, render, seconds

SIGNS = {"bad": "✗", "warn": "!", "good": "✓"}
_SHORTEST_S, _MARGIN = 3600.0, 1.05  # of a time line; of what it shows
_MOODS = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "warn"}


@dataclass(frozen=True)
class Seen:
    """A host as the page knows it. look: its last answer, an old one unless `answered`.

    failure: why it did not answer now. served: what the live release did. options: what a command
    needs to mean this host.
    """

    host: Host
    look: Look | None
    failure: MacdError | None
    served: Served | None
    options: str
    answered: bool = True


@dataclass(frozen=True)
class Facts:
    """All that the page is made of. records: of the operator's journal; damage: what is wrong with
    it, None if nothing. days: how far back the page looks. every_s: seconds between two questions
    to the hosts, None where the page is a file.
    """

    inventory: Inventory
    made: datetime
    hosts: Sequence[Seen]
    records: Sequence[Record]
    damage: MacdError | None
    days: float
    every_s: float | None = None


@dataclass(frozen=True)
class Section:
    """A host's part of the page. trouble: why nothing, or only an old answer, is shown.

    row: of the table of hosts. age: when the host answered, "" if it never did. span: of which
    lines of the live release the charts are.
    """

    name: str
    env: str
    mood: str
    serves: str
    row: tuple[str, ...]
    trouble: str = ""
    why: str = ""
    age: str = ""
    live: str = ""
    since: str = ""
    stacking: str = ""
    bar: str = ""
    expires: str = ""
    way: Sequence[tuple[str, str]] = ()
    time_line: Figure | None = None
    span: str = ""
    charts: Sequence[Figure] = ()
    realised: Sequence[Figure] = ()
    skill: Sequence[Figure] = ()
    gate: Mapping[str, Any] = field(default_factory=dict)
    features: Table | None = None
    features_said: str = ""
    outside: Figure | None = None
    symbols: Table | None = None
    replay: Mapping[str, Any] | None = None
    errors: Table | None = None
    drift: Sequence[str] = ()
    notes: Sequence[str] = ()


HEAD = (
    "host",
    "live",
    "since (UTC)",
    "service",
    "stacking",
    "newest bar",
    "coverage",
    "paper",
    "gate",
)


def page(facts: Facts) -> str:
    """The HTML."""
    open_needs = needed(facts)
    sections = [section_of(seen, facts) for seen in facts.hosts]
    by_env = {s.env: [each for each in sections if each.env == s.env] for s in sections}
    title = f"macd {facts.inventory.name}"
    return render(
        "dashboard.html.j2",
        title=f"({len(open_needs)}) {title}" if open_needs else title,
        heading=title,
        made=f"{facts.made:%Y-%m-%d %H:%M:%S}",
        every_s=facts.every_s,
        needs=open_needs,
        signs=SIGNS,
        envs={
            env: (parts, Table(HEAD, [part.row for part in parts])) for env, parts in by_env.items()
        },
        trainings=trainings(facts.inventory, facts.records),
        answered=sum(seen.answered for seen in facts.hosts),
        asked=any(seen.answered or seen.failure for seen in facts.hosts),
        count=len(facts.hosts),
        hosts=numbers.counted(len(facts.hosts), "host"),
        last=_last(facts.days),
    )


def _last(days: float) -> str:
    return f"last {numbers.counted(days, 'day') if days != 1 else 'day'}"


def trainings(inventory: Inventory, records: Sequence[Record]) -> Table | None:
    """The newest run on each training host, as the operator's journal has it; None without a host.

    No host is asked: `invoke train.status` does that.
    """
    rows = []
    for host in inventory.hosts.values():
        if host.role != "train":
            continue
        own = [
            r for r in records if r.kind.startswith("train.") and r.fields.get("host") == host.name
        ]
        last = own[-1] if own else None
        run = str(last.fields.get("run")) if last else "none from here"
        state = str(last.fields.get("state") or "started") if last else "–"
        rows.append((host.name, run, state, figures.moment(last.time.timestamp()) if last else "–"))
    return Table(("host", "newest run", "state", "recorded (UTC)"), rows) if rows else None


def needed(facts: Facts) -> list[Need]:
    """What needs a person now, what is worst first."""
    open_needs = []
    if facts.damage is not None:
        open_needs.append(Need("this machine", facts.damage.what, facts.damage.hint))
    for seen in facts.hosts:
        try:
            open_needs += needs.of_host(seen.host.name, seen.options, seen.look, seen.failure)
        except Exception as error:  # one host's odd answer hides no other host
            open_needs.append(Need(seen.host.name, _odd(error), f"invoke status{seen.options}"))
    return sorted(open_needs, key=lambda need: need.mood != "bad")


def section_of(seen: Seen, facts: Facts) -> Section:
    """What the page says of one host; that its answer is odd where it can't be shown."""
    try:
        return section(seen, facts)
    except Exception as error:  # it hides no other host
        return _unknown(seen, _odd(error))


def _odd(error: Exception) -> str:
    return f"its answer can't be shown: {named(error)}"


def section(seen: Seen, facts: Facts) -> Section:
    """What the page says of one host."""
    host, look = seen.host, seen.look
    unreachable = seen.failure.what if seen.failure is not None else ""
    if look is None:
        return _unknown(seen, unreachable)
    state, document = look.state, look.report or {}
    happened = events.events(host.name, host.env, state.history, look.records, facts.records)
    age = seconds((facts.made - look.asked).total_seconds())
    mood = "bad" if unreachable or (state.live and not state.serves_well) else "good"
    serves = _serves(look) if not unreachable else f"unreachable; {age} old"
    stacking = _stacking(look)
    since = events.live_since(happened, state.live)
    newest = _bar(seen.served)
    cut = bool(seen.served and since and since.timestamp() * 1000 < seen.served.start)
    row = (
        host.name,
        figures.short(state.live) if state.live else "nothing",
        f"{since:%Y-%m-%d %H:%M}" if since else "–",
        serves,
        stacking.partition(",")[0].partition(";")[0],
        newest,
        _coverage(seen.served),
        numbers.gain(seen.served.paper.net) if seen.served and seen.served.paper else "–",
        str(look.report["verdict"]) if look.report else "–",
    )
    return Section(
        name=host.name,
        env=host.env,
        mood=mood,
        serves=serves,
        row=row,
        trouble=unreachable,
        why=seen.failure.why if seen.failure is not None else "",
        live=state.live or "",
        since=f"{since:%Y-%m-%d %H:%M}" if since else "",
        stacking=stacking,
        age=f"{look.asked:%Y-%m-%d %H:%M:%S} UTC" + ("" if seen.answered else f", {age} ago"),
        bar=newest,
        expires=figures.moment(state.expires) if state.expires is not None else "",
        way=_way(look, facts.records, happened),
        time_line=_time_line(host.name, happened, seen.served, facts),
        span=f"the {_last(facts.days)}" if cut else "since its first line",
        charts=_charts(seen.served, facts.inventory, _last(facts.days) if cut else ""),
        realised=gate_page.realised(seen.served.findings) if seen.served else (),
        skill=_skill(seen.served, document),
        gate=_gate(look),
        features=gate_page.drift_table(document.get("drift")),
        features_said=(document.get("drift") or {}).get("text", ""),
        outside=figures.outside(seen.served.outside) if seen.served else None,
        symbols=_symbols(look, seen.served),
        replay=document.get("replay"),
        errors=_errors(look, seen.served),
        drift=look.drift,
        notes=[str(note) for note in document.get("notes", ())],
    )


def _unknown(seen: Seen, trouble: str) -> Section:
    """A host that never answered, or whose answer can't be shown."""
    said = "never reached" if seen.look is None else "unexpected answer"
    return Section(
        name=seen.host.name,
        env=seen.host.env,
        mood="bad" if trouble else "warn",
        serves=said,
        row=(seen.host.name, "–", "–", said, *("–",) * (len(HEAD) - 4)),
        trouble=trouble,
        why=seen.failure.why if seen.failure is not None else "",
    )


def _serves(look: Look) -> str:
    state = look.state
    if not state.exists:
        return "not provisioned"
    if not state.live:
        return "nothing to serve"
    return state.unhealthy or "ok"


def _stacking(look: Look) -> str:
    state = look.state
    running = state.stacking.get("running") or state.health.get("flags", {}).get(FLAG)
    if not state.live or running is None:
        return "–"
    if running != LIVE:
        return "shadow"
    return state.exposure or "decides"


def _bar(served: Served | None) -> str:
    return figures.moment(served.newest / 1000) if served and served.newest is not None else "–"


def _coverage(served: Served | None) -> str:
    rows = served.findings["timeline"] if served else []
    bars = sum(row[1] for row in rows)
    return numbers.share(sum(row[2] for row in rows) / bars) if bars else "–"


def _way(look: Look, here: Sequence[Record], happened: Sequence[Event]) -> list[tuple[str, str]]:
    """The steps by which what is live came: run, release, signer, deploy, gate, flag."""
    state = look.state
    if not state.live:
        return []
    chain = lineage.lineage(state, lineage.judged(here, look.host, state.live))
    run, box = chain["run"] or "not recorded", chain["trained on"]
    serial = f", serial {chain['serial']}" if chain["serial"] is not None else ""
    by = f" by {chain['brought by']}" if chain["brought by"] else ""
    flips = [event for event in happened if event.kind in (events.FLAG_ON, events.FLAG_OFF)]
    last = next((e for e in reversed(flips) if e.release == state.live), None)
    flag = _stacking(look)
    return [
        ("run", f"{run}{f' on {box}' if box else ''}"),
        ("release", f"{state.live}{serial}"),
        ("signed as", chain["signed as"] or "not recorded"),
        (str(chain["how"] or "deploy"), f"{chain['at'] or 'not recorded'}{by}"),
        ("gate", chain["gate"] or "no report from here"),
        ("stacking", f"{flag}; {figures.moment(last.at)} {last.text}" if last else flag),
    ]


def _time_line(
    name: str, happened: Sequence[Event], served: Served | None, facts: Facts
) -> Figure | None:
    """From --days ago on, or from the first event or line where that is later."""
    if not happened:
        return None
    end = facts.made.timestamp()
    rows = served.findings["timeline"] if served else ()
    first = min([happened[0].at, *(row[0] / 1000 for row in rows[:1])])
    shown = max(_SHORTEST_S, _MARGIN * (end - first))
    start = max((facts.made - timedelta(days=facts.days)).timestamp(), end - shown)
    return figures.time_line(name, happened, start, end)


def _charts(served: Served | None, inventory: Inventory, last: str) -> list[Figure]:
    """last: how far back the lines go, where the release has served for longer."""
    if served is None:
        return []
    policy = inventory.service.policy
    made = (
        figures.coverage(served.findings["timeline"], inventory.gate.ml_coverage),
        figures.latency(served.latency),
        figures.equity(served.paper, policy.fee_bps, policy.slippage_bps, last),
    )
    return [figure for figure in made if figure is not None]


def _skill(served: Served | None, document: Mapping[str, Any]) -> list[Figure]:
    over_time = figures.skill(served.skill) if served else None
    now = gate_page.skill(document.get("skill") or {})
    return [*([over_time] if over_time else []), *now]


def _gate(look: Look) -> dict[str, Any]:
    """What a gate report made now would say."""
    document = look.report
    if document is None:
        return {"verdict": "", "mood": "warn", "reasons": [look.no_report], "criteria": ()}
    verdict = str(document["verdict"])
    return {
        "verdict": verdict,
        "mood": _MOODS[verdict],
        "reasons": list(document["reasons"]),
        "more": document.get("more_bars"),
        "criteria": Table(
            ("share", "measured", "of", "must exceed", "outcome"),
            [
                (
                    row["title"],
                    numbers.share(row["rate"]),
                    f"{row['successes']:,} of {row['trials']:,}",
                    f"{100 * row['threshold']:g} %",
                    row["outcome"],
                )
                for row in document["criteria"]
            ],
        ),
    }


def _symbols(look: Look, served: Served | None) -> Table | None:
    """A row for each symbol of a service that has several; None for one."""
    said, counted = look.state.health.get("symbols"), served.symbols if served else ()
    health = dict(said) if isinstance(said, Mapping) else {}
    if not health and not counted:
        return None
    judged = {row["symbol"]: row["verdict"] for row in (look.report or {}).get("symbols") or ()}
    by_name = {row.symbol: row for row in counted}
    rows = []
    for name in sorted({*health, *by_name}):
        row, now = by_name.get(name), health.get(name)
        now = now if isinstance(now, Mapping) else {}
        wrong = "bars stopped" if now.get("stopped") else str(now.get("error") or "")
        rows.append(
            (
                name,
                judged.get(name, "–"),
                wrong or ("ok" if now.get("ok") else "models fail" if now else "–"),
                str(now.get("stacking") or "–"),
                row.bars if row else 0,
                numbers.share(row.covered / row.bars) if row and row.bars else "–",
                figures.moment(row.newest / 1000) if row and row.newest is not None else "–",
                numbers.gain(row.paper.net) if row and row.paper else "–",
            )
        )
    head = ("symbol", "gate", "service", "stacking", "bars", "coverage", "newest bar", "paper")
    return Table(head, rows)


def _errors(look: Look, served: Served | None) -> Table:
    """Severe lines, errors of models and warnings, the newest first; and what the service says."""
    rows: list[tuple[int, str, str, int]] = []
    findings = served.findings if served else {}
    for kind, name in (("severe", "severe"), ("errors", "model"), ("warnings", "warning")):
        rows += [(g["last"], name, g["example"], g["count"]) for g in findings.get(kind, ())]
    rows.sort(reverse=True)
    made: list[tuple[str, str, str, int | None]] = [
        (figures.moment(last / 1000), kind, text, count) for last, kind, text, count in rows[:30]
    ]
    said = look.state.health.get("last_error")
    if said:
        made.insert(0, ("now", "service", str(said)[:300], None))
    return Table(("last (UTC)", "kind", "what", "lines"), made)
