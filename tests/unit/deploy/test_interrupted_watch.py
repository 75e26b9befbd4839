"""Ctrl-C while an activation is watched: one message with exit code 5."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from macd.deploy import follow
from macd.errors import MacdError
from macd.inventory import load
from macd.remote.session import Session

BEGUN = follow.Begun("prod", 7, "t0ken", "20260301T000000Z-0123abcd", None)


class SaysWaiting:
    """A session whose host says that it has soaked: the word on which the confirming is begun."""

    def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {
            "live": None,
            "events": [{"state": "awaiting confirmation"}],
            "over": False,
            "runner": True,
        }


def test_ctrl_c_while_the_confirming_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    inventory = load("lab", root=Path(__file__).parents[3])
    monkeypatch.setattr(threading.Thread, "start", begin)
    with pytest.raises(MacdError) as caught:
        session = cast("Session", SaysWaiting())
        follow.watch(session, inventory.hosts["prod"], inventory, BEGUN, lambda *_: None)
    assert caught.value.exit_code == 5
    assert "activation 7" in caught.value.what
    assert "invoke deploy --attach" in caught.value.hint
