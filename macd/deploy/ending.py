"""What comes to its end on a host: the live release, its models, the keys. Asked from here, too.

The host's own look reports it (macd/host/alerts); but it may be switched off, or not yet installed.
Pure: the moment is an argument.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from macd.deploy.state import HostState
from macd.host.alerts import conditions
from macd.host.alerts.conditions import UNKNOWN, Alarm, Facts, Terms
from macd.host.store.age import bars_end

_ASKED = {"expires": conditions.expires, "key": conditions.key, "old": conditions.old}


def ending(state: HostState, now: float, days: float) -> dict[str, Alarm]:
    """By name, what ends within so many days or has; without what the host reports by itself.

    now: epoch seconds.
    """
    reported = {str(alert.get("name")) for alert in state.alerts.get("open", ())}
    facts = Facts(
        now=now,
        live=state.live,
        expires=state.expires,
        bars_end=_bars_end(state),
        service=_object(state.service_settings),
        identity=str(_object(state.accepts).get("identity", "")),
        allowed_signers=state.allowed_signers or "",
    )
    answers = {name: asked(facts, Terms("", expires_days=days)) for name, asked in _ASKED.items()}
    return {
        name: answer
        for name, answer in answers.items()
        if answer is not None and answer is not UNKNOWN and name not in reported
    }


def _bars_end(state: HostState) -> datetime | None:
    """A release's name begins with when it was made."""
    try:
        made = datetime.strptime(str(state.live)[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return bars_end(state.details, made)


def _object(text: str | None) -> Mapping[str, Any]:
    try:
        document = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
