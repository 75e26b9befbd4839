"""`invoke shadow-gate`: pull a host's logs, judge them, leave a signed report and its page."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.shadow.gate import Rule
    from macd.shadow.run import Judged

_EXIT = {"PASS": ExitCode.DONE, "FAIL": ExitCode.FAILED, "INCONCLUSIVE": ExitCode.INCONCLUSIVE}


@verb(
    name="shadow-gate",
    help={
        "env": "the environment (default: prod)",
        "host": "which host of it (default: the only one)",
        "days": "how far back lines count (default: the inventory's; with --logs: all)",
        "min-bars": "the fewest bars that decide (default: the inventory's)",
        "rule": "point: plain rates, one look; sequential: bounds that hold at every look, "
        "needs about 88 bars (1h: --days 5)",
        "logs": "judge the logs in this directory instead; such a report opens nothing",
        "inventory": "which inventory (default: MACD_INVENTORY or lab)",
        "json": "print the report itself",
    },
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
    """Judge the live release's time in shadow: exit 0 PASS, 1 FAIL, 3 INCONCLUSIVE."""
    from macd.inventory import load
    from macd.report import gate as page
    from macd.shadow import report

    known = load(inventory)
    wanted = _rule(known, min_bars, rule)
    span = _days(days)
    if logs:
        from macd.shadow.run import of_files

        judged = of_files(known, Path(logs), wanted, span, datetime.now(UTC))
    else:
        judged = _of_host(known, env, host, wanted, span or known.gate.days)
    document = judged.document
    place = report.directory_of(known, str(document["host"]), judged.made)
    path = report.save(document, place, known)
    shown = page.write(path)
    warnings = (
        [] if logs else [report.note_on_host(path, document, known), _told(known, judged, path)]
    )
    report.prune(known, place.parent.name, _in_use(known))
    if json:
        emit(
            {
                **document,
                "path": str(path),
                "page": str(shown),
                "warnings": [*filter(None, warnings)],
            }
        )
    else:
        from macd.cli.gate_shown import print_report

        print_report(document)
        print(f"\n  report {path}\n  page   {shown}")
        for warning in filter(None, warnings):
            print(f"  note   {warning}")
    return _EXIT[judged.decision.verdict]


def _of_host(known: Inventory, env: str, host: str, rule: Rule, days: float) -> Judged:
    from macd.deploy.campaign import only_host
    from macd.shadow.run import of_host

    return of_host(known, only_host(known, env, host, "the gate judges"), rule, days)


def _rule(known: Inventory, min_bars: int, rule: str) -> Rule:
    from macd.shadow.report import rule_of

    if rule not in ("", "point", "sequential"):
        raise UsageError(f"--rule {rule}: no such rule", hint="--rule point or --rule sequential")
    if min_bars < 0:
        raise UsageError("--min-bars must be 1 or more")
    own = rule_of(known)
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


def _in_use(known: Inventory) -> set[str]:
    """Directories of the reports that flags were last set by."""
    from macd.journal import Journal

    records = Journal(known.state_dir / "journal.jsonl").records()
    last = {
        one.fields.get("host"): str(one.fields.get("report") or "")
        for one in records
        if one.kind == "flag.enable" and one.fields.get("report")
    }
    root = known.state_dir
    return {
        str(Path(path).parent.relative_to(root)) for path in last.values() if _below(path, root)
    }


def _below(path: str, root: Path) -> bool:
    return Path(path).is_relative_to(root)


def _told(known: Inventory, judged: Judged, path: Path) -> str:
    """Put the verdict into the journal and tell those who want to know."""
    from macd.deploy.campaign import operator
    from macd.deploy.notify import notify
    from macd.journal import Journal

    document = judged.document
    fields = {
        "env": document["env"],
        "host": document["host"],
        "who": operator(),
        "release": document["release"],
        "verdict": document["verdict"],
        "reasons": document["reasons"],
        "opens_nothing": document["opens_nothing"],
        "rates": {one["name"]: [one["successes"], one["trials"]] for one in document["criteria"]},
        "rule": document["rule"],
        "report": str(path.relative_to(known.state_dir)),
    }
    journal = Journal(known.state_dir / "journal.jsonl")
    journal.append("gate.judged", fields, now=datetime.now(UTC))
    title = f"macd gate {document['env']}: {document['verdict']}"
    words = "\n".join(document["reasons"]) or f"release {document['release']}"
    return notify(known.notify, title, words, good=document["verdict"] == "PASS")
