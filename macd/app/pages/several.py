"""The page of a training of several symbols: a row each, and a link to the symbol's own page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from macd.app.pages import training
from macd.app.pages.training import Compared, Verdict, brief, headline, verdict
from macd.heads import NAMES, explained
from macd.report import numbers
from macd.report.page import Table, render, seconds, write_page
from macd.run_directory import FILES, TrainingRun, read_run

_HEAD = (
    *("model, head", "validation", "all bars", "holdout", "bars", "effective n"),
    *("criteria met", "not met"),
)


def write(run_dir: Path, *, host: str = "", compared: Compared | None = None) -> Path:
    """Make run_dir/report.html from what the training left of each symbol; returns its path.

    host, compared: as for the page of one symbol. Raises as that does.
    """
    run = read_run(run_dir)
    parts = {name: read_run(FILES.of_symbol(run_dir, name)) for name in run.symbols}
    return write_page(run_dir / training.PAGE, page(run, parts, host, compared or {}))


def page(run: TrainingRun, parts: Mapping[str, TrainingRun], host: str, compared: Compared) -> str:
    made = [_row(name, part) for name, part in parts.items()]
    return render(
        "several_report.html.j2",
        run=run,
        title=f"Training of {len(parts)} symbols, {run.tf}",
        verdict=verdict_of_all(run, parts),
        heads=explained(run.tf),
        head=_HEAD,
        rows=made,
        changes=[(what, _changes(document)) for what, document in compared.items()],
        facts=[
            ("Run", run.id),
            ("Took", seconds(run.result.get("seconds"))),
            ("Host", host or "not recorded"),
            (
                "Profile, seed",
                f"{run.settings.get('profile', '–')}, {run.settings.get('seed', '–')}",
            ),
            ("Data digest", str(run.result.get("data_digest") or "–")),
        ],
    )


def verdict_of_all(run: TrainingRun, parts: Mapping[str, TrainingRun]) -> Verdict:
    """How the run ended, and of which symbols a release may be made."""
    if run.state != "done" or not any(part.criteria for part in parts.values()):
        return verdict(run)
    blocked = [
        name
        for name, part in parts.items()
        if any(not o["ok"] and o["level"] == "block" for o in part.criteria)
    ]
    free = len(parts) - len(blocked)
    if not blocked:
        return Verdict("good", f"All {free} symbols may be released")
    without = f"invoke release --without {','.join(blocked)}" if free else ""
    return Verdict(
        "warn" if free else "bad",
        f"{free} of {len(parts)} symbols may be released",
        f"blocked: {', '.join(blocked)}",
        without,
    )


def _row(name: str, part: TrainingRun) -> tuple[str, str, tuple[str, ...]]:
    """The symbol, the place of its page, and its cells as `_HEAD` names them."""
    link = f"{FILES.of_symbol(Path(), name).as_posix()}/{training.PAGE}"
    model = headline(part)
    if not model:
        return name, link, ("not measured", *("–",) * (len(_HEAD) - 1))
    best = part.metrics["best_head"][model]
    made = part.compared[model][best]
    missed = [outcome["name"] for outcome in part.criteria if not outcome["ok"]]
    cells = (
        f"{NAMES[model]} {part.shown(best)}",
        *(brief(made[which]) for which in ("val", "val_all", "test")),
        numbers.count(made["val"]["n"]),
        numbers.count(made["val"]["effective_n"]),
        f"{len(part.criteria) - len(missed)} of {len(part.criteria)}",
        ", ".join(missed) or "–",
    )
    return name, link, cells


def _changes(document: Mapping[str, Any]) -> Table | str:
    """What a comparison says of each symbol; in words where there is none."""
    if "unable" in document:
        return f"not compared, {document['unable']}"
    by_symbol = document.get("symbols", {})
    rows = [
        (name, numbers.typeset(made.get("unable") or made["verdict"]["text"]))
        for name, made in by_symbol.items()
    ]
    return Table(("symbol", "on the same bars"), rows)
