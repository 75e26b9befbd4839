"""`invoke shadow-gate`: pull each host's logs, judge them, leave a signed report and page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed
from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.gate.report import Judged
    from macd.host.judge.gate import Rule
    from macd.inventory import Host, Inventory

_EXIT = {"PASS": ExitCode.DONE, "FAIL": ExitCode.FAILED, "INCONCLUSIVE": ExitCode.INCONCLUSIVE}
_SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}
_MODELS = {"tft": "TFT", "lstm": "LSTM", "lgb": "LightGBM", "stacking": "stacking", "p": "decision"}

_ABNORMAL = {
    "stuck": "stuck",
    "outside": "outside (0, 1)",
    "not_finite": "NaN or infinite",
    "missing": "without output",
}


@verb(
    help={
        "days": "use log lines of the last N days (default: the inventory's; with --logs: all)",
        "min-bars": "fewest bars for a verdict (default: the inventory's)",
        "rule": "point: plain rates, looked at once; sequential: bounds that hold at every look, "
        "needs about 88 bars (1h: --days 5)",
        "logs": "judge the logs in this directory; such a report can't enable stacking",
        "json": "print the report itself; of several hosts verdict and hosts, a report each",
    }
)
def shadow_gate(
    _: object,
    env: str = "prod",
    host: str = "",
    days: str = "",
    min_bars: int = 0,
    rule: str = "",
    logs: str = "",
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Judge the live release in shadow: exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from macd.inventory import load

    inv = load(inventory)
    wanted = _rule(inv, min_bars, rule)
    span = _days(days)
    if logs:
        from macd.gate.report import of_files

        saved = _save(inv, of_files(inv, Path(logs), wanted, span, datetime.now(UTC)), Lock())
        return _show_one(saved, json=json)
    from macd.deploy.fleet import hosts_of
    from macd.gate.report import of_host

    hosts = list(hosts_of(inv, env, host))
    signing = Lock()  # for a passphrase or a touch is asked once at a time

    def judge(host: Host) -> _Saved:
        return _save(inv, of_host(inv, host, wanted, span or inv.gate.days), signing)

    results = on_each(hosts, judge)
    if len(hosts) == 1:
        return _show_one(results.done[hosts[0].name], json=json)
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
    report.prune(inventory, place.parent.name, _in_use(inventory))
    return _Saved(document, path, shown, [*filter(None, warnings)])


def _show_one(saved: _Saved, *, json: bool) -> ExitCode:
    if json:
        emit(saved.fields)
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


def _rule(inventory: Inventory, min_bars: int, rule: str) -> Rule:
    from macd.gate.report import rule_of

    if rule not in ("", "point", "sequential"):
        raise UsageError(f"--rule {rule}: no such rule", hint="--rule point or --rule sequential")
    if min_bars < 0:
        raise UsageError("--min-bars must be 1 or more")
    own = rule_of(inventory)
    return replace(own, min_bars=min_bars or own.min_bars, rule=rule or own.rule)


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
        *_counted("not activated because", findings["not_activated"]),
        *_models(findings["models"]),
        *_counted("errors", findings["errors"]),
        *_counted("severe errors", findings["severe"]),
        *_counted("warnings", findings["warnings"]),
        *_malformed(findings["malformed"]),
        *_realised(findings["realised"]),
        *(f"  note: {words}" for words in document["notes"]),
    ]


def _head(document: Mapping[str, Any]) -> list[str]:
    where = f"{document['host']}, env {document['env']}" if document["host"] else "local files"
    days = document["window"]["days"]
    findings = document["findings"]
    lines = [
        f"{_SIGNS[document['verdict']]} {document['verdict']}  {where}",
        f"  release   {document['release'] or 'not named in the lines'}",
        f"  window    {f'the last {days:g} days' if days else 'all lines'}, "
        f"rule {document['rule']['rule']}",
        f"  signals   {document['bars']:,} bars of this release, {findings['lines']:,} lines in "
        f"{len(document['logs'])} logs",
    ]
    lines += [f"  because   {reason}" for reason in document["reasons"]]
    if document["more_bars"]:
        lines.append(f"  needs     {document['more_bars']} more bars, if all of them are good")
    if document["host"] and not document["release"]:
        lines.append(
            f"  do        invoke deploy --env {document['env']}: nothing is live there yet"
        )
    lines += [f"  can't enable stacking: {why}" for why in _blockers(document)]
    return lines


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
    for name, title in _MODELS.items():
        yield f"    {title:<9} {diagnosis(models[name])}"


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
