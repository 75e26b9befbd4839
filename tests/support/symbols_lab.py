"""A project on the lab that serves several symbols: one process for all, or an instance each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macd.host.deploy import health
from macd.host.own import parse
from macd.inventory import load
from tests.support import several_symbols
from tests.support.lab_project import Project
from tests.support.several_symbols import SYMBOLS

INSTANCES = {"  socket: false ": "  instances: true "}


def provisioned(
    made: Project,
    tasks: str,
    edits: Mapping[str, str] | None = None,
    *,
    more: str = "",
    replays: Sequence[str] = SYMBOLS,
) -> Project:
    """The project with these tasks, serving SYMBOLS from a replay, its host provisioned.

    edits: of the inventory, old text -> new. more: at its end. replays: the symbols of the bars.
    """
    (made.root / "tasks.py").write_text(tasks)
    replace(
        made,
        {
            "  symbol: BTCUSD\n": f"  symbols: [{', '.join(SYMBOLS)}]\n",
            "data_dir: ../data/sample": "data_dir: ../bars",
            "speed: 2, start: 0.85}": "speed: 5, start: 0.85}",
            **(edits or {}),
        },
        more,
    )
    (made.root / "bars").mkdir()
    several_symbols.write_replay(made.root / "bars", replays)
    bench = Project(made.root, made.lab, load("lab", root=made.root))
    bench.invoke("provision", "--yes")
    env = made.app / ".env"
    env.write_text(env.read_text() + "ML_STACKING_MIN_SAMPLES=0\n")
    return bench


def replace(bench: Project, edits: Mapping[str, str], more: str = "") -> None:
    """Change texts of the inventory that must be there, and write `more` at its end."""
    book = bench.root / "inventory/lab.yml"
    text = book.read_text()
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    book.write_text(text + more)


def answers(bench: Project) -> dict[str, dict[str, Any]]:
    """What each instance says, by symbol; {} of one that does not answer."""
    said = {}
    for one in parse((bench.app / "service.json").read_text()).instances.values():
        try:
            said[one.symbol] = health.ask(one.endpoint)
        except (health.ProbeError, OSError):
            said[one.symbol] = {}
    return said
