"""What needs a person now, and the command to type: collected from what others judge. Pure.

No rule stands here: the findings are the doctor's, the host's open alerts among them; the rest is
what `invoke status` prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from macd.dashboard.look import Look
from macd.errors import MacdError

_HARMLESS = "harmless"


@dataclass(frozen=True)
class Need:
    """text: what is wrong. do: what helps, "" where nobody knows. mood: bad, or warn.

    options: what the commands in `do` need to mean this host alone, "" where they do.
    """

    host: str
    text: str
    do: str
    mood: str = "bad"
    options: str = ""


def of_host(name: str, options: str, seen: Look | None, failure: MacdError | None) -> list[Need]:
    """Of one host. options: those a command needs to mean this host (` --host prod-2`)."""
    if failure is not None:
        return [Need(name, f"it does not answer: {failure.what}", failure.hint or _doctor(options))]
    return list(_of_look(name, options, seen)) if seen is not None else []


def _of_look(name: str, options: str, seen: Look) -> Iterator[Need]:
    state = seen.state
    for finding in seen.findings:
        add = options if "invoke " in finding.remedy else ""
        yield Need(name, f"{finding.name}: {finding.evidence}", finding.remedy, options=add)
    if state.pending and not state.pending.get("runner"):
        yield Need(name, state.under_way, f"invoke deploy --attach{options}")
    if state.flag_under_way and not state.lock:
        yield Need(name, state.flag_under_way, f"invoke disable-stacking{options}")
    guard = [r for r in seen.records if r.kind in ("guard.judged", "guard.unjudged")]
    if state.exposure and guard and guard[-1].kind == "guard.unjudged":
        words = f"stacking decides, its guard could not judge: {guard[-1].fields.get('why')}"
        yield Need(name, words, f"invoke monitor{options}")
    if state.reverted:
        yield Need(name, state.reverted, _history(seen), "warn")
    differences = [text for text in seen.drift if _HARMLESS not in text]
    if differences and not seen.findings:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        yield Need(name, f"drift: {differences[0]}{more}", f"invoke status{options}", "warn")
    if seen.damage:
        words = f"its journal is damaged: {seen.damage}"
        yield Need(name, words, _history(seen), "warn")


def _history(seen: Look) -> str:
    return f"invoke history --env {seen.env} --host {seen.host}"


def _doctor(options: str) -> str:
    return f"invoke doctor{options}"
