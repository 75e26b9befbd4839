"""What enabling with a weight, or in steps, is expected to do, before the host is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macd.deploy.state import HostState
from macd.errors import RefusedError
from macd.gate import flag
from macd.gate.flag import Flip
from macd.inventory import load
from macd.ssh import archive


def flip(
    requested: int | None = None,
    *,
    steps: tuple[int, ...] = (),
    now: int = 0,
    covered: int | None = None,
    there: tuple[int, ...] = (),
    evidence: Any = None,
    wanted: str = "1",
    program: str = "",
    says: int | None = 0,
) -> Flip:
    inventory = load("lab")
    guard = inventory.guard.model_copy(update={"steps": steps})
    value = "1" if now else "0"
    weight = {"next": now, "running": now, "steps": list(there)}
    weight["covered"] = now if covered is None else covered
    state = HostState(
        app="/opt/macd-analysis",
        exists=True,
        python={"executable": "/usr/bin/python3", "version": "3.11"},
        endpoint="unix:/h.sock",
        live="r",
        process={"pid": 42},
        stacking={"next": value, "running": value, "weight": weight, "guard": "watches"},
        health={} if says is None else {"release": "r", "stacking_weight": says},
        agent_archive=program or archive.digest(),
    )
    known = inventory.model_copy(update={"guard": guard})
    return Flip(None, known.host("prod"), known, wanted, state, evidence, requested)  # type: ignore[arg-type]


class Report:
    path = Path("report.json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("would", 100, [])),
        ({"now": 100}, ("already", 100, [])),
        ({"requested": 25}, ("would", 25, [])),
        ({"requested": 25, "steps": (10, 50)}, ("would", 25, [])),
        ({"steps": (25, 50, 100)}, ("would", 25, [50, 100])),
        ({"steps": (25, 50, 100), "now": 50, "there": (100,)}, ("already", 50, [100])),
        ({"steps": (25, 50, 100), "now": 50}, ("already", 50, [])),  # nothing raises it there
        ({"steps": (25, 50, 100), "now": 50, "evidence": Report}, ("would", 50, [100])),
        ({"steps": (25, 50, 100), "now": 30, "evidence": Report}, ("would", 50, [100])),
        ({"requested": 25, "now": 50, "there": (100,)}, ("would", 25, [])),
        ({"wanted": "0", "now": 50, "steps": (25, 50)}, ("would", 0, [])),
        ({"wanted": "0"}, ("already", 0, [])),
        ({"now": 75, "covered": 10}, ("would", 10, [])),  # 75 was set by hand
        ({"now": 75, "covered": 10, "steps": (10, 50)}, ("would", 10, [50])),
    ],
)
def test_what_is_expected(given: dict[str, Any], expected: tuple[str, int, list[int]]) -> None:
    outcome = flip(**given).expected
    assert (outcome.result, outcome.weight, list(outcome.steps)) == expected


def test_a_guard_of_another_version_raises_nothing_and_is_refused() -> None:
    with pytest.raises(RefusedError, match="can't raise stacking in steps") as refused:
        flag._refuse_old_guard(flip(steps=(25, 100), program="0" * 64))
    assert "invoke provision, or one weight: --weight 25" in refused.value.hint
    flag._refuse_old_guard(flip(steps=(25, 100)))
    flag._refuse_old_guard(flip(25, steps=(25, 100), program="0" * 64))
    flag._refuse_old_guard(flip(steps=(100,), program="0" * 64))  # nothing is left to raise


def test_a_service_that_names_no_weight_is_refused_before_the_host_is_asked() -> None:
    for given in ({"requested": 25}, {"steps": (25, 100)}):
        with pytest.raises(RefusedError, match="can't decide with 25 %") as refused:
            flag._refuse_unknown_weight(flip(**given, says=None))  # type: ignore[arg-type]
        assert "--weight 100" in refused.value.hint
    flag._refuse_unknown_weight(flip(25))
    flag._refuse_unknown_weight(flip(says=None))  # all of it needs no weight
