"""How the texts on a host would change, as diffs whose secrets are covered. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from macd.deploy.desired import SHADOW, Desired
from macd.deploy.state import HostState
from macd.host import envfile
from macd.host.masking import hidden, masked_lines


@dataclass(frozen=True)
class Diff:
    """How one text on the host would change; secrets are covered. `by`: deploy or provision."""

    name: str
    text: str
    by: str = "deploy"


def differing(found: HostState, wanted: Desired, *, new: bool) -> list[Diff]:
    """What a deploy changes beside the release, and what it leaves to provision.

    Args:
        new: another release goes live, and starts in shadow.
    """
    pairs = {name: (found.units.get(name), text) for name, text in wanted.units.items()}
    pairs["service.json"] = (found.service_settings, wanted.service_settings)
    told = [
        Diff(name, unified(before or "", after or "", name), _by(name, wanted))
        for name, (before, after) in pairs.items()
        if before != after
    ]
    if found.exists:
        told += _flags(found.env or "", wanted, new=new)
        signers = wanted.allowed_signers
        if signers not in (None, found.allowed_signers):
            name = "state/allowed_signers"
            text = unified(found.allowed_signers or "", signers or "", name)
            told.append(Diff(name, text, "provision"))
    return told


def _by(name: str, wanted: Desired) -> str:
    return "deploy" if name in wanted.switched else "provision"


def _flags(text: str, wanted: Desired, *, new: bool) -> Iterator[Diff]:
    """Of .env only the lines that change: what else it holds is nobody's business here."""
    try:
        present = envfile.parse(text)
        kept = SHADOW.keys() & present.keys()  # provision sets them where they are not set yet
        missing = {k: v for k, v in wanted.flags.items() if present.get(k) != v and k not in kept}
        later = envfile.with_values(text, missing)
        shadow = envfile.with_values(text, SHADOW)
    except envfile.EnvFileError:
        return  # the drift says which line
    if new and any(present.get(key) != value for key, value in SHADOW.items()):
        yield Diff(".env", _of_variables(text, shadow))
    if missing:
        told = _of_variables(text, later)
        unseen = hidden(present, missing, envfile.FLAGS)
        yield Diff(".env", with_hidden(told, unseen), "provision")


def _of_variables(before: str, after: str) -> str:
    """Which variables change; a value is shown of our own flags alone."""
    return unified(envfile.shown(before), envfile.shown(after), ".env", context=0)


def with_hidden(diff: str, keys: Sequence[str]) -> str:
    """A diff, and below it which variables change whose old and new values look the same there."""
    told = f"values of {', '.join(keys)} change (hidden)" if keys else ""
    return "\n".join(part for part in (diff, told) if part)


def unified(before: str, after: str, name: str, *, context: int = 3) -> str:
    """A unified diff without the two lines of file names' times.

    What differs is told from the real texts, so that a secret that changes is seen to change.
    """
    covers: dict[str, str] = {}
    for text in (before, after):
        for line, cover in zip(text.splitlines(), masked_lines(text), strict=True):
            if line not in covers or cover != line:
                covers[line] = cover
    names = (f"{name} (host)", f"{name} (here)")
    both = (before.splitlines(), after.splitlines())
    lines = difflib.unified_diff(*both, *names, lineterm="", n=context)
    return "\n".join(line[:1] + covers.get(line[1:], line[1:]) for line in lines)
