"""Find out on one host what a diagnosis needs: its state, its own check, its logs of late."""

from __future__ import annotations

from datetime import UTC, datetime

from macd.deploy import desired, state
from macd.deploy.drift import drift
from macd.errors import MacdError
from macd.gate import report, run
from macd.gate.case import Case, Feed
from macd.host.judge.continuity import step_ms
from macd.inventory import Host, Inventory
from macd.ssh.session import open_session

_MODULES = (*state.MODULES, "deploy.diagnose")


def examine(host: Host, inventory: Inventory) -> Case:
    """Everything `doctor.diagnose` asks for but for trainings, which are about no one host.

    Changes nothing on the host, keeps no report. Raises MacdError when it can't be reached.
    """
    with open_session(host, inventory, modules=_MODULES) as session:
        question = state.ask(session, host, inventory)
        asked = session.submit(
            "checkup",
            app=host.app_dir,
            unit=f"{host.unit}.service",
            scope=host.scope,
        )
        found = state.observed(question)
        checkup = asked.result()
        clock = session.clock
    judged, why = None, ""
    if found.live is not None:
        try:
            judged = run.of_host(inventory, host, report.rule_of(inventory), inventory.gate.days)
        except MacdError as error:
            why = f"its logs can't be analysed: {error.what}"
    return Case(
        found=found,
        checkup=checkup,
        drift=drift(found, desired.render(host, inventory, found)),
        clock_offset=clock.offset,
        clock_error=clock.error,
        feed=feed_of(inventory),
        now=datetime.now(UTC).timestamp() + clock.offset,
        report=judged.document if judged else None,
        no_report=why,
    )


def feed_of(inventory: Inventory) -> Feed:
    """How often bars should come."""
    feed = inventory.service.feed
    if feed.kind == "replay":
        return Feed(feed.kind, 1 / feed.speed if feed.speed else 0.0, live=False)
    return Feed(feed.kind, step_ms(inventory.train.tf) / 1000, live=True)
