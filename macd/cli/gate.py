"""`invoke shadow-gate`: pull each host's logs, judge them, leave a signed report and page."""

from __future__ import annotations

import contextlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed
from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError
from macd.heads import LOGGED

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.gate.report import Judged
    from macd.host.judge.gate import Rule
    from macd.inventory import Host, Inventory

_EXIT = {"PASS": ExitCode.DONE, "FAIL": ExitCode.FAILED, "INCONCLUSIVE": ExitCode.INCONCLUSIVE}
_SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}

_WIDTH = 100
_MOST_SYMBOLS = 8
_ENDS = ("value", "low", "high")
_ABNORMAL = {
    "stuck": "stuck",
    "outside": "outside (0, 1)",
    "not_finite": "NaN or infinite",
    "missing": "without output",
}


@verb(
    interrupted="a verdict that was not shown does not count\n  do: invoke shadow-gate again",
    help={
        "days": "use log lines of the last N days (default: the inventory's; with --logs: all)",
        "min-bars": "fewest bars for a verdict (default: the inventory's)",
        "rule": "point: plain rates, looked at once; sequential: bounds that hold at every look, "
        "needs about 68 bars (1h: --days 4)",
        "skill": "worse: FAIL where stacking is proved worse than the mean of the models; better: "
        "PASS only where it is proved better; off (default: the inventory's)",
        "logs": "judge the logs in this directory; such a report can't enable stacking",
        "symbol": "show one symbol of a service that has several; the verdict is over all",
        "json": "print the report itself; of several hosts verdict and hosts, a report each",
    },
)
def shadow_gate(
    _: object,
    env: str = "prod",
    host: str = "",
    days: str = "",
    min_bars: int = 0,
    rule: str = "",
    skill: str = "",
    logs: str = "",
    symbol: str = "",
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Judge the live release in shadow: exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from macd.inventory import load

    inv = load(inventory)
    wanted = _rule(inv, min_bars, rule, skill)
    span = _days(days)
    if logs:
        from macd.gate.report import of_files

        saved = _save(inv, of_files(inv, Path(logs), wanted, span, datetime.now(UTC)), Lock())
        return _show_one(saved, symbol, json=json)
    from macd.deploy.fleet import hosts_of
    from macd.gate.report import of_host

    hosts = list(hosts_of(inv, env, host))
    signing = Lock()  # for a passphrase or a touch is asked once at a time

    def judge(host: Host) -> _Saved:
        return _save(inv, of_host(inv, host, wanted, span or inv.gate.days), signing)

    results = on_each(hosts, judge)
    if len(hosts) == 1:
        return _show_one(results.done[hosts[0].name], symbol, json=json)
    return _show_all(env, results, json=json)


@dataclass(frozen=True)
class _Saved:
    """A stored report and its page. warnings: what else did not work."""

    document: Mapping[str, Any]
    path: Path
    page: Path
    warnings: Sequence[str]

    @property
    def verdict(self) -> str:
        return str(self.document["verdict"])

    @property
    def fields(self) -> dict[str, Any]:
        places = {"path": str(self.path), "page": str(self.page)}
        return {**self.document, **places, "warnings": list(self.warnings)}


def _save(inventory: Inventory, judged: Judged, signing: Lock) -> _Saved:
    """Sign and store the report, make its page; note the verdict on the host and in the journal."""
    from macd.gate import page, report

    document = judged.document
    place = report.directory_of(inventory, str(document["host"]), judged.made)
    with signing:
        path = report.save(document, place, inventory)
    shown = page.write(path)
    warnings = []
    if document["host"]:
        warnings = [report.note_on_host(path, document, inventory)]
        warnings += _record(inventory, judged, path)
    with contextlib.suppress(MacdError):  # a journal that can't be read: nobody knows what is used
        report.prune(inventory, place.parent.name, _in_use(inventory))
    return _Saved(document, path, shown, [*filter(None, warnings)])


def _show_one(saved: _Saved, symbol: str, *, json: bool) -> ExitCode:
    if json:
        emit(saved.fields)
    elif symbol:
        print("\n".join(symbol_lines(saved.document, symbol)) + "\n")
        _print_places(saved)
    else:
        print("\n".join(report_lines(saved.document)) + "\n")
        _print_places(saved)
    return _EXIT[saved.verdict]


def _show_all(env: str, results: Results[_Saved], *, json: bool) -> ExitCode:
    """Show the verdict on several hosts; a host that could not be judged counts as INCONCLUSIVE."""
    from macd.gate.report import together

    verdict = together(
        [*(saved.verdict for saved in results.done.values()), *("" for _ in results.failed)]
    )
    if json:
        hosts = [saved.fields for saved in results.done.values()]
        emit({"verdict": verdict, "hosts": hosts, **failed_fields(results.failed)})
    else:
        for saved in results.done.values():
            print("\n".join(_head(saved.document)))
            _print_places(saved)
            print()
        print_failed(results.failed)
        verdicts = [f"{name} {saved.verdict}" for name, saved in results.done.items()]
        verdicts += [f"{name} not judged" for name in results.failed]
        print(f"{_SIGNS[verdict]} {verdict}  env {env}: {', '.join(verdicts)}")
    return _EXIT[verdict] if results.done else exit_code([], results.failed)


def _print_places(saved: _Saved) -> None:
    print(f"  report    {saved.path}\n  page      {saved.page}")
    for warning in saved.warnings:
        print(f"  note      {warning}")


def _rule(inventory: Inventory, min_bars: int, rule: str, skill: str) -> Rule:
    from macd.gate.report import rule_of
    from macd.host.judge.skill import SETTINGS

    if rule not in ("", "point", "sequential"):
        raise UsageError(f"--rule {rule}: no such rule", hint="--rule point or --rule sequential")
    if skill and skill not in SETTINGS:
        raise UsageError(f"--skill {skill}: no such setting", hint="--skill worse, better or off")
    if min_bars < 0:
        raise UsageError("--min-bars must be 1 or more")
    own = rule_of(inventory)
    _refuse_skill(inventory, skill)
    return replace(
        own,
        min_bars=min_bars or own.min_bars,
        rule=rule or own.rule,
        skill=skill or own.skill,
    )


def _refuse_skill(inventory: Inventory, skill: str) -> None:
    """Raises UsageError: the lines of an application of one's own don't say what is compared."""
    from macd.application import of
    from macd.host.judge.own import COMPARED

    app = of(inventory)
    if skill in ("", "off") or app.compares:
        return
    mapped = app.signals.map.keys() if app.signals else set()
    raise UsageError(
        f"--skill {skill}: there is no skill to judge",
        why="app.signals.map does not say what the mean of the models is, the close and the "
        "horizon in bars (5, 12 or 24)",
        hint=f"leave out --skill, or map {', '.join(sorted(COMPARED - mapped))}",
    )


def _days(text: str) -> float | None:
    if not text:
        return None
    try:
        days = float(text)
        if 0 < days <= 3650:
            return days
    except ValueError:
        pass
    raise UsageError(f"--days {text}: not a number of days", hint="--days 2, or --days 0.5")


def _in_use(inventory: Inventory) -> set[str]:
    """Directories of the reports that flags were last set by."""
    from macd.journal import Journal

    records = Journal(inventory.state_dir / "journal.jsonl").records()
    last = {
        record.fields.get("host"): str(record.fields.get("report") or "")
        for record in records
        if record.kind == "flag.enable" and record.fields.get("report")
    }
    root = inventory.state_dir
    return {
        str(Path(path).parent.relative_to(root)) for path in last.values() if _below(path, root)
    }


def _below(path: str, root: Path) -> bool:
    return Path(path).is_relative_to(root)


def _record(inventory: Inventory, judged: Judged, path: Path) -> list[str]:
    """Put the verdict into the journal and notify people; what of it did not work."""
    from macd.deploy.notify import notify
    from macd.deploy.rollout import operator
    from macd.host.durable import sha256_of
    from macd.journal import Journal

    document = judged.document
    fields = {
        "env": document["env"],
        "host": document["host"],
        "who": operator(),
        "release": document["release"],
        "verdict": document["verdict"],
        "reasons": document["reasons"],
        "blockers": document["blockers"],
        "opens_nothing": document["blockers"],  # its name up to 0.1
        "rates": {row["name"]: [row["successes"], row["trials"]] for row in document["criteria"]},
        "rule": document["rule"],
        "report": str(path.relative_to(inventory.state_dir)),
        "report_sha256": sha256_of(path),  # by which a host's journal names it
    }
    journal = Journal(inventory.state_dir / "journal.jsonl")
    warnings = []
    try:
        journal.append("gate.judged", fields, now=datetime.now(UTC))
    except MacdError as error:  # the verdict holds; no other error may hide it
        warnings.append(f"not recorded in the journal: {error.what}")
    title = f"macd gate {document['env']}: {document['verdict']}"
    body = "\n".join(document["reasons"]) or f"release {document['release']}"
    warnings.append(notify(inventory.notify, title, body, good=document["verdict"] == "PASS"))
    return warnings


def report_lines(document: Mapping[str, Any]) -> list[str]:
    """The report's lines; everything foreign in it was made harmless by the parser."""
    findings = document["findings"]
    return [
        *_head(document),
        "",
        *_criteria(document),
        *_symbols(document.get("symbols") or []),
        *_counted(_lacking(document), findings["not_activated"]),
        *_missing(findings.get("lacking") or {}),
        *_models(findings["models"]),
        *_drift(document.get("drift")),
        *_counted("errors", findings["errors"]),
        *_counted("severe errors", findings["severe"]),
        *_counted("warnings", findings["warnings"]),
        *_malformed(findings["malformed"]),
        *_outcomes(document),
        *(f"  note: {words}" for words in document["notes"]),
    ]


def _symbols(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each of the worst symbols, and how many there are of each verdict."""
    if not rows:
        return []
    counts = Counter(row["verdict"] for row in rows)
    shown = ", ".join(f"{counts[word]} {word}" for word in _SIGNS if counts[word])
    width = max(len(row["symbol"]) for row in rows[:_MOST_SYMBOLS])
    lines = [f"  {len(rows)} symbols: {shown}; the worst first (--symbol shows one)"]
    lines += [
        f"    {_SIGNS[row['verdict']]} {row['symbol']:<{width}}  {_rates(row)}"
        for row in rows[:_MOST_SYMBOLS]
    ]
    if more := rows[_MOST_SYMBOLS:]:
        lines.append(f"      and {len(more)} more")
    return ["", *lines]


def _rates(row: Mapping[str, Any]) -> str:
    """Its bars and shares in short, and the first reason."""
    shares = ["–" if one["rate"] is None else f"{100 * one['rate']:.1f}" for one in row["criteria"]]
    why = f"; {row['reasons'][0]}" if row["reasons"] else ""
    return f"{row['bars']:>5,} bars, {' / '.join(shares)} %{why}"[: _WIDTH - 10]


def symbol_lines(document: Mapping[str, Any], symbol: str) -> list[str]:
    """The report of one symbol of several. Raises UsageError naming those that there are."""
    rows = {row["symbol"]: row for row in document.get("symbols") or []}
    if symbol not in rows:
        known = ", ".join(rows) or "the report is about one symbol: leave it out"
        raise UsageError(f"--symbol {symbol}: not judged", hint=f"--symbol: {known}")
    row = rows[symbol]
    return [
        f"{_SIGNS[row['verdict']]} {row['verdict']}  {symbol}, one of {len(rows)} symbols; "
        f"over all: {document['verdict']}",
        f"  signals   {row['bars']:,} bars",
        *(f"  because   {reason}" for reason in row["reasons"]),
        "",
        *_criteria({**document, "criteria": row["criteria"]}),
        *_counted("not activated because", row["not_activated"]),
        *_models(row["models"]),
        *_drift(row["drift"]),
        *_counted("errors", row["errors"]),
        *_skill(row["skill"] or {}),
    ]


def _lacking(document: Mapping[str, Any]) -> str:
    return "no evidence because" if document.get("own") else "not activated because"


def _missing(lacking: Mapping[str, int]) -> list[str]:
    """Which fields of an application of the team's own were not as its map needs them."""
    rows = [{"example": why, "count": count} for why, count in lacking.items()]
    return _counted("fields that were not as needed", rows)


def _outcomes(document: Mapping[str, Any]) -> list[str]:
    """What bars came to, and that it is not judged where nobody can know it."""
    if words := document.get("not_judged"):
        unjudged = _wrapped("  not judged: ", words)
        return [*_skill(document.get("skill") or {}), "", *unjudged]
    realised, compared = document["findings"]["realised"], document.get("skill") or {}
    return [*_realised(realised), *_skill(compared)]


def _head(document: Mapping[str, Any]) -> list[str]:
    from macd.report import numbers

    where = f"{document['host']}, env {document['env']}" if document["host"] else "local files"
    days = document["window"]["days"]
    findings = document["findings"]
    window = f"the last {numbers.counted(days, 'day')}" if days else "all lines"
    lines = [
        f"{_SIGNS[document['verdict']]} {document['verdict']}  {where}",
        f"  release   {document['release'] or 'not named in the lines'}",
        f"  window    {window}, rule {document['rule']['rule']}",
        f"  signals   {numbers.counted(document['bars'], 'bar')} {_whose(document)}, "
        f"{numbers.counted(findings['lines'], 'line')} in "
        f"{numbers.counted(len(document['logs']), 'log')}",
    ]
    if replayed := document.get("replay"):
        alone = f" of {replayed['symbol']}" if len(replayed.get("served") or ()) > 1 else ""
        shown = f"{replayed['equal']:,} of {replayed['bars']:,} lines{alone} said again"
        lines.append(f"  replay    {shown} on final bars, audit of {replayed['made'][:16]}")
    if own := document.get("own"):
        since = f"lines since {own['since'][:19]}Z, when it went live" if own["since"] else "lines"
        lines.append(f"  evidence  {since}, read by app.signals of {own['name']}")
    lines += [f"  because   {reason}" for reason in document["reasons"]]
    if document["more_bars"]:
        lines.append(
            f"  needs     {numbers.counted(document['more_bars'], 'more bar')}, if all are good"
        )
    if document["host"] and not document["release"]:
        lines.append(
            f"  do        invoke deploy --env {document['env']}: nothing is live there yet"
        )
    lines += [f"  can't enable stacking: {why}" for why in _blockers(document)]
    if document.get("meaning"):
        lines += _wrapped("  means     ", document["meaning"])
    return lines


def _whose(document: Mapping[str, Any]) -> str:
    """Of an own application on whose host nothing is live, they are of what ran by hand."""
    nothing = document.get("own") and document["host"] and not document["release"]
    return "of no release, for none is live" if nothing else "of this release"


def _wrapped(label: str, words: str) -> list[str]:
    """A long sentence in lines of _WIDTH, each below the first one's words."""
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=label,
        subsequent_indent=" " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _blockers(document: Mapping[str, Any]) -> list[str]:
    """Why the report can't enable stacking, without the verdict, which is printed above."""
    verdict = f"the verdict is {document['verdict']}"
    return [why for why in document["blockers"] if why != verdict]


def _criteria(document: Mapping[str, Any]) -> list[str]:
    sequential = document["rule"]["rule"] == "sequential"
    lines = []
    for row in document["criteria"]:
        low, high = row["anytime"] if sequential else row["wilson"]
        rate = "      –" if row["rate"] is None else f"{100 * row['rate']:6.1f} %"
        lines.append(
            f"  {_SIGNS[row['outcome']]} {row['title']:<20} {rate}  "
            f"[{100 * low:.1f}, {100 * high:.1f}]  {row['successes']} of {row['trials']}, "
            f"must exceed {100 * row['threshold']:g} %"
            + (" (warns only)" if row.get("level") == "warn" else "")
        )
    meaning = "bounds that hold at every look" if sequential else "Wilson, 95 %, for one look"
    return [*lines, f"    in brackets: {meaning}"]


def _counted(title: str, groups: Sequence[Mapping[str, Any]], most: int = 8) -> list[str]:
    if not groups:
        return []
    lines = [f"    {row['count']:>6,} × {row['example']}" for row in groups[:most]]
    if len(groups) > most:
        lines.append(f"           and {len(groups) - most} kinds more")
    return ["", f"  {title}", *lines]


def _models(models: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    yield ""
    yield "  models"
    for name in [*(n for n in LOGGED if n in models), *(n for n in models if n not in LOGGED)]:
        yield f"    {LOGGED.get(name, name):<9} {diagnosis(models[name])}"


def _drift(drift: Mapping[str, Any] | None) -> list[str]:
    """Whether the features are where they were in training; reports before 0.2 don't say it."""
    if drift is None:
        return []
    mark = {"drift": "!", "none": "✓"}.get(drift["outcome"], "?")
    return [
        "",
        f"  drift against training, over {drift['bars']} bars (warns only)",
        f"    {mark} {drift['text']}",
    ]


def diagnosis(model: Mapping[str, Any]) -> str:
    if not model["answers"]:
        absent = model["missing"] + model["not_finite"]
        kind = "NaN or infinite" if model["not_finite"] else "no output"
        return f"{kind} on {absent:,} bars" if absent else "nothing"
    low, high, mean = model["min"], model["max"], model["mean"]
    parts = []
    if low == high:
        parts.append(f"constant {low:g}" if model["answers"] > 1 else f"{low:g}, once")
    else:
        parts.append(f"{_short(low)} to {_short(high)}, mean {_short(mean)}")
        parts.append(f"spread {_short(model['spread'])}")
    parts += [f"{model[name]:,} {words}" for name, words in _ABNORMAL.items() if model[name]]
    return "; ".join(parts)


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _malformed(malformed: Mapping[str, Any]) -> list[str]:
    if not malformed["count"]:
        return []
    lines = [
        f"    {row['file']} line {row['line']}: {row['why']}" for row in malformed["quarantine"][:8]
    ]
    title = (
        f"  malformed: {malformed['count']:,} lines, {malformed['counted_as_bars']:,} count as bars"
    )
    return ["", title, *lines]


def _realised(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    labelled = [row for row in rows if row["value"] is not None]
    if not labelled:
        return ["", "  realised AUC: no labels yet"]
    lines = [
        f"    {row['model']:<9} {row['head']:<4} {row['value']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}]  {row['n']:,} bars, "
        f"worth {row['effective_n']:.0f}"
        for row in labelled
    ]
    return ["", "  realised AUC (labels overlap; 95 %)", *lines]


def _skill(comparison: Mapping[str, Any]) -> list[str]:
    from macd.host.judge.gate import more_words, outcome_words

    if not comparison or comparison["setting"] == "off":
        return ["", "  skill: not judged (gate.skill is off)"] if comparison else []
    if not comparison["against"]:
        return ["", "  skill: no line has both stacking and the mean of the models"]
    lines = [
        "",
        f"  skill of stacking at {comparison['head']}: more is better; bounds hold at every look",
    ]
    for name, row in comparison["against"].items():
        other = f"than {row['release']}" if name == "challenger" else "than the mean"
        lines.append(f"    {outcome_words(row)} {other}, {row['n']:,} bars{more_words(row)}")
        for score, words in (("log_score", "log score"), ("brier", "Brier score")):
            if (figure := row[score])["value"] is not None:
                lines.append(f"      {words:<12} {_signed(figure)}")
    return lines


def _signed(figure: Mapping[str, float]) -> str:
    from macd.report import numbers

    value, low, high = (numbers.decimal(figure[key], 4, signed=True) for key in _ENDS)
    return f"{value} [{low}, {high}]"
