"""What ends soon on a host, as `invoke status` and `invoke doctor` ask, beside the host's look."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

from macd.deploy.ending import ending
from macd.deploy.state import HostState

NOW = datetime(2026, 4, 20, tzinfo=UTC).timestamp()
DAY = 86400.0
STATE = HostState(
    app="/opt/macd-analysis",
    exists=True,
    python={},
    endpoint="",
    live="20260301T000100Z-0011aabb",
    details={"bars": {"last": "2026-01-01T00:00:00+00:00"}},
    expires=NOW + 20 * DAY,
    service_settings=json.dumps({"tf": "1h", "feed": {"kind": "ccxt"}}),
    accepts='{"identity": "release@macd"}',
    allowed_signers='release@macd namespaces="release-manifest@macd" ssh-ed25519 AAAA\n',
)


def texts(state: HostState, days: float = 7) -> dict[str, str]:
    alarms = ending(state, NOW, days)
    assert all(alarm.hint for alarm in alarms.values())
    return {name: alarm.text for name, alarm in alarms.items()}


def test_nothing_ends_soon() -> None:
    assert texts(STATE) == {}
    assert texts(replace(STATE, live=None, expires=None, details={})) == {}


def test_a_release_a_key_and_models_are_told_days_before() -> None:
    limited = json.dumps({"tf": "1h", "feed": {"kind": "ccxt"}, "max_age_days": 105})
    key = 'release@macd valid-before="20260425Z" ssh-ed25519 AAAA\n'
    changed = replace(STATE, expires=NOW + 6 * DAY, allowed_signers=key, service_settings=limited)
    alarms = texts(changed)
    assert "the live release expires in 6 days" in alarms["expires"]
    assert "can't be deployed again" in alarms["expires"]
    assert "the key for releases expires 2026-04-25" in alarms["key"]
    assert alarms["old"].startswith("the models' bars end 2026-01-01, 109 days ago")
    # What the host itself has reported is not said twice.
    reported = {"open": [{"name": "expires"}, {"name": "old"}]}
    assert set(texts(replace(changed, alerts=reported))) == {"key"}
    assert set(texts(changed, days=0)) == {"old"}


def test_files_of_the_host_that_hold_anything_do_no_harm() -> None:
    for text in ("", "[]", "{", '{"feed": 3}', '{"feed": {"kind": "x"}, "max_age_days": "9"}'):
        assert texts(replace(STATE, service_settings=text, accepts=text)) == {}
    assert texts(replace(STATE, live="strange")) == {}
