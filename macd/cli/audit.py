"""`invoke audit`: the live release repeats what it served, on bars as they are now."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed, select
from macd.cli.verb import LOOKED, emit, safe, verb
from macd.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from macd.gate.audit import Audit
    from macd.inventory import Host

_EXIT = {
    "equal": ExitCode.DONE,
    "explained": ExitCode.DONE,
    "different": ExitCode.FAILED,
    "nothing": ExitCode.INCONCLUSIVE,
}
_SIGNS = {"equal": "✓", "explained": "✓", "different": "✗", "nothing": "?"}
_HEADS = {
    "equal": "every line is repeated",
    "explained": "every line is repeated, on the bars that the service had",
    "different": "lines differ, and no corrected bar explains it",
    "nothing": "nothing could be compared",
}
_MOST_SHOWN = 8


@verb(
    interrupted=LOOKED,
    help={
        "days": "repeat the lines of the last N days (default: 7)",
        "bars": "directory here with the final bars, SYMBOL_TF.parquet, .csv or .jsonl (default: "
        "the exchange, or the feed's files on the host)",
        "symbol": "of a service that has several, the one to repeat (default: its first)",
        "json": "print the audit itself; of several hosts an audit each in hosts",
    },
)
def audit(
    _: object,
    env: str = "prod",
    host: str = "",
    days: float = 7.0,
    bars: str = "",
    symbol: str = "",
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Repeat served bars with the live code: exit 0 equal, 1 different, 3 nothing."""
    from macd.gate.audit import of_host

    if not 0 < days <= 3650:
        raise UsageError(f"--days {days:g}: not a number of days", hint="--days 7, or --days 0.5")
    here = Path(bars).absolute() if bars else None
    if here is not None and not here.is_dir():
        raise UsageError(f"--bars {bars}: there is no such directory")
    inv, hosts = select(inventory, env, host)

    def report(line: str) -> None:
        print(f"  {safe(line)}", file=sys.stderr)

    def repeat(host: Host) -> Audit:
        return of_host(inv, host, days, bars=here, symbol=symbol, report=report)

    results = on_each(hosts, repeat)
    audits = results.done
    if json:
        shown = [{**one.document, "path": str(one.path)} for one in audits.values()]
        emit(shown[0] if len(hosts) == 1 else {"hosts": shown, **failed_fields(results.failed)})
    else:
        for one in audits.values():
            print("\n".join([*audit_lines(one.document), f"  audit     {one.path}"]))
        print_failed(results.failed)
    return exit_code([_EXIT[one.document["verdict"]] for one in audits.values()], results.failed)


def audit_lines(document: Mapping[str, Any]) -> list[str]:
    """An audit for a terminal; what came from the host was made harmless where it was read."""
    verdict, compared = document["verdict"], document["compared"]
    lines = [
        f"{_SIGNS[verdict]} {_HEADS[verdict]}  {document['host']}, env {document['env']}",
        f"  release   {document['release']}",
        f"  bars      {document['symbol']} {document['tf']}{_others(document)}, "
        f"from {document['source']}",
        f"  lines     {compared:,} compared of {document['lines']:,} of the last "
        f"{document['days']:g} days",
        *(f"            {count:,} left out: {why}" for why, count in document["left_out"].items()),
    ]
    if compared:
        share = f"{100 * document['share_equal']:.1f} %"
        lines.append(
            f"  equal     {document['equal']:,}, {share} of them, within {document['tolerance']:g}"
        )
    if document["explained"]:
        lines.append(f"            {document['explained']:,} more on the bars of then")
    return [*lines, *_corrected(document), *_differing(document), *_do(document)]


def _others(document: Mapping[str, Any]) -> str:
    """That other symbols are served as well, which were not repeated."""
    count = len(document["served"])
    return f", one of {count} symbols (--symbol repeats another)" if count > 1 else ""


def _corrected(document: Mapping[str, Any]) -> Iterator[str]:
    rows = document["corrected"]
    if rows:
        yield f"  corrected {document['corrected_bars']:,} bars after they were used"
    for row in rows[:_MOST_SHOWN]:
        yield (
            f"            {row['symbol']} {row['time']} {row['field']} {row['from']:g} -> "
            f"{row['to']:g}"
        )


def _differing(document: Mapping[str, Any]) -> Iterator[str]:
    if not document["different"]:
        return
    yield f"  differ    {document['different']:,} lines; the first difference of each:"
    for row in document["differences"][:_MOST_SHOWN]:
        apart = "" if row["difference"] is None else f", apart by {row['difference']:.3g}"
        yield (
            f"            {row['bar_time']} {row['name']}: written {_value(row['written'])}, "
            f"now {_value(row['replayed'])}{apart}"
        )


def _do(document: Mapping[str, Any]) -> Iterator[str]:
    golden = document["golden"] or {}
    if golden.get("ok") is False:
        yield "  golden    its golden predictions fail on the host: invoke doctor"
    if document["verdict"] == "different":
        yield (
            "  do        invoke doctor; a release that no longer says what it said was changed on "
            "the host, or reads other bars: invoke rollback goes back"
        )
    if document["verdict"] == "nothing":
        yield "  do        wait for bars of this release; --days N looks further back"


def _value(number: float | None) -> str:
    return "nothing" if number is None else f"{number:.9g}"
