"""What a service begins with: the models of each symbol, proved here, and who watches them.

A symbol whose models fail is named and gets its base signal; the others are not affected.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from macd.app.service import release
from macd.app.service.challenger import Challenger
from macd.app.service.health import Status, as_document
from macd.app.service.loop import Served
from macd.app.service.predictor import Predictor
from macd.app.service.release import Identity, Loaded
from macd.app.service.settings import Flags, Settings
from macd.host.store.age import bars_end
from macd.host.store.manifest import details_of


def served_of(
    identity: Identity, settings: Settings, flags: Flags, status: Status
) -> tuple[list[Served], str]:
    """A value for each symbol, and why the service is not well; "" when it is.

    `status` says of each how its golden predictions came out.
    """
    if not settings.symbols:
        loaded = release.load(identity, settings.tf, settings.symbol)
        status.golden(loaded.outcome)
        status.set(models=loaded.models)
        served = _served(identity, settings, flags, loaded)
        if served.predictor is not None:
            status.set(stacking=served.predictor.mode)
        return [served], served.why
    made, outcomes = [], {}
    for symbol, loaded in release.load_all(identity, settings.tf, settings.served):
        served = _served(identity, settings.of(symbol), flags, loaded)
        made.append(served)
        outcomes[symbol] = loaded.outcome
        mode = served.predictor.mode if served.predictor else "off"
        golden = as_document(loaded.outcome) if served.why else None
        wrong = release.faulty(loaded) or None
        status.symbol(symbol, ok=not served.why, golden=golden, models=wrong, stacking=mode)
    outcome = release.together(outcomes)
    status.golden(outcome)
    wrong = {one.symbol: one.why for one in made if one.why}
    status.set(models=wrong or {"all": "ok"}, stacking=_together(made))
    return made, "" if outcome.ok else f"golden predictions fail here: {outcome.detail}"


def challengers(served: Sequence[Served], live: str, flags: Flags, status: Status) -> None:
    """Give each its challenger, where the settings want one; several are loaded in turn."""
    turn = threading.Lock()
    for one in served:
        if one.settings.challenger:
            one.challenger = Challenger(
                one.settings,
                live,
                flags,
                on_change=_reporter(one, status, several=len(served) > 1),
                turn=turn,
            )


def _reporter(served: Served, status: Status, *, several: bool) -> Any:
    def report(state: Mapping[str, str | None]) -> None:
        if several:
            status.symbol(served.symbol, challenger=state or None)
        else:
            status.set(challenger=state)

    return report


def _served(identity: Identity, settings: Settings, flags: Flags, loaded: Loaded) -> Served:
    why = "" if loaded.outcome.ok else f"golden predictions fail here: {loaded.outcome.detail}"
    why = loaded.unknown or why
    predictor = None
    if loaded.scorer is not None:
        predictor = Predictor(loaded.scorer, flags, settings.tf, distrust=why)
    made = identity.manifest
    end = bars_end(details_of(made.details, settings.symbol), made.created)
    return Served(settings, predictor, why, end)


def _together(served: Sequence[Served]) -> str:
    """What stacking may do at all: what it may for every symbol, else off."""
    modes = {one.predictor.mode if one.predictor else "off" for one in served}
    return modes.pop() if len(modes) == 1 else "off"
