"""When a confirmation counts: both sides know the same, to 50 ms. The clock here is a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from macd.deploy.follow import keep_confirming
from macd.errors import ContactLostError
from macd.host.deploy import activation, ledger
from macd.host.deploy.activation import WAITING, ActivationFailedError
from macd.host.deploy.ledger import Pending
from macd.host.layout import Layout

CONFIRM_S = 3.0
SOAKED_AT = 100.0  # seconds since the host booted


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(str(tmp_path))
    made.make()
    return made


def pending(layout: Layout, state: str = WAITING) -> Pending:
    made = Pending(
        number=7, kind="deploy", to="r2", origin="r1", token="t0ken", who="anna", started=0.0,
        state=state, unit="m.service", scope="user", endpoint="unix:x", serial=2,
        manifest_sha256="", confirm_s=CONFIRM_S, waiting_since=SOAKED_AT,
    )  # fmt: skip
    ledger.write_pending(layout, made)
    return made


class Host:
    """The host's real waiting, on a clock that its own sleeping moves; `events` fall on the way."""

    def __init__(self, layout: Layout, events: dict[float, Callable[[], None]]) -> None:
        self.now = 0.0
        self._layout = layout
        self._events = events

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        for at in sorted(at for at in self._events if at <= until):
            self.now = max(self.now, at)
            self._events.pop(at)()
        self.now = until

    def waits(self) -> str:
        waiting = pending(self._layout)
        try:
            activation.wait_for_confirmation(
                self._layout, waiting, lambda: None, clock=lambda: self.now, sleep=self.sleep
            )
        except ActivationFailedError:  # the release is not at fault
            # What falls behind the end falls before the host has put everything back.
            self.sleep(CONFIRM_S)
            return "reverted"
        return "committed"


@pytest.mark.parametrize(
    ("at", "ends"),
    [(0.0, "committed"), (CONFIRM_S - 0.05, "committed"), (CONFIRM_S + 0.05, "reverted")],
)
def test_the_word_counts_exactly_as_long_as_the_host_waits(
    layout: Layout, at: float, ends: str
) -> None:
    answers: list[bool] = []

    def confirm() -> None:
        answers.append(activation.confirm(layout, 7, "t0ken", SOAKED_AT + at))

    assert Host(layout, {at: confirm}).waits() == ends
    assert answers == [ends == "committed"]


@pytest.mark.parametrize(
    ("outage_s", "ends"),
    [(CONFIRM_S - 0.05, "committed"), (CONFIRM_S + 0.05, "reverted")],
)
def test_the_operator_tries_to_the_end_and_knows_what_the_host_knows(
    layout: Layout, outage_s: float, ends: str
) -> None:
    """Its line comes back a moment before, or after, the host gives up."""
    answers: list[bool] = []
    tries = 0

    def attempt() -> bool:
        nonlocal tries
        tries += 1
        if host.now < outage_s:
            raise ContactLostError("the line is cut")
        answers.append(activation.confirm(layout, 7, "t0ken", SOAKED_AT + host.now))
        return answers[-1]

    def operator() -> None:
        """One turn of the operator's own loop, its waiting given to the host's clock."""
        keep_confirming(attempt, wait=lambda _: True, failed=lambda _: None)

    turns = [0.0, 1.0, 2.0, CONFIRM_S - 0.05, CONFIRM_S + 0.05]
    host = Host(layout, dict.fromkeys(turns, operator))
    assert host.waits() == ends
    assert answers[0] is (ends == "committed")
    assert tries >= 4


def test_the_operator_has_no_deadline_of_its_own() -> None:
    """It goes on through failures and early refusals, until all is said or all is over."""
    answers = iter([ContactLostError("cut"), False, ContactLostError("cut"), True])
    waited: list[float] = []
    failures: list[str] = []

    def attempt() -> bool:
        answer = next(answers)
        if isinstance(answer, bool):
            return answer
        raise answer

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    keep_confirming(attempt, wait, failures.append)
    assert (len(waited), failures) == (3, ["cut", "cut"])
    keep_confirming(lambda: False, lambda _: True, failures.append)  # over: no second try


@pytest.mark.parametrize("state", ["verified", "restarting", "soaking", "reverting"])
def test_no_word_counts_before_the_soak_ended_or_after_all(layout: Layout, state: str) -> None:
    waiting = pending(layout, state)
    assert not activation.confirm(layout, 7, "t0ken", SOAKED_AT + 1)
    assert not ledger.is_confirmed(layout, waiting)


@pytest.mark.parametrize(("opened", "counts"), [(-0.05, False), (0.05, True)])
def test_a_connection_older_than_the_end_of_the_soak_proves_nothing(
    layout: Layout, opened: float, counts: bool
) -> None:
    pending(layout)
    assert activation.confirm(layout, 7, "t0ken", SOAKED_AT + opened) is counts


def test_only_the_one_that_began_it_may_give_the_word(layout: Layout) -> None:
    pending(layout)
    assert not activation.confirm(layout, 7, "other", None)
    assert not activation.confirm(layout, 6, "t0ken", None)
    assert activation.confirm(layout, 7, "t0ken", None)  # where nobody can tell how old it is
    assert activation.confirm(layout, 7, "t0ken", None)  # again: its answer was lost


def test_this_process_began_a_moment_ago() -> None:
    now, began = activation.uptime(), activation.process_started()
    assert now is not None
    assert began is not None
    assert 0 < now - began < 86400


def test_a_document_of_an_older_version_is_still_waited_for(layout: Layout) -> None:
    ledger.write_pending(layout, dataclasses.replace(pending(layout), waiting_since=None))
    assert activation.confirm(layout, 7, "t0ken", 1.0)
