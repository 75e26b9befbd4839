"""What may go live and what stays: replays, retention, rollback's targets, the lock."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pytest

from macd.errors import MacdError
from macd.host.store.manifest import parse, release_id, render
from macd.release.signing import sign
from tests.support.kills.strace import await_stop
from tests.support.kills.traced_host import TracedHost, over, traced_host
from tests.support.local_host import Place, Signed, place

GOOD = {serial: "good" for serial in range(1, 9)}


@pytest.fixture(scope="module")
def made() -> Iterator[TracedHost]:
    with traced_host({**GOOD, 20: "bad", 21: "bad", 22: "bad", 23: "good"}) as one:
        one.save("empty")
        assert [one.deploy(1), one.deploy(2)] == ["committed"] * 2
        one.save("two")
        yield one


@pytest.fixture
def host(made: TracedHost) -> TracedHost:
    made.restore("two")
    return made


def serials(host: TracedHost) -> set[int]:
    here = {p.name for p in (host.app / "releases").iterdir()}
    assert len(here) == len({s for s, one in host.releases.items() if one.id in here})
    return {serial for serial, one in host.releases.items() if one.id in here}


def roll_back(host: TracedHost) -> str:
    asked = host.step("rollback", keep=0)
    if "failed" in asked:
        return str(asked["failed"])
    host.step("confirm", number=int(asked["said"]))
    return str(host.step("run")["said"])


def test_good_releases_stay_and_failed_ones_push_none_out(host: TracedHost) -> None:
    assert [host.deploy(20), host.deploy(21)] == ["reverted"] * 2
    assert (host.live, serials(host)) == (2, {1, 2, 21})  # one failed release, to be studied
    assert host.deploy(22) == "reverted"
    assert (host.live, serials(host)) == (2, {1, 2, 22})
    assert host.deploy(23) == "committed"
    assert serials(host) == {2, 23, 22}
    host.check_settled()
    host.check_tidy()
    assert roll_back(host) == "committed"
    assert host.live == 2
    shelved = {p.name for p in (host.app / "blobs/sha256").rglob("*") if p.is_file()}
    linked = [
        p for p in (host.app / "releases").rglob("*") if p.is_file() and p.stat().st_nlink > 1
    ]
    assert len(shelved) == len({p.stat().st_ino for p in linked})  # no blob that nothing needs


def test_keep_counts_beside_the_live_release_and_the_one_before(host: TracedHost) -> None:
    assert host.deploy(3, keep=1) == "committed"
    assert serials(host) == {1, 2, 3}
    assert host.deploy(4, keep=1) == "committed"
    assert serials(host) == {2, 3, 4}


def test_an_edited_journal_stops_no_rollback(host: TracedHost) -> None:
    journal = host.app / "state/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-4] + b"xy}\n")
    assert (roll_back(host), host.live) == ("committed", 1)
    [aside] = journal.parent.glob("journal.jsonl.damaged-*")
    assert aside.read_bytes().endswith(b"xy}\n")


def test_uploads_given_up_a_day_ago_go_and_fresh_ones_wait_to_be_taken_up(host: TracedHost) -> None:
    partials = host.app / "blobs" / ".partial"
    partials.mkdir(exist_ok=True)
    old, fresh = (partials / f"{letter * 64}.0123456789ab" for letter in "ab")
    for path, age_h in ((old, 25), (fresh, 23)):
        path.write_bytes(b"half of a model")
        then = time.time() - age_h * 3600
        os.utime(path, (then, then))
    assert host.deploy(3) == "committed"
    assert list(partials.iterdir()) == [fresh]


def test_rollback_goes_back_through_what_was_good(host: TracedHost) -> None:
    for serial in (3, 4):
        assert host.deploy(serial) == "committed"
    assert host.deploy(20) == "reverted"
    assert (roll_back(host), host.live) == ("committed", 3)
    # keep is 0, so 2 has gone; 4 was rolled back from and 20 failed: neither is a way back.
    assert "is not on this host" in roll_back(host)
    assert host.live == 3
    host.check_settled()


def test_a_release_that_was_live_and_then_failed_is_no_target(host: TracedHost) -> None:
    bad = [{"release": host.releases[1].id, "reason": "x", "activation": 9, "at": 0}]
    (host.app / "state/bad.json").write_text(json.dumps(bad))
    assert "nothing to roll back to" in roll_back(host)
    assert host.live == 2


def test_older_expired_and_other_hosts_releases_are_refused(host: TracedHost) -> None:
    assert host.deploy(3) == "committed"
    assert "older release" in host.send(2)["failed"]
    assert "older release" in host.send(1)["failed"]
    for serial, fields, why in (
        (5, {"expires": datetime(2026, 4, 1, tzinfo=UTC)}, "expired"),
        (6, {"env": "staging"}, "not for this host"),
        (7, {"app": "other"}, "not for this host"),
    ):
        _resign(host, serial, fields)
        assert why in host.send(serial)["failed"]
    assert host.live == 3
    host.check_settled()


def test_a_current_that_is_a_real_directory_is_left_alone(host: TracedHost) -> None:
    (host.app / "current").unlink()
    (host.app / "current").mkdir()
    (host.app / "current" / "by-hand").write_text("precious")
    for told in (host.send(3)["failed"], roll_back(host), host.step("look")["failed"]):
        assert "is not a symbolic link" in told
    assert (host.app / "current" / "by-hand").read_text() == "precious"


def test_a_damaged_runtime_is_built_anew(host: TracedHost) -> None:
    runtime = next((host.app / "runtimes").iterdir())
    (runtime / "bin/python").unlink()
    assert host.deploy(3) == "committed"
    assert (runtime / "bin/python").exists()
    host.check_settled()


def test_flags_that_are_no_utf8_come_back_as_they_were(host: TracedHost) -> None:
    raw = b"NAME=caf\xe9\r\nML_ENABLE_STACKING=0\n"
    (host.app / ".env").write_bytes(raw)
    assert "can't be understood" in host.send(20)["failed"]
    assert (host.app / ".env").read_bytes() == raw


def _resign(host: TracedHost, serial: int, fields: Mapping[str, object]) -> None:
    folder = host.top / "offers" / str(serial)
    raw = render(dataclasses.replace(parse(host.releases[serial].raw), **fields))  # type: ignore[arg-type]
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.json.sig").write_bytes(sign(raw, key=host.key))
    host.releases[serial] = Signed(release_id(raw), raw, b"", host.releases[serial].files)


@pytest.fixture(scope="module")
def agents() -> Iterator[Place]:
    with place() as one:
        yield one


def test_of_two_deploys_at_once_one_wins_and_the_other_is_told(made: TracedHost) -> None:
    """Each stages, activates and confirms a release of its own; both begin at one moment."""
    names = {3: "anna", 4: "ben"}
    rivals = dict(zip(names, (made, made.rival()), strict=True))
    winners = []
    try:
        for trial in range(20):
            made.restore("two")
            rivals[4].generation = made.generation
            pids = {
                serial: one.begin(
                    "deploy", held=True, keep=2, who=names[serial], **made.offered(serial)
                )
                for serial, one in rivals.items()
            }
            for pid in pids.values():
                await_stop(pid)
            for pid in list(pids.values())[:: 1 if trial % 2 else -1]:
                os.kill(pid, signal.SIGCONT)
            told = {serial: one.ended() for serial, one in rivals.items()}
            [winner] = [serial for serial, said in told.items() if said.get("said") == "committed"]
            [loser] = set(told) - {winner}
            assert f"{names[winner]} has held the lock for" in told[loser]["failed"]
            assert "another deploy is at work on this host" in told[loser]["failed"]
            assert made.live == winner
            assert not (made.app / "releases" / made.releases[loser].id).exists()
            made.check_settled()
            made.check_tidy()
            winners.append(winner)
    finally:
        over(rivals[4].steps)
    print(f"20/20 trials, one winner each: {Counter(names[w] for w in winners)}")


def test_a_killed_holder_frees_the_lock(agents: Place) -> None:
    words = {"app": str(agents.app), "who": "anna", "doing": "deploy"}
    with agents.session() as holder, agents.session() as other:
        pid = holder.call("ping")["pid"]
        holder.call("lock", **words)
        with pytest.raises(MacdError, match="another deploy"):
            other.call("lock", **{**words, "who": "ben"})
        os.kill(pid, signal.SIGKILL)
        other.call("lock", **{**words, "who": "ben"})
