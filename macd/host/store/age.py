"""How old a release's models are: by the last bar of its training, not by when it was made.

A release made again of an old run is not younger. The service, the host's alarms and `invoke why`
ask here. Pure: the moment is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

GRACE_DAYS = 7.0  # from the warning until the models stop deciding
FRESH, OLD, TOO_OLD = "fresh", "old", "too old"


@dataclass(frozen=True)
class Age:
    """state: FRESH; OLD, which warns; TOO_OLD, when the models decide nothing any more. text: why,
    and what follows when; "" while fresh.
    """

    state: str = FRESH
    text: str = ""


def bars_end(details: Mapping[str, Any], created: datetime) -> datetime:
    """The last bar of a release's training (UTC); when it was made, where it doesn't say."""
    try:
        moment = datetime.fromisoformat(details["bars"]["last"])
    except (KeyError, TypeError, ValueError):
        return created
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def age_of(until: datetime, now: datetime, max_age_days: float) -> Age:
    """The age at `now` of models whose bars end at `until`. max_age_days: 0 sets no limit."""
    if not max_age_days or now - until <= timedelta(days=max_age_days):
        return Age()
    end = until + timedelta(days=max_age_days + GRACE_DAYS)
    ago = f"{(now - until).days} days ago; {max_age_days:g} are allowed"
    old = f"the models' bars end {until:%Y-%m-%d}, {ago}"
    if now <= end:
        return Age(OLD, f"{old}; from {end:%Y-%m-%d %H:%MZ} on they decide nothing")
    return Age(TOO_OLD, f"too old: {old}, and {GRACE_DAYS:g} more")
