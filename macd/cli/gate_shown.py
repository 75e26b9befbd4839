"""A gate report as people read it on a terminal: verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SIGNS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?"}
_MODELS = {"tft": "TFT", "lstm": "LSTM", "lgb": "LightGBM", "stacking": "stacking", "p": "decision"}

_ABNORMAL = {
    "stuck": "stuck",
    "outside": "outside (0, 1)",
    "not_finite": "NaN or infinite",
    "missing": "without output",
}


def lines(document: Mapping[str, Any]) -> list[str]:
    """The report's lines; everything foreign in it was made harmless by the parser."""
    found = document["findings"]
    return [
        *head(document),
        "",
        *_criteria(document),
        *_counted("not activated because", found["not_activated"]),
        *_models(found["models"]),
        *_counted("errors", found["errors"]),
        *_counted("severe errors", found["severe"]),
        *_counted("warnings", found["warnings"]),
        *_malformed(found["malformed"]),
        *_realised(found["realised"]),
        *(f"  note: {words}" for words in document["notes"]),
    ]


def head(document: Mapping[str, Any]) -> list[str]:
    """The verdict and why."""
    where = f"{document['host']}, env {document['env']}" if document["host"] else "local files"
    days = document["window"]["days"]
    found = document["findings"]
    told = [
        f"{SIGNS[document['verdict']]} {document['verdict']}  {where}",
        f"  release   {document['release'] or 'not told by the lines'}",
        f"  window    {f'the last {days:g} days' if days else 'all lines'}, "
        f"rule {document['rule']['rule']}",
        f"  signals   {document['bars']:,} bars of this release, {found['lines']:,} lines in "
        f"{len(document['logs'])} logs",
    ]
    told += [f"  because   {reason}" for reason in document["reasons"]]
    if document["more_bars"]:
        told.append(f"  needs     {document['more_bars']} more bars, if all of them are good")
    if document["host"] and not document["release"]:
        told.append(f"  do        invoke deploy --env {document['env']}: nothing is live there yet")
    told += [f"  opens nothing: {why}" for why in _closed(document)]
    return told


def _closed(document: Mapping[str, Any]) -> list[str]:
    """Why it opens nothing, but for the verdict, which stands above."""
    verdict = f"the verdict is {document['verdict']}"
    return [why for why in document["opens_nothing"] if why != verdict]


def _criteria(document: Mapping[str, Any]) -> list[str]:
    sequential = document["rule"]["rule"] == "sequential"
    told = []
    for one in document["criteria"]:
        low, high = one["anytime"] if sequential else one["wilson"]
        rate = "      –" if one["rate"] is None else f"{100 * one['rate']:6.1f} %"
        told.append(
            f"  {SIGNS[one['outcome']]} {one['title']:<20} {rate}  "
            f"[{100 * low:.1f}, {100 * high:.1f}]  {one['successes']} of {one['trials']}, "
            f"must exceed {100 * one['threshold']:g} %"
        )
    meaning = "bounds that hold at every look" if sequential else "Wilson, 95 %, for one look"
    return [*told, f"    in brackets: {meaning}"]


def _counted(title: str, groups: Sequence[Mapping[str, Any]], most: int = 8) -> list[str]:
    if not groups:
        return []
    told = [f"    {one['count']:>6,} × {one['example']}" for one in groups[:most]]
    if len(groups) > most:
        told.append(f"           and {len(groups) - most} kinds more")
    return ["", f"  {title}", *told]


def _models(models: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    yield ""
    yield "  models"
    for name, title in _MODELS.items():
        yield f"    {title:<9} {diagnosis(models[name])}"


def diagnosis(model: Mapping[str, Any]) -> str:
    """One model's output in words."""
    if not model["answers"]:
        absent = model["missing"] + model["not_finite"]
        kind = "NaN or infinite" if model["not_finite"] else "no output"
        return f"{kind} on {absent:,} bars" if absent else "nothing"
    low, high, mean = model["min"], model["max"], model["mean"]
    told = []
    if low == high:
        told.append(f"constant {low:g}" if model["answers"] > 1 else f"{low:g}, once")
    else:
        told.append(f"{_short(low)} to {_short(high)}, mean {_short(mean)}")
        told.append(f"spread {_short(model['spread'])}")
    told += [f"{model[name]:,} {words}" for name, words in _ABNORMAL.items() if model[name]]
    return "; ".join(told)


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _malformed(found: Mapping[str, Any]) -> list[str]:
    if not found["count"]:
        return []
    told = [
        f"    {one['file']} line {one['line']}: {one['why']}" for one in found["quarantine"][:8]
    ]
    title = f"  malformed: {found['count']:,} lines, {found['counted_as_bars']:,} count as bars"
    return ["", title, *told]


def _realised(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return ["", "  realised AUC: no labels yet"]
    told = [
        f"    {row['model']:<9} {row['head']:<4} {row['value']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}]  {row['n']:,} bars, "
        f"worth {row['effective_n']:.0f}"
        for row in known
    ]
    return ["", "  realised AUC (labels overlap; 95 %)", *told]
