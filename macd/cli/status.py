"""`invoke status` and `invoke why`: what is live, how it is, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed, select
from macd.cli.verb import emit, verb
from macd.errors import ExitCode

if TYPE_CHECKING:
    from macd.deploy.state import HostState
    from macd.host.record import Record
    from macd.inventory import Host


@verb()
def status(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show what is live, since when, process, health, flags, drift, rollback target."""
    from macd.deploy.desired import render
    from macd.deploy.drift import drift
    from macd.deploy.state import observe

    inv, hosts = select(inventory, env, host)

    def look(host: Host) -> tuple[HostState, list[str]]:
        state = observe(host, inv)
        return state, drift(state, render(host, inv, state))

    results = on_each(hosts, look)
    rows = [(name, *seen) for name, seen in results.done.items()]
    healthy = not results.failed and all(state.serves_well for _, state, _ in rows)
    if json:
        all_of_them = {"healthy": healthy, "well": healthy}  # `well`: its name up to 0.1
        rows_shown = [_fields(*row) for row in rows]
        emit({**all_of_them, "hosts": rows_shown, **failed_fields(results.failed)})
    else:
        for name, state, drifted in rows:
            print(f"{name}  {state.app}")
            for label, text in _lines(state, drifted):
                print(f"  {label:<9} {text}")
        print_failed(results.failed)
    serves = [None if state.serves_well else ExitCode.FAILED for _, state, _ in rows]
    return exit_code(serves, results.failed)


def _fields(name: str, state: HostState, drifted: list[str]) -> dict[str, Any]:
    from macd.host.masking import masked

    shown = asdict(state)
    for secret in ("env", "allowed_signers", "live_files"):
        shown.pop(secret)
    shown["units"] = {name: text and masked(text) for name, text in state.units.items()}
    shown["service_settings"] = state.service_settings and masked(state.service_settings)
    flags = dict(state.health.get("flags", {}))
    more = {"host": name, "drift": drifted, "flags": flags, "since": _since(state)}
    old = {"well": state.serves_well, "rehearsal": shown["readiness"]}  # names up to 0.1
    return {**shown, **more, "healthy": state.serves_well, **old}


def _since(state: HostState) -> str | None:
    times = [entry["at"] for entry in state.history if entry["release"] == state.live]
    return _time(times[-1]) if times else None


def _time(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%SZ}"


def _lines(state: HostState, drifted: list[str]) -> Iterator[tuple[str, str]]:
    if not state.exists:
        yield "live", "nothing; the host is not provisioned (invoke provision)"
        return
    yield "live", f"{state.live or 'nothing'}{f', since {_since(state)}' if _since(state) else ''}"
    process = state.process
    pid = f"pid {process['pid']}, {process['restarts']} restarts, " if process.get("pid") else ""
    yield "process", f"{pid}{process.get('active') or 'unknown'} ({process.get('sub') or '-'})"
    yield "health", _health(state)
    if state.health.get("flags"):
        yield "flags", ", ".join(f"{k}={v}" for k, v in sorted(state.health["flags"].items()))
    if state.pending:
        at = state.pending
        alive = "at work" if at["runner"] else "its process died; the next deploy ends it"
        text = f"activation {at['number']}, {at['kind']} of {at['to']}: {at['state']}"
        yield "pending", f"{text}; {alive}"
    if state.last and state.last["state"] == "reverted":
        yield "last", _reverted(state.last)
    if state.flag_change:
        yield "flag", _flag_change(state.flag_change, locked=bool(state.lock))
    if state.held:
        yield "lock", state.held
    yield "rollback", _rollback_target(state.rollback)
    for text in drifted or ["none"]:
        yield "drift", text


def _health(state: HostState) -> str:
    if state.serves_well:
        golden = state.health.get("golden", {})
        return f"✓ ok, golden predictions differ by at most {golden.get('max_diff')}"
    if "unreachable" in state.health:
        return f"✗ {state.health['unreachable']}"
    health = state.health
    return f"✗ {health.get('status')}: release {health.get('release')}, {health.get('last_error')}"


def _flag_change(change: Mapping[str, Any], *, locked: bool) -> str:
    text = (
        f"stacking from {change['was']} to {change['wanted']}, started {_time(change['started'])}"
    )
    text += f" by {change['who']}: {change['state']}"
    end = "the next deploy, enable-stacking or disable-stacking ends it"
    return f"{text}; at work" if locked else f"{text}; it was INTERRUPTED, {end}"


def _reverted(last: Mapping[str, Any]) -> str:
    text = f"activation {last['number']} of {last.get('release')} was reverted"
    text += f", {_time(last['at'])}: {' '.join(str(last.get('reason')).split())[:200]}"
    healthy = last.get("healthy", last.get("well"))
    return text if healthy is not False else f"{text}; {last.get('serving')}"


def _rollback_target(target: Mapping[str, Any]) -> str:
    if target.get("ready"):
        return f"ready: {target['release']}"
    return f"{target.get('release') or 'none'}: {target.get('why')}"


@verb()
def why(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode:
    """Show why a release is live: run, data, criteria, gate, who deployed it, when."""
    from macd.deploy.state import observe
    from macd.journal import Journal

    inv, hosts = select(inventory, env, host)
    records = Journal(inv.state_dir / "journal.jsonl").records()
    results = on_each(hosts, lambda host: observe(host, inv))
    rows = results.done
    chains = {name: lineage(state, _judged(records, name, state)) for name, state in rows.items()}
    if json:
        shown = [{"host": name, **chain} for name, chain in chains.items()]
        emit({"hosts": shown, **failed_fields(results.failed)})
    else:
        for name, state in rows.items():
            _print_chain(name, state, chains[name], env)
        print_failed(results.failed)
    lives = [None if state.live else ExitCode.FAILED for state in rows.values()]
    return exit_code(lives, results.failed)


def _print_chain(name: str, state: HostState, chain: Mapping[str, Any], env: str) -> None:
    print(f"{name}  {state.app}")
    if not state.live:
        first = "deploy" if state.exists else "provision"
        print(f"  live          nothing\n  do: invoke {first} --env {env}")
        return
    for label, value in chain.items():
        for line in _as_lines(label, value):
            print(f"  {label:<13} {line}")
            label = ""  # noqa: PLW2901 - said once, above the lines that go with it


def lineage(state: HostState, gate: str | None) -> dict[str, Any]:
    """The chain from what serves back to the data it was learnt from, as recorded on the host.

    gate: the verdict about it, which only the operator's journal knows.
    """
    entries = [entry for entry in state.history if entry["release"] == state.live]
    last = entries[-1] if entries else {}
    details = state.details
    chain = {
        "live": state.live,
        "brought by": last.get("who"),
        "at": _time(last["at"]) if last else None,
        "how": last.get("kind"),
        "serial": last.get("serial"),
        "gate": gate,
    }
    chain |= {"run": details.get("run"), "trained on": details.get("host")}
    names = ("symbol", "tf", "cross", "panel", "profile", "data_digest", "code", "best_head")
    chain |= {name: details.get(name) for name in names}
    chain |= {name: details.get(name) for name in ("metrics", "criteria", "accepted", "audit")}
    chain["flags"] = state.health.get("flags")
    return chain


def _judged(records: Sequence[Record], host: str, state: HostState) -> str | None:
    """The newest gate report made here about this host's live release."""
    for record in reversed(records):
        fields = record.fields
        about = (fields.get("host"), fields.get("release"))
        if record.kind == "gate.judged" and about == (host, state.live):
            return (
                f"{fields.get('verdict')} on {record.time:%Y-%m-%d %H:%M}Z, {fields.get('report')}"
            )
    return None


def _as_lines(label: str, value: Any) -> list[str]:
    """The lines for people; `--json` has everything behind them."""
    if value in (None, "", [], {}):
        return ["none" if label in ("cross", "panel", "accepted", "gate") else "not recorded"]
    if label == "metrics":
        return [_figures(family, by_head) for family, by_head in value.items()]
    if label == "criteria":
        marks = {True: "✓", False: "✗"}
        return [
            f"{marks[bool(criterion['ok'])]} {criterion['title']}: {criterion['note']}"
            for criterion in value
        ]
    if label == "audit":
        return ["passed" if value.get("ok") else "FAILED"]
    if isinstance(value, Mapping):
        return [", ".join(f"{k}={v}" for k, v in value.items())]
    return [", ".join(map(str, value)) if isinstance(value, list) else str(value)]


def _figures(family: str, by_head: Mapping[str, Any]) -> str:
    from macd.heads import in_order
    from macd.run_directory import auc_text

    measured = {head: figures["val"] for head, figures in by_head.items() if figures.get("val")}
    heads = [f"{head} {auc_text(measured[head])}" for head in in_order(measured)]
    return f"{family:<10} val AUC  {'  '.join(heads)}"
