"""`serve.py --check`: would this release work on this machine? Asked before it is made live."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from macd.app.service import loaded
from macd.app.service.settings import Settings
from macd.errors import MacdError, UsageError

_NEEDED = ("loop", "health", "feed_replay", "feed_directory")


def check(directory: Path, root: Path) -> dict[str, Any]:
    """Import everything the service needs, load the release, run its golden predictions.

    root: the application's directory, whose settings say which feed is needed.
    """
    # What the loop imports is part of the question: a missing package must show before a switch.
    for name in _NEEDED:
        importlib.import_module(f"macd.app.service.{name}")
    lacking = _lacking_for_the_feed(root)
    if lacking:
        return {"ok": False, "detail": lacking}
    try:
        identity = loaded.identify(directory)
        tf = str(identity.manifest.details["tf"])
        found = loaded.load(identity, tf)
    except (MacdError, KeyError) as error:
        return {"ok": False, "detail": str(error)}
    diff = found.outcome.max_diff
    return {
        "ok": found.outcome.ok,
        "release": identity.id,
        "manifest_sha256": identity.sha256,
        "golden": {
            "ok": found.outcome.ok,
            "max_diff": diff if math.isfinite(diff) else None,
            "detail": found.outcome.detail,
        },
        "models": found.models,
        "detail": found.outcome.detail,
    }


def _lacking_for_the_feed(root: Path) -> str:
    """What the feed of these settings needs and this runtime has not; empty when all is there."""
    try:
        settings = Settings.read(root)
        if settings.feed.kind == "ccxt":
            importlib.import_module("ccxt")
    except UsageError:
        return ""  # they may come with the switch; the new process then says what is wrong
    except ImportError as error:
        return f"the feed of service.json needs ccxt, which is not in the release's lock: {error}"
    return ""
