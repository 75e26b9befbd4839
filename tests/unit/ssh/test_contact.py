"""A lost link: what is tried again, how long, and what waiting does not mend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.errors import ContactLostError, MacdError, RefusedError
from macd.inventory import load
from macd.ssh import contact as module
from macd.ssh.contact import Contact

CUT = ContactLostError("cut")
BOOTING = MacdError("prod does not let deploy in")
CHANGED = RefusedError("THE HOST KEY OF prod HAS CHANGED")


class Link:
    """Hosts that fail to connect, or to act, as they are asked to; time passes by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *connections: MacdError | None) -> None:
        self.now, self.closed, self.said = 100.0, 0, list[str]()
        self._connections: Iterator[MacdError | None] = iter(connections)
        monkeypatch.setattr(module, "open_session", lambda *_: self)
        inventory = load("lab", root=Path(__file__).parents[3])
        self.contact = Contact(
            inventory.hosts["prod"],
            inventory,
            watcher=self,
            patience=10.0,
            longest_wait=4.0,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def ping(self) -> None:
        if (error := next(self._connections)) is not None:
            raise error

    def close(self) -> None:
        self.closed += 1

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        self.said.append(f"{self.now:g}: {error.what}, at most {gives_up_in:g}")

    def back(self) -> None:
        self.said.append("back")

    def use(self, *actions: MacdError | None) -> None:
        results = iter(actions)

        def act(_: Any) -> None:
            if (error := next(results)) is not None:
                raise error

        with self.contact:
            self.contact.use(act)


def test_a_cut_is_tried_again_at_growing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(monkeypatch, None, BOOTING, CUT, BOOTING, None)
    link.use(CUT, None)
    assert link.said == [
        "100: cut, at most 10",
        "101: prod does not let deploy in, at most 9",
        "103: cut, at most 7",
        "107: prod does not let deploy in, at most 3",
        "back",
    ]
    assert link.now == 110.0
    assert link.closed == 5, "each connection that was opened"


def test_patience_counts_from_the_last_success(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(monkeypatch, *[None] * 9)
    with pytest.raises(ContactLostError) as caught:
        link.use(*[CUT] * 9)  # it connects each time, and each time it dies
    assert caught.value.what == "LOST CONTACT with prod: unreachable for 0.167 minutes"
    assert link.now == 110.0


@pytest.mark.parametrize(
    ("connections", "actions", "ends"),
    [
        pytest.param([CUT], [], CUT, id="a host that was never reached"),
        pytest.param([None], [BOOTING], BOOTING, id="an answer"),
        pytest.param([None, CHANGED], [CUT], CHANGED, id="another host key"),
    ],
)
def test_what_waiting_does_not_mend(
    monkeypatch: pytest.MonkeyPatch, connections: list[Any], actions: list[Any], ends: MacdError
) -> None:
    link = Link(monkeypatch, *connections)
    with pytest.raises(MacdError) as caught:
        link.use(*actions)
    assert caught.value is ends
    assert link.now <= 101.0


def test_one_that_was_reached_before_is_tried_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = Link(monkeypatch, CUT, CHANGED, None)
    link.contact.reached, link.contact.for_good = True, ()
    link.use(None)
    assert link.said[-1] == "back"
