"""`invoke status` and `invoke why`: what is live, how it is, and where it came from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed, select
from macd.cli.verb import LOOKED, emit, error_fields, harmless, safe, same, verb
from macd.errors import ExitCode, MacdError

if TYPE_CHECKING:
    from macd.deploy.state import HostState
    from macd.host.alerts.conditions import Alarm
    from macd.host.record import Record
    from macd.inventory import Host, Inventory


_OWN_LACKING = {
    "run": "none: it was released without a training",
    "trained on": "no host: it was released without a training",
    "metrics": "none",
    "criteria": "none",
}


@verb(interrupted=LOOKED)
def status(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show what is live, since when, process, health, flags, drift, rollback target."""
    from macd.deploy.desired import render
    from macd.deploy.drift import drift
    from macd.deploy.ending import ending
    from macd.deploy.state import observe

    inv, hosts = select(inventory, env, host)

    def look(host: Host) -> tuple[HostState, list[str], Mapping[str, Alarm], str]:
        state, now = observe(host, inv), datetime.now(UTC).timestamp()
        ends = ending(state, now, inv.alerts.expires_days)
        wanted = render(host, inv, state)
        return state, drift(state, wanted), ends, wanted.unconfined

    results = on_each(hosts, look)
    rows = [(name, *seen) for name, seen in results.done.items()]
    healthy = not results.failed and all(state.serves_well for _, state, *_ in rows)
    if json:
        all_of_them = {"healthy": healthy, "well": healthy}  # `well`: its name up to 0.1
        rows_shown = [_fields(*row) for row in rows]
        training = {"scheduled": _scheduled(inv)}
        emit({**all_of_them, "hosts": rows_shown, **training, **failed_fields(results.failed)})
    else:
        for name, state, drifted, ends, unconfined in rows:
            print(f"{name}  {state.app}")
            for label, text in _lines(state, drifted, ends, unconfined):
                print(f"  {label:<9} {text}")
        for name, when in _scheduled(inv).items():
            asks = f"invoke train.schedule --show{same(host=name, inventory=inventory)}"
            print(f"{name}  trains by itself: {when}; {asks}")
        print_failed(results.failed)
    serves = [None if state.serves_well else ExitCode.FAILED for _, state, *_ in rows]
    return exit_code(serves, results.failed)


def _scheduled(inventory: Inventory) -> dict[str, str]:
    """Training hosts that train by themselves, as set from here; they are not asked."""
    from macd.jobs.record import scheduled
    from macd.journal import Journal

    try:
        times = scheduled(Journal(inventory.state_dir / "journal.jsonl"))
    except MacdError:
        return {}  # a damaged journal is no reason not to show what is live
    return {safe(name): safe(when) for name, when in times.items()}


def _fields(
    name: str, state: HostState, drifted: list[str], ends: Mapping[str, Alarm], unconfined: str
) -> dict[str, Any]:
    from macd.deploy.lineage import since
    from macd.host.masking import masked

    shown = asdict(state)
    for secret in ("env", "allowed_signers", "live_files"):
        shown.pop(secret)
    shown["units"] = {name: text and masked(text) for name, text in state.units.items()}
    shown["service_settings"] = state.service_settings and masked(state.service_settings)
    flags = dict(state.health.get("flags", {}))
    ending = {at: one._asdict() for at, one in ends.items()}
    more = {"host": name, "drift": drifted, "ending": ending, "flags": flags, "since": since(state)}
    more["unconfined"] = unconfined
    old = {"well": state.serves_well, "rehearsal": shown["readiness"]}  # names up to 0.1
    return {**shown, **more, "healthy": state.serves_well, **old}


def _lines(
    state: HostState, drifted: list[str], ends: Mapping[str, Alarm], unconfined: str = ""
) -> Iterator[tuple[str, str]]:
    from macd.deploy.lineage import since

    if not state.exists:
        yield "live", "nothing; the host is not provisioned (invoke provision)"
        return
    committed = since(state)
    yield "live", f"{state.live or 'nothing'}{f', since {committed}' if committed else ''}"
    yield from _by_hand(state)
    if "own" in state.details:
        yield from _of_own(state)
    else:
        yield from _of_built_in(state)
    for label, text in (
        ("stacking", state.exposure or state.taken_back),
        ("pending", state.under_way),
        ("last", state.reverted),
        ("flag", state.flag_under_way),
        ("sandbox", unconfined or _unprotected(state)),
    ):
        if text:
            yield label, text
    if state.lock_holder:
        yield "lock", state.lock_holder
    for text in _alerts(state):
        yield "alerts", text
    for one in ends.values():
        yield "ends", f"✗ {one.text}; do: {one.hint}"
    yield "rollback", _rollback_target(state.rollback)
    for text in drifted or ["none"]:
        yield "drift", text


def _unprotected(state: HostState) -> str:
    from macd.host.systemd import namespaces, selinux

    if state.selinux:
        return f"✗ {state.selinux}; do: {selinux.REMEDY}"
    return f"✗ {state.no_namespaces}; do: {namespaces.REMEDY}" if state.no_namespaces else ""


def _by_hand(state: HostState) -> Iterator[tuple[str, str]]:
    if state.adopted:
        yield "by hand", f"{state.adopted}; the first deploy takes its place"
    for one in state.by_hand:
        who = f"pid {one['pid']} of {one['user']} in {one['cwd']}, kept by {one['by']}"
        yield "copy", f"{'' if one['apart'] else '✗ '}{one['command']} runs as well: {who}"


def _of_built_in(state: HostState) -> Iterator[tuple[str, str]]:
    for name, unit in state.health.get("units", {}).items():
        pid = f"pid {unit['pid']}, " if unit["pid"] else ""
        wrong = f"; ✗ {unit['wrong']}" if unit["wrong"] else ""
        restarts = f"{unit['restarts']} restarts, " if unit.get("restarts") else ""
        yield "instance", f"{name}: {pid}{restarts}{unit['active'] or 'unknown'}{wrong}"
    process = state.process
    pid = f"pid {process['pid']}, {process['restarts']} restarts, " if process.get("pid") else ""
    if not state.health.get("units"):
        yield "process", f"{pid}{process.get('active') or 'unknown'} ({process.get('sub') or '-'})"
    yield "health", _health(state)
    for text in _symbols(state.health.get("symbols")):
        yield "symbol", text
    if state.health.get("flags"):
        yield "flags", ", ".join(f"{k}={v}" for k, v in sorted(state.health["flags"].items()))


def _of_own(state: HostState) -> Iterator[tuple[str, str]]:
    """What a host knows of an application of the team's own, and what it can't."""
    from macd.deploy.lineage import own_flag
    from macd.host.alerts.conditions import lasting

    for name, unit in state.health.get("units", {}).items():
        pid = f"pid {unit['pid']}, for {lasting(unit['since'])}, " if unit["pid"] else ""
        ready = f"✗ {unit['wrong']}" if unit["wrong"] else "✓ from this release, and ready"
        yield "unit", f"{name}: {pid}{unit['active'] or 'unknown'}; {ready}"
    if state.serves_well:
        yield "health", "✓ ok, as its own probe says; it has no golden predictions to compare"
    else:
        yield "health", _health(state)
    yield "flags", own_flag(state)
    run = state.details.get("run") or "none: it was released without a training"
    yield "run", ", ".join([run, *_measured(state.details.get("metrics") or {})])


def _alerts(state: HostState) -> Iterator[str]:
    from macd.host.alerts.conditions import lasting

    seen = state.alerts
    if state.unwatched:
        yield f"✗ {state.unwatched}; invoke provision (unless alerts.every_minutes is 0)"
    for one in seen.get("open", ()):
        do = f"; do: {one['hint']}" if one["hint"] else ""
        yield f"✗ {one['name']}, since {one['since']}: {one['text']}{do}"
    if seen.get("unsent"):
        yield f"✗ a message could not be sent yet: {seen['sending'] or 'not tried yet'}"
    if not state.unwatched and not seen["open"]:
        looked = "not looked yet" if seen["age_s"] is None else f"{lasting(seen['age_s'])} ago"
        yield f"none; the last look: {looked}"
    yield from seen.get("left_out", ())


def _health(state: HostState) -> str:
    if state.serves_well:
        golden = state.health.get("golden", {})
        return f"✓ ok, golden predictions differ by at most {golden.get('max_diff')}"
    return f"✗ {state.unhealthy or state.health.get('unreachable') or 'not known'}"


def _symbols(symbols: Any) -> Iterator[str]:
    """A row for each symbol of a service that has several, those in trouble first."""
    if not isinstance(symbols, Mapping):
        return
    rows = [(name, said) for name, said in symbols.items() if isinstance(said, Mapping)]
    for name, said in sorted(rows, key=lambda row: (_is_well(row[1]), row[0])):
        stacking = f", stacking {said['stacking']}" if said.get("stacking") else ""
        wrong = "; its bars have stopped" if said.get("stopped") else ""
        golden = said.get("golden")
        why = said.get("error") or (golden.get("detail") if isinstance(golden, Mapping) else "")
        wrong += f"; {why}" if why else ""
        sign = "✓" if _is_well(said) else "✗"
        yield f"{sign} {name}: last bar {said.get('last_bar') or 'none yet'}{stacking}{wrong}"


def _is_well(said: Mapping[str, Any]) -> bool:
    return said.get("ok") is True and not said.get("stopped") and not said.get("error")


def _rollback_target(target: Mapping[str, Any]) -> str:
    if target.get("ready"):
        return f"ready: {target['release']}"
    return f"{target.get('release') or 'none'}: {target.get('why')}"


@verb(interrupted=LOOKED)
def why(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show why a release is live: run, data, criteria, gate, who deployed it, when."""
    from macd.deploy.lineage import judged, lineage
    from macd.deploy.state import observe

    inv, hosts = select(inventory, env, host)
    records, damage = _recorded(inv)
    results = on_each(hosts, lambda host: observe(host, inv))
    rows = results.done
    chains = {
        name: lineage(state, judged(records, name, state.live)) for name, state in rows.items()
    }
    if json:
        shown = [{"host": name, **chain} for name, chain in chains.items()]
        about = error_fields(damage) if damage else {}
        emit({"hosts": shown, **failed_fields(results.failed), **about})
    else:
        for name, state in rows.items():
            _print_chain(name, state, chains[name], env)
        sys.stdout.flush()
        print_failed(results.failed)
        if damage:
            print(f"✗ {harmless(damage)}", file=sys.stderr)
    codes = [None if state.live else ExitCode.FAILED for state in rows.values()]
    return exit_code([*codes, damage.exit_code if damage else None], results.failed)


def _recorded(inventory: Inventory) -> tuple[Sequence[Record], MacdError | None]:
    """The journal here, up to a damage, and what that is: only the gate report is read from it."""
    from macd.journal import Journal, JournalError

    try:
        return Journal(inventory.state_dir / "journal.jsonl").records(), None
    except JournalError as error:
        return error.intact, error
    except MacdError as error:
        return (), error


def _print_chain(name: str, state: HostState, chain: Mapping[str, Any], env: str) -> None:
    print(f"{name}  {state.app}")
    if not state.live:
        first = "deploy" if state.exists else "provision"
        print(f"  live          nothing\n  do: invoke {first} --env {env}")
        return
    for label, value in chain.items():
        for line in _as_lines(label, value, _OWN_LACKING if "own" in state.details else {}):
            print(f"  {label:<13} {line}")
            label = ""  # noqa: PLW2901 - said once, above the lines that go with it


def _as_lines(
    label: str, value: Any, lacking: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """The lines for people; `--json` has everything behind them.

    lacking: what is said of something that is not there, by label.
    """
    if value in (None, "", [], {}):
        plain = "none" if label in ("cross", "panel", "accepted", "gate") else "not recorded"
        return [lacking.get(label, plain)]
    if label == "metrics":
        families = {name: one for name, one in value.items() if isinstance(one, Mapping)}
        return [_figures(*family) for family in families.items()] or _measured(value)
    if label == "criteria":
        from macd.criteria import mark

        return [
            f"{mark(ok=bool(criterion['ok']), level=criterion.get('level'))} {criterion['title']}: "
            f"{criterion['note']}"
            for criterion in value
        ]
    if label == "audit":
        return ["passed" if value.get("ok") else "FAILED"]
    if isinstance(value, Mapping):
        return _of_mapping(label, value)
    return [", ".join(map(str, value)) if isinstance(value, list) else str(value)]


def _of_mapping(label: str, value: Mapping[str, Any]) -> list[str]:
    if label == "symbols":
        return [_of_symbol(name, each) for name, each in value.items()]
    if label == "code" and "changed" in value:
        return _code(value)
    return [", ".join(f"{k}={v}" for k, v in value.items())]


def _code(code: Mapping[str, Any]) -> list[str]:
    """Which source was released; the paths that differed from its commit below it."""
    commit = f"commit {code['commit'][:12]}" if code.get("commit") else "of no commit"
    if not code.get("dirty"):
        return [commit]
    return [f"{commit}, and changes that are not committed", *map(str, code.get("changed", []))]


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    """What the training of an own application measured."""
    return [f"{name} {'none' if n is None else format(n, 'g')}" for name, n in metrics.items()]


def _of_symbol(name: str, own: Mapping[str, Any]) -> str:
    from macd.heads import NAMES
    from macd.run_directory import auc_text

    figures, missed = own["figures"], ", ".join(one["name"] for one in own["missed"])
    said = "no figures"
    if figures:
        aucs = (f"{part} AUC {auc_text(figures[part])}" for part in ("val", "test"))
        said = "  ".join([f"{NAMES.get(own['decides'], own['decides'])} {own['head']}", *aucs])
    judged = f"criteria missed: {missed}" if missed else "criteria met"
    audit = "" if (own.get("audit") or {}).get("ok") else "; leak audit FAILED"
    return f"{name:<10} {said}; {judged}{audit}"


def _figures(family: str, by_head: Mapping[str, Any]) -> str:
    from macd.heads import in_order
    from macd.run_directory import auc_text

    measured = {head: figures["val"] for head, figures in by_head.items() if figures.get("val")}
    heads = [f"{head} {auc_text(measured[head])}" for head in in_order(measured)]
    return f"{family:<10} val AUC  {'  '.join(heads)}"
