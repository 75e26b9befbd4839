"""`invoke train.compare RUN RUN`: a challenger against the champion, on the same bars.

The comparing is the application's (macd/application.py). Here: which runs, and the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from macd.cli.release import live_on, read_run, store_of
from macd.cli.verb import emit, safe, verb
from macd.errors import MacdError, UsageError
from macd.symbols import symbol_name

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.run_directory import TrainingRun

_PARTS = {"val": "validation", "test": "holdout"}
_SHOWN = 12  # names of features in a line


@verb(
    help={
        "challenger": "the run in question: an id below runs/, or a directory",
        "champion": "the run it is held against (default: the one behind what is live)",
        "symbol": "of runs of several symbols the one to show in full",
        "env": "the environment whose live release names the champion (default: prod)",
    }
)
def compare(
    _: object,
    challenger: str = "",
    champion: str = "",
    symbol: str = "",
    env: str = "prod",
    inventory: str = "",
    json: bool = False,
) -> None:
    """Compare two trainings on the same bars: which is better, and what differs.

    Changes nothing. invoke train.compare CHALLENGER [CHAMPION]
    """
    from macd import application
    from macd.inventory import load

    if not challenger:
        raise UsageError(
            "which run is the challenger?",
            hint="invoke train.compare CHALLENGER [CHAMPION]: ids below runs/, or directories",
        )
    inv = load(inventory)
    new, old = read_run(inv, challenger), read_run(inv, champion or behind_live(inv, env))
    if new.directory.resolve() == old.directory.resolve():
        raise UsageError(
            f"{new.id} is both challenger and champion",
            hint="name two runs: invoke train.compare CHALLENGER CHAMPION",
        )
    if inv.app is None:
        comparison, said = application.compare_runs(old.directory, new.directory), lines
        if symbol and "symbols" in comparison:
            comparison = _of_symbol(comparison, symbol_name(symbol))
        if "symbols" in comparison:
            said = several_lines
    else:
        comparison, said = _own(inv.app.name, old, new), own_lines
    if json:
        emit(comparison)
        return
    for line in said(comparison):
        print(safe(line))


def _of_symbol(comparison: Mapping[str, Any], symbol: str) -> dict[str, Any]:
    """One symbol of a comparison. Raises UsageError where it says nothing of that one."""
    made = comparison["symbols"].get(symbol)
    if made is None or "unable" in made:
        raise UsageError(
            f"{symbol} can't be compared in these runs",
            why=made["unable"] if made else f"both trained {', '.join(comparison['symbols'])}",
            hint="invoke train.compare without --symbol shows a line of each",
        )
    return dict(made)


def several_lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The verdict about each symbol that both runs trained."""
    old, new = comparison["champion"]["run"], comparison["challenger"]["run"]
    yield f"{len(comparison['symbols'])} symbols  challenger {new} against champion {old}"
    for name, made in comparison["symbols"].items():
        said = f"not compared, {made['unable']}" if "unable" in made else made["verdict"]["text"]
        yield f"  {name}: {said}"
    for side, names in comparison["only"].items():
        if names:
            yield f"  only in the {side}: {', '.join(names)}"
    yield "\nThe more symbols, the more of them differ by chance. --symbol NAME shows one in full"


def _own(name: str, old: TrainingRun, new: TrainingRun) -> dict[str, Any]:
    """Two trainings of an application of the team's own: its metrics side by side."""
    before, after = (run.metrics.get("own", {}) for run in (old, new))
    names = dict.fromkeys([*before, *after])
    return {
        "own": name,
        "champion": {"run": old.id},
        "challenger": {"run": new.id},
        "metrics": {key: [before.get(key), after.get(key)] for key in names},
        "limits": [
            "a verdict on the same bars: that needs the predictions out of fold, which only the"
            " built-in application writes. Each run measured its own figures",
        ],
    }


def own_lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The metrics of two runs for people."""
    old, new = comparison["champion"]["run"], comparison["challenger"]["run"]
    yield f"{comparison['own']}  challenger {new} against champion {old}"
    for name, (before, after) in comparison["metrics"].items():
        shown = [f"{x:.4g}" if x is not None else "not measured" for x in (before, after)]
        change = f" ({after - before:+.4g})" if None not in (before, after) else ""
        yield f"  {name}: {' -> '.join(shown)}{change}"
    yield "\nWhat this can't show"
    yield from (f"  * {limit}" for limit in comparison["limits"])


def behind_live(inventory: Inventory, env: str) -> str:
    """The run behind the release of env that is live, as deploys from this machine ended.

    Raises UsageError when the records here name none, or several.
    """
    runs: dict[str, list[str]] = {}
    store = store_of(inventory)
    for identifier, hosts in live_on(inventory).items():
        try:
            manifest = store.load(identifier).manifest
        except MacdError:
            continue  # deployed from here, but the release was removed since
        if manifest.env == env and manifest.details.get("run"):
            runs.setdefault(str(manifest.details["run"]), []).extend(hosts)
    if len(runs) == 1:
        return next(iter(runs))
    said = "; ".join(f"{run} on {', '.join(hosts)}" for run, hosts in runs.items())
    raise UsageError(
        f"which run is live in {env} is not known from the records here",
        why=f"several are: {said}" if runs else "no deploy from this machine names a release here",
        hint="name it: invoke train.compare CHALLENGER CHAMPION; invoke why shows a host's run",
    )


def lines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The comparison for people: verdict, figures, differences, limits."""
    old, new, rows = comparison["champion"], comparison["challenger"], comparison["rows"]
    market = f"{comparison['symbol']} {comparison['tf']}"
    yield f"{market}  challenger {new['run']} against champion {old['run']}"
    yield f"  {comparison['verdict']['text']}"
    yield (
        f"  {rows['validation']:,} validation and {rows['holdout']:,} holdout bars of "
        f"{rows['both']:,} that both tested; those that moved enough and on which all models "
        "predict are below"
    )
    for part, title in _PARTS.items():
        yield f"\n{title.capitalize()}, direction of moves; champion's figures first"
        for head, parts in comparison["parts"].items():
            yield from _head_lines(head, parts, part, comparison["tf"])
    yield "\nWhat differs"
    yield from (f"  {line}" for line in differences(comparison["differs"]))
    yield "\nWhat this can't show"
    yield from (f"  * {limit}" for limit in comparison["limits"])


def _head_lines(head: str, parts: Mapping[str, Any], part: str, tf: str) -> Iterator[str]:
    from macd.heads import NAMES, shown

    made, everywhere = parts[part], parts[f"{part}_all"]
    if not made["n"]:
        yield f"  {shown(head, tf)}  no bar to compare on"
        return
    yield f"  {shown(head, tf)}  {made['n']:,} bars (effective {made['effective_n']:,.0f})"
    for name, both in made["models"].items():
        if both["champion"] == both["challenger"] and not both["disagree"]["n"]:
            alike = _number(both["champion"]["auc"], 3)
            yield f"    {NAMES[name]:<16} AUC {alike}, the same in both"
            continue
        figures = [
            f"{label} {_pair(both, key, places)} {_difference(both['difference'][key], places)}"
            for label, key, places in (("AUC", "auc", 3), ("Brier", "brier", 4),
                                       ("log loss", "log_loss", 4))
        ]  # fmt: skip
        signs = everywhere["models"][name]["difference"]["auc"]
        apart, right = both["disagree"]["n"], both["disagree"]["challenger_right"]
        figures.append(f"all bars AUC {_difference(signs, 3)}")
        figures.append(
            f"they disagree on {apart:,}, challenger right {100 * right:.0f} %"
            if apart
            else "they never disagree"
        )
        yield f"    {NAMES[name]:<16} {'; '.join(figures)}"


def _pair(both: Mapping[str, Any], key: str, places: int) -> str:
    values = [both[side][key] for side in ("champion", "challenger")]
    return " | ".join(_number(value, places) for value in values)


def _number(value: float | None, places: int) -> str:
    return "not known" if value is None else f"{value:.{places}f}"


def _difference(made: Mapping[str, Any], places: int) -> str:
    if made["value"] is None:
        return "not known"
    ends = ""
    if made["low"] is not None:
        ends = f" [{made['low']:+.{places}f}, {made['high']:+.{places}f}]"
    return f"{made['value']:+.{places}f}{ends}"


def differences(differs: Mapping[str, Any]) -> Iterator[str]:
    """One line a difference: champion's, then challenger's."""
    if not differs:
        yield "nothing that was recorded: settings, bars, features, code, libraries are the same"
    for section, changes in differs.items():
        for name, change in changes.items():
            if section == "features":
                gained, lost = (_names(change[way]) for way in ("gained", "lost"))
                yield f"features   {name}: gained {gained}; lost {lost}"
            else:
                before, after = ("-" if v is None else _short(v) for v in change)
                yield f"{section:<10} {name}: {before} -> {after}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
