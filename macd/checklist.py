"""One item of a list of checks: what was checked, how it came out, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Item:
    """One thing that was checked. `cause` and `remedy` are empty when it is healthy.

    done: False where it could not be checked here, which `detail` says; that is no failure.
    """

    name: str
    ok: bool
    detail: str
    cause: str = ""
    remedy: str = ""
    done: bool = True

    def line(self, *, remedy: bool = True) -> str:
        """One line for people, with the guide's tick; when it failed, its cause and remedy too.

        remedy: False where the remedy is shown elsewhere.
        """
        mark = "✗" if not self.ok else "✓" if self.done else "–"
        text = f"{mark} {self.name}: {self.detail}"
        if self.ok:
            return text
        text += f"\n    likely cause: {self.cause}"
        return f"{text}\n    remedy: {self.remedy}" if remedy else text


def of_several(by_symbol: Mapping[str, Sequence[Item]]) -> list[Item]:
    """One item a symbol that counts its checks, and each that failed or could not be made."""
    return [item for name, items in by_symbol.items() for item in _of_symbol(name, items)]


def _of_symbol(symbol: str, items: Sequence[Item]) -> Iterator[Item]:
    good = [item for item in items if item.ok and item.done]
    if good:
        yield Item(symbol, True, f"{len(good)} of {len(items)} checks passed")
    for item in items:
        if not (item.ok and item.done):
            yield replace(item, name=f"{symbol}, {item.name}")
