"""`invoke status` and `invoke why`: what is live, how it is, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import away_fields, exit_code, on_each, print_away
from macd.cli.verb import ENV_HOST, INVENTORY, JSON, emit, verb
from macd.errors import ExitCode

if TYPE_CHECKING:
    from macd.deploy.state import HostState
    from macd.host.record import Record
    from macd.inventory import Host

_COMMON = ENV_HOST | INVENTORY | JSON


@verb(name="status", help=_COMMON)
def status(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show what is live, since when, process, health, flags, drift, rollback target."""
    from macd.deploy.desired import render
    from macd.deploy.drift import drift
    from macd.deploy.fleet import hosts_of
    from macd.deploy.state import observe
    from macd.inventory import load

    inv = load(inventory)

    def look(one: Host) -> tuple[HostState, list[str]]:
        found = observe(one, inv)
        return found, drift(found, render(one, inv, found))

    results = on_each(list(hosts_of(inv, env, host)), look)
    rows = [(name, *seen) for name, seen in results.done.items()]
    well = not results.failed and all(found.serves_well for _, found, _ in rows)
    if json:
        away = away_fields(results.failed)
        emit({"well": well, "hosts": [_fields(*row) for row in rows], "away": away})
    else:
        for name, found, drifted in rows:
            print(f"{name}  {found.app}")
            for label, text in _lines(found, drifted):
                print(f"  {label:<9} {text}")
        print_away(results.failed)
    serves = [None if found.serves_well else ExitCode.FAILED for _, found, _ in rows]
    return exit_code(serves, results.failed)


def _fields(name: str, found: HostState, drifted: list[str]) -> dict[str, Any]:
    from macd.host.masking import masked

    shown = asdict(found)
    for secret in ("env", "allowed_signers", "live_files"):
        shown.pop(secret)
    shown["units"] = {name: text and masked(text) for name, text in found.units.items()}
    shown["service_settings"] = found.service_settings and masked(found.service_settings)
    flags = dict(found.health.get("flags", {}))
    more = {"host": name, "drift": drifted, "flags": flags, "since": _since(found)}
    return {**shown, **more, "well": found.serves_well}


def _since(found: HostState) -> str | None:
    times = [entry["at"] for entry in found.history if entry["release"] == found.live]
    return _time(times[-1]) if times else None


def _time(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%SZ}"


def _lines(found: HostState, drifted: list[str]) -> Iterator[tuple[str, str]]:
    if not found.exists:
        yield "live", "nothing; the host is not provisioned (invoke provision)"
        return
    yield "live", f"{found.live or 'nothing'}{f', since {_since(found)}' if _since(found) else ''}"
    process = found.process
    pid = f"pid {process['pid']}, {process['restarts']} restarts, " if process.get("pid") else ""
    yield "process", f"{pid}{process.get('active') or 'unknown'} ({process.get('sub') or '-'})"
    yield "health", _health(found)
    if found.health.get("flags"):
        yield "flags", ", ".join(f"{k}={v}" for k, v in sorted(found.health["flags"].items()))
    if found.pending:
        at = found.pending
        alive = "at work" if at["runner"] else "its process died; the next deploy ends it"
        told = f"activation {at['number']}, {at['kind']} of {at['to']}: {at['state']}"
        yield "pending", f"{told}; {alive}"
    if found.last and found.last["state"] == "reverted":
        yield "last", _reverted(found.last)
    if found.flag_change:
        yield "flag", _flag_change(found.flag_change, held=bool(found.lock))
    if found.held:
        yield "lock", found.held
    yield "rollback", _way_back(found.rollback)
    for text in drifted or ["none"]:
        yield "drift", text


def _health(found: HostState) -> str:
    if found.serves_well:
        golden = found.health.get("golden", {})
        return f"✓ ok, golden predictions differ by at most {golden.get('max_diff')}"
    if "unreachable" in found.health:
        return f"✗ {found.health['unreachable']}"
    told = found.health
    return f"✗ {told.get('status')}: release {told.get('release')}, {told.get('last_error')}"


def _flag_change(change: Mapping[str, Any], *, held: bool) -> str:
    told = f"stacking from {change['was']} to {change['wanted']}, begun {_time(change['started'])}"
    told += f" by {change['who']}: {change['state']}"
    end = "the next deploy, enable-stacking or disable-stacking ends it"
    return f"{told}; at work" if held else f"{told}; it was INTERRUPTED, {end}"


def _reverted(last: Mapping[str, Any]) -> str:
    told = f"activation {last['number']} of {last.get('release')} was reverted"
    told += f", {_time(last['at'])}: {' '.join(str(last.get('reason')).split())[:200]}"
    return told if last.get("well") is not False else f"{told}; {last.get('serving')}"


def _way_back(target: Mapping[str, Any]) -> str:
    if target.get("ready"):
        return f"ready: {target['release']}"
    return f"{target.get('release') or 'none'}: {target.get('why')}"


@verb(name="why", help=_COMMON)
def why(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show why a release is live: run, data, criteria, gate, who deployed it, when."""
    from macd.deploy.fleet import hosts_of
    from macd.deploy.state import observe
    from macd.inventory import load
    from macd.journal import Journal

    inv = load(inventory)
    records = Journal(inv.state_dir / "journal.jsonl").records()
    results = on_each(list(hosts_of(inv, env, host)), lambda one: observe(one, inv))
    rows = results.done
    chains = {name: lineage(found, _judged(records, name, found)) for name, found in rows.items()}
    if json:
        hosts = [{"host": name, **chain} for name, chain in chains.items()]
        emit({"hosts": hosts, "away": away_fields(results.failed)})
    else:
        for name, found in rows.items():
            _print_chain(name, found, chains[name], env)
        print_away(results.failed)
    lives = [None if found.live else ExitCode.FAILED for found in rows.values()]
    return exit_code(lives, results.failed)


def _print_chain(name: str, found: HostState, chain: Mapping[str, Any], env: str) -> None:
    print(f"{name}  {found.app}")
    if not found.live:
        first = "deploy" if found.exists else "provision"
        print(f"  live          nothing\n  do: invoke {first} --env {env}")
        return
    for label, value in chain.items():
        for line in _told(label, value):
            print(f"  {label:<13} {line}")
            label = ""  # noqa: PLW2901 - said once, above the lines that go with it


def lineage(found: HostState, gate: str | None) -> dict[str, Any]:
    """The chain from what serves back to the data it was learnt from, as recorded on the host.

    gate: the verdict about it, which only the operator's journal knows.
    """
    entries = [entry for entry in found.history if entry["release"] == found.live]
    last = entries[-1] if entries else {}
    details = found.details
    told = {
        "live": found.live,
        "brought by": last.get("who"),
        "at": _time(last["at"]) if last else None,
        "how": last.get("kind"),
        "serial": last.get("serial"),
        "gate": gate,
    }
    told |= {"run": details.get("run"), "trained on": details.get("host")}
    names = ("symbol", "tf", "cross", "profile", "data_digest", "code", "best_head")
    told |= {name: details.get(name) for name in names}
    told |= {name: details.get(name) for name in ("metrics", "criteria", "accepted", "audit")}
    told["flags"] = found.health.get("flags")
    return told


def _judged(records: Sequence[Record], host: str, found: HostState) -> str | None:
    """The newest gate report made here about this host's live release."""
    for record in reversed(records):
        told = record.fields
        about = (told.get("host"), told.get("release"))
        if record.kind == "gate.judged" and about == (host, found.live):
            return f"{told.get('verdict')} on {record.time:%Y-%m-%d %H:%M}Z, {told.get('report')}"
    return None


def _told(label: str, value: Any) -> list[str]:
    """The lines for people; `--json` has everything behind them."""
    if value in (None, "", [], {}):
        return ["none" if label in ("cross", "accepted", "gate") else "not recorded"]
    if label == "metrics":
        return [_figures(family, by_head) for family, by_head in value.items()]
    if label == "criteria":
        marks = {True: "✓", False: "✗"}
        return [f"{marks[bool(one['ok'])]} {one['title']}: {one['note']}" for one in value]
    if label == "audit":
        return ["passed" if value.get("ok") else "FAILED"]
    if isinstance(value, Mapping):
        return [", ".join(f"{k}={v}" for k, v in value.items())]
    return [", ".join(map(str, value)) if isinstance(value, list) else str(value)]


def _figures(family: str, by_head: Mapping[str, Any]) -> str:
    from macd.heads import in_order
    from macd.release.card import auc

    measured = {head: one["val"] for head, one in by_head.items() if one.get("val")}
    heads = [f"{head} {auc(measured[head])}" for head in in_order(measured)]
    return f"{family:<10} val AUC  {'  '.join(heads)}"
