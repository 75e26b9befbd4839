"""The host carries a deploy on by itself: commits what proves itself, reverts all else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from macd.errors import MacdError
from macd.journal import Journal
from macd.ssh.failures import RemoteError
from tests.support.local_host import ACCEPTS, Place, place
from tests.support.openssh import eventually


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    with place() as made:
        yield made


def previous(host: Place) -> str | None:
    """The release that the service may compare itself with."""
    link = host.app / "previous"
    if not link.is_symlink():
        return None
    assert link.readlink().parent.name == "releases"
    return link.readlink().name


def test_first_second_and_rollback(host: Place) -> None:
    first, second = host.release(1), host.release(2)
    assert host.deploy(first) == "committed"
    assert host.live == first.id
    assert previous(host) is None
    facts = host.facts()
    assert facts["health"]["release"] == first.id
    assert facts["health"]["flags"]["ML_ENABLE_STACKING"] == "0"
    assert host.deploy(second) == "committed"
    assert previous(host) == first.id
    ready = {"release": first.id, "ready": True, "why": "", "runtime": ""}
    assert host.facts()["rollback"] == ready
    assert host.rollback() == "committed"
    assert host.live == first.id
    assert previous(host) is None, "what was rolled back from is no rollback target"
    assert host.facts()["health"]["release"] == first.id
    kinds = [record.kind for record in Journal(host.app / "state/journal.jsonl").records()]
    assert kinds.count("committed") == 3


@pytest.mark.parametrize(
    "variant",
    ["exits", "hangs", "wrong golden", "old id", "check fails", "crashes soon", "never ready"],
)
def test_a_bad_release_is_reverted_and_the_old_one_serves(host: Place, variant: str) -> None:
    before, beside = host.live, previous(host)
    assert before is not None
    serial = 10 + len(host.state("bad.json", []))
    bad = host.release(serial, variant)
    # Only what never answers takes as long as it may.
    health_s = 8.0 if variant in ("hangs", "never ready") else 90.0
    assert host.deploy(bad, soak_s=30.0, health_s=health_s) == "reverted"
    assert (host.live, previous(host)) == (before, beside)
    eventually(lambda: (host.facts()["health"] or {}).get("release") == before)
    assert host.state("bad.json")[-1]["release"] == bad.id
    assert host.state("pending.json") is None
    assert host.facts()["rollback"]["release"] != bad.id


def test_nobody_confirms(host: Place) -> None:
    before = host.live
    release = host.release(30)
    assert host.deploy(release, confirm=False, confirm_s=1.0) == "reverted"
    assert host.live == before
    assert release.id not in [entry["release"] for entry in host.state("bad.json")]


def test_a_word_before_the_soak_ended_or_over_an_older_connection_proves_nothing(
    host: Place,
) -> None:
    """What breaks SSH late in the soak would not be found out by it."""
    release = host.release(31)
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        host.stage(session, release)
        number = host.begin(session, "deploy", release.id, soak_s=3.0, confirm_s=120.0)["number"]
    word = {"app": str(host.app), "number": number, "token": "t0ken"}
    seen: list[str] = []
    with host.session() as opened_early:
        while "awaiting confirmation" not in seen:
            told = opened_early.call(
                "follow", app=str(host.app), number=number, seen=len(seen), wait=5.0
            )
            seen += [event["state"] for event in told["events"]]
            if "soaking" in seen:  # and once more when the soak has ended
                assert opened_early.call("confirm", **word)["confirmed"] is False
        assert host.state("confirmed.json") is None
        with host.session() as fresh:
            assert fresh.call("confirm", **word)["confirmed"] is True
    assert host.finish(number, confirm=False)[-1]["state"] == "committed"


def test_an_older_release_is_refused(host: Place) -> None:
    with pytest.raises(RemoteError, match="older release"):
        host.deploy(host.release(5))


def test_a_staging_that_failed_lets_nothing_go_live_though_the_release_is_there(
    host: Place,
) -> None:
    """Both are asked for in one breath; what was there from an earlier deploy must not serve it."""
    first, second = host.release(40), host.release(41)
    assert [host.deploy(first), host.deploy(second)] == ["committed"] * 2
    assert host.rollback(first.id) == "committed"
    before = host.facts()["health"]["pid"]
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        host.stage(session, second)
        with pytest.raises(MacdError, match="importing the packages failed"):
            session.call(
                "stage",
                app=str(host.app),
                manifest=second.raw,
                signature=second.signature,
                accepts=ACCEPTS,
                imports=["no_such_module"],
                scope="user",
                unit_text=host.unit_text(),
            )
        with pytest.raises(MacdError, match="was not staged"):
            host.begin(session, "deploy", second.id)
    assert (host.live, host.facts()["health"]["pid"]) == (first.id, before)
