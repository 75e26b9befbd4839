"""An inventory as text, with a comment at every key that says how it is known. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from macd.host import untrusted
from macd.init.items import Item

_COLUMN = 60
_LONGEST_NOTE = 160
_TITLES = {
    ("hosts",): "How each host is reached: by ssh, its jump hosts before it.",
    ("app",): "The application: how it is trained, released and served.\n"
    "# inventory/own-app.example.yml explains every key.",
    ("app", "train"): "Commands in this order, run in a copy of the source on the training host.",
    ("app", "serve"): "What systemd runs, from a copy of the source that nothing writes to.",
    ("app", "signals"): "What it logs of its decisions: the gate and the guard read this.",
    ("app", "flag"): "The switch that lets the models decide: invoke enable-stacking turns it.",
    ("release",): "The keys that sign.",
}


def inventory(items: Iterable[Item], *, name: str) -> str:
    """inventory/NAME.yml."""
    head = [
        "# Written by invoke init. given: by you; found: seen so; guessed: from names; DECIDE: look"
        " here first.",
        f"# Change what you like, then: invoke host.list --inventory {name}",
        "# All keys of all sections: inventory/production.example.yml.",
    ]
    return "\n".join([*head, *_body(list(items))]) + "\n"


def _body(items: Sequence[Item]) -> Iterator[str]:
    opened: tuple[str, ...] = ()
    mark = ""
    for item in items:
        *parents, last = item.key
        above = tuple(parents)
        shared = _shared(opened, above)
        for depth in range(shared, len(above)):
            part = above[: depth + 1]
            mark = "" if _any_active(items, part) else "# "
            if depth == 0:
                yield ""
            if title := _TITLES.get(part):
                yield f"{'  ' * depth}# {title}"
            yield f"{mark}{'  ' * depth}{part[-1]}:"
        if not above and opened:
            yield ""
        opened = above
        yield _line(item, last, "  " * len(above), "" if item.active else "# ")


def _any_active(items: Sequence[Item], part: tuple[str, ...]) -> bool:
    return any(item.active and item.key[: len(part)] == part for item in items)


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _line(item: Item, name: str, indent: str, mark: str) -> str:
    line = f"{mark}{indent}{name}: {scalar(item.value)}"
    origin = "DECIDE" if item.origin == "decide" else item.origin
    note = ": ".join(part for part in (origin, untrusted.line(item.note, _LONGEST_NOTE)) if part)
    return f"{line:<{_COLUMN}}# {note}" if note and len(line) < _COLUMN else _with(line, note)


def _with(line: str, note: str) -> str:
    return f"{line}  # {note}" if note else line


def scalar(value: Any) -> str:
    """A value on one line of YAML."""
    made = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return made.removesuffix("\n").removesuffix("\n...")
