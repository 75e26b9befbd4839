"""The guard on a pretended host, with the operator gone: it lets good be, and takes bad back.

It runs as on a host without timers: the program that provision puts there, in its own loop.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError, RefusedError
from macd.host import envfile
from macd.host.flag import guard_config
from tests.support.local_host import UNIT, Place
from tests.support.stacking_host import (
    LOG,
    LOOK,
    RULE,
    deployed_place,
    end_guard,
    flags_now,
    flip,
    kinds,
    listening,
    looked,
    message_on,
    on_a_full_disk,
    pid,
    release,
    report,
    request,
    status,
    until,
    write,
)
from tests.support.sweeps import at_points, sweep

TERMS = {"every_s": 0.4, "for_s": 3600.0, "rule": RULE}


SHARE = {"mean": 0.009, "spread": 0.0075}


BLOCKS = {"count": 98, "features": 82, "outside": SHARE, "worst": SHARE}


DETAILS: dict[str, Any] = {
    "symbol": "BTCUSD",
    "drift": {"block": 168, "assets": {"BTCUSD": BLOCKS}},
}


@pytest.fixture(scope="module")
def deployed() -> Iterator[Place]:
    """Its release is live; kept as it is then."""
    with deployed_place(**DETAILS) as made:
        (made.app / "data/live" / LOG).write_text('{"seq": 1}\n')
        made.save()
        yield made


@pytest.fixture
def host(deployed: Place) -> Place:
    deployed.restore()
    return deployed


@pytest.fixture(scope="module")
def stacking(deployed: Place) -> Place:
    """Stacking is live there too, and nothing looks until a test does; kept as it is then."""
    deployed.restore()
    enabled_and_unguarded(deployed)
    deployed.save("stacking")
    return deployed


@pytest.fixture
def bad(stacking: Place) -> Place:
    stacking.restore("stacking")
    write(stacking, 90, ml_error="tft: broken")
    return stacking


@pytest.fixture
def good(stacking: Place) -> Place:
    stacking.restore("stacking")
    write(stacking, 60)
    return stacking


def test_good_stays_bad_is_taken_back_and_old_evidence_opens_nothing(host: Place) -> None:
    evidence = report(host)
    assert flip(host, "1", evidence, guard=TERMS)["outcome"] == "set"
    time.sleep(0.5)
    write(host, 60, ml_features_outside=41, ml_feature_worst="rsi_14")
    # A look may come while the lines are being written, and then counts only those.
    told = until(host, lambda told: [r["report"]["bars"] for r in told["reports"]][-1:] == [60])
    assert told["reports"][-1]["report"]["rule"]["rule"] == "sequential"
    drift = told["reports"][-1]["report"]["drift"]
    assert (drift["outcome"], drift["bars"], drift["feature"]) == ("drift", 60, "rsi_14")
    assert told["order"]["state"] == "watching"
    assert flags_now(host) == ("1", "1")

    write(host, 90, first_seq=61, ml_error="tft: broken")
    told = until(host, lambda told: told["order"]["state"] not in ("watching", "failing"))
    assert told["order"]["state"] == "failed"
    assert "ML coverage" in told["order"]["reason"]
    assert told["reports"][-1]["report"]["verdict"] == "FAIL"
    assert flags_now(host) == ("0", "0")
    assert kinds(host)[-2:] == ["flag.set", "guard.failed"]
    until(host, lambda told: not told["loop"])

    with pytest.raises(RefusedError, match="older than the guard's"):
        flip(host, "1", evidence, guard=TERMS)
    assert flip(host, "1", report(host), guard=TERMS)["outcome"] == "set"
    assert flip(host, "0")["outcome"] == "set"
    told = until(host, lambda told: told["order"]["state"] != "watching")
    assert told["order"]["state"] == "ended"


def test_the_watch_ends_and_stacking_stays(host: Place) -> None:
    told = flip(host, "1", report(host), guard={**TERMS, "for_s": 0.6})
    assert told["outcome"] == "set"
    found = until(host, lambda told: told["order"]["state"] != "watching")
    assert found["order"]["state"] == "over"
    assert "INCONCLUSIVE" in found["order"]["reason"]  # nothing was written, and it says so
    assert flags_now(host) == ("1", "1")
    until(host, lambda told: not told["loop"])


def test_a_deploy_at_work_is_not_disturbed(host: Place) -> None:
    with host.session() as session:
        assert flip(host, "1", report(host), guard={**TERMS, "every_s": 0.2})["outcome"] == "set"
        session.call("lock", app=str(host.app), who="ben", doing="deploy")
        time.sleep(0.3)
        write(host, 90, ml_error="tft: broken")
        time.sleep(1.0)
        assert flags_now(host) == ("1", "1")
    until(host, lambda told: told["order"]["state"] == "failed")
    assert flags_now(host) == ("0", "0")


def test_an_activation_whose_client_left_is_not_disturbed(host: Place) -> None:
    first, second = host.live, release(host, 2)
    assert flip(host, "1", report(host), guard={**TERMS, "every_s": 0.2})["outcome"] == "set"
    with host.session() as session:
        session.call("lock", app=str(host.app), who="ben", doing="deploy")
        host.stage(session, second)
        number = host.begin(session, "deploy", second.id, confirm_s=1.5)["number"]
    states = [event["state"] for event in host.finish(number, confirm=False)]
    assert "switched" in states and states[-1] == "reverted"  # nobody confirmed
    assert host.live == first
    assert flags_now(host) == ("1", "1")
    told = status(host)
    assert (told["order"]["state"], told["loop"]) == ("watching", True)


def test_an_old_report_opens_nothing_after_a_newer_watch_either(host: Place) -> None:
    old = report(host)
    assert flip(host, "1", old, guard=TERMS)["outcome"] == "set"
    write(host, 90, ml_error="tft: broken")
    until(host, lambda told: told["order"]["state"] == "failed" and not told["loop"])
    assert flip(host, "1", report(host), guard=TERMS)["outcome"] == "set"
    assert flip(host, "0")["outcome"] == "set"
    until(host, lambda told: told["order"]["state"] == "ended" and not told["loop"])
    with pytest.raises(RefusedError, match="older than the guard's") as refused:
        flip(host, "1", old, guard=TERMS)
    assert "ML coverage" in refused.value.why
    assert flags_now(host) == ("0", "0")


def test_a_killed_guard_is_named_dead(host: Place) -> None:
    assert flip(host, "1", report(host), guard={**TERMS, "every_s": 3600.0})["outcome"] == "set"
    told = until(host, lambda told: bool(told["loop"]))
    assert not told["dead"]
    holder = json.loads((host.app / "state/guard.lock").read_text())
    order_file = host.app / "state/guard.json"
    order = json.loads(order_file.read_text())
    order_file.write_text(json.dumps({**order, "since": order["since"] - 60}))
    assert not status(host)["dead"]
    os.kill(holder["pid"], signal.SIGKILL)
    told = until(host, lambda told: not told["loop"])
    assert told["dead"]
    assert told["order"]["state"] == "watching"
    assert flip(host, "0")["outcome"] == "set"


def enabled_and_unguarded(host: Place) -> None:
    told = flip(host, "1", report(host), guard={**TERMS, "every_s": 3600.0})
    assert told["outcome"] == "set"
    until(host, lambda told: bool(told["loop"]))
    end_guard(host)


def bad_and_unguarded(host: Place) -> None:
    """Stacking is live and bad, and nothing looks until the test does."""
    enabled_and_unguarded(host)
    write(host, 90, ml_error="tft: broken")


@at_points([1, 4, 6, 9, 39], range(1, 40))
def test_a_guard_killed_while_it_takes_back_forgets_nothing(
    host: Place, points: Sequence[int]
) -> None:
    states = []
    with listening(200) as (url, came):
        (host.app / "state/notify.json").write_text(json.dumps({"url": url}))
        for n in points:
            old = report(host)
            bad_and_unguarded(host)
            came.clear()
            how = looked(host, n)
            states.append(host.state("guard.json")["state"])
            if states[-1] != "watching":
                with pytest.raises(RefusedError, match="older than the guard's"):
                    flip(host, "1", old)
            assert looked(host) == ("off" if states[-1] == "failed" else "failed")
            told = status(host)
            assert (told["order"]["state"], told["order"]["untold"]) == ("failed", False)
            assert "ML coverage" in told["order"]["reason"]
            assert flags_now(host) == ("0", "0")
            assert {one["event"] for one in came} == {"guard.failed"}, f"killed before change {n}"
            (host.app / "data/live" / f"trades_{datetime.now(UTC):%Y%m%d}.jsonl").unlink()
            if how != "killed":
                break
    assert sorted(set(states)) == ["failed", "failing", "watching"]
    assert states.count("failing") > 1


STRANGE = {
    "a proxy": b"https_proxy=http://proxy.example:3128\n",
    "line ends of Windows": b"A=1\r\nB=2\r\n",
    "a password, quotes, export": b"P='h!x'\nNAME=\"two words\"\nexport X=1\nURL=a?b=c&d\n",
    "an open quote": b'A="x\n',
    "the flag twice": b"ML_ENABLE_STACKING=1\n",
    "a comment that goes on": b"# c \\\nB=2\n",
}


@pytest.mark.parametrize("name", sweep(STRANGE, "line ends of Windows", "an open quote"))
def test_whatever_stands_in_the_flags_file_the_guard_takes_back(bad: Place, name: str) -> None:
    env = (bad.app / ".env").read_bytes()
    (bad.app / ".env").write_bytes(env + STRANGE[name])
    assert looked(bad) == "failed"
    assert set(envfile.values_of((bad.app / ".env").read_bytes(), "ML_ENABLE_STACKING")) == {"0"}
    now = (bad.app / ".env").read_bytes()
    assert now == (env + STRANGE[name]).replace(b"STACKING=1", b"STACKING=0")
    environ = Path(f"/proc/{pid(bad)}/environ").read_bytes().split(b"\0")
    assert b"ML_ENABLE_STACKING=0" in environ


def test_what_sets_the_flag_beside_env_is_told_and_taken_back_when_it_is_gone(bad: Place) -> None:
    unit = bad.top / "home/.config/systemd/user" / UNIT
    text = unit.read_text()
    (bad.top / "other.env").write_text("ML_ENABLE_STACKING=1\n")
    reload = [str(bad.top / "bin/systemctl"), "--user", "daemon-reload"]
    unit.write_text(text.replace(f"{bad.app}/.env", f"{bad.top}/other.env"))
    subprocess.run(reload, check=True)
    before = pid(bad)
    with listening(200) as (url, came):
        (bad.app / "state/notify.json").write_text(json.dumps({"url": url}))
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, str(bad.app / "bin/macd-host.pyz"), "guard", "--app", bad.app],
                env=bad.environment,
                check=False,
            )
            assert done.returncode == 1  # systemd looks again soon
    assert [one["event"] for one in came] == ["guard.failing"]  # once
    assert "FAIL, but stacking could not be disabled" in came[0]["text"]
    assert "something beside .env sets it" in came[0]["text"]
    assert pid(bad) == before  # no restart every half minute that changes nothing
    assert flags_now(bad) == ("0", "1")
    with pytest.raises(MacdError, match="something beside") as raised:
        flip(bad, "0")
    assert f"{bad.top}/other.env sets ML_ENABLE_STACKING=1" in raised.value.why
    assert status(bad)["order"]["state"] == "failing"
    unit.write_text(text)
    subprocess.run(reload, check=True)
    assert looked(bad) == "failed"
    assert flags_now(bad) == ("0", "0")


def taken_back(host: Place, url: str) -> str:
    """Let the guard take stacking back with `url` set; what the host's journal says of telling."""
    (host.app / "state/notify.json").write_text(json.dumps({"url": url}))
    assert flip(host, "1", report(host), guard=TERMS)["outcome"] == "set"
    write(host, 90, ml_error="tft: broken")
    until(host, lambda told: told["order"]["state"] == "failed" and not told["loop"])
    assert flags_now(host) == ("0", "0")
    text = (host.app / "state/journal.jsonl").read_text()
    assert "t0psecret" not in text + (host.app / "state/guard.log").read_text()
    last = json.loads(text.splitlines()[-1])
    assert last["kind"] == "guard.notified"
    return str(last["fields"]["outcome"])


def test_the_host_itself_tells_with_the_operator_gone(host: Place) -> None:
    with listening(204) as (url, came):
        assert taken_back(host, url) == "sent"
    (message,) = came
    assert message["event"] == "guard.failed"
    assert message["release"] == host.live
    assert "ML coverage" in message["text"]


@pytest.mark.parametrize(("code", "said"), [(500, "answered 500"), (302, "answered 302")])
def test_telling_that_fails_leaves_the_revert_as_it_is(host: Place, code: int, said: str) -> None:
    with listening(code) as (url, came):
        assert said in taken_back(host, url)
    assert len(came) == 1


def test_nobody_there_to_be_told(host: Place) -> None:
    assert (
        taken_back(host, "http://127.0.0.1:1/t0psecret")
        == "the address was not reached: ConnectionRefusedError"
    )


# Looks once on a disk that takes no report and no verdict any more: the guard's own words are lost.
FULL = """
import errno, sys
lost = []
def watch(event, arguments):
    if event == "os.rename" and "/state/gate/" in str(arguments[1]):
        lost.append(arguments[1])
        raise OSError(errno.ENOSPC, "No space left on device")
    if event == "os.rename" and str(arguments[1]).endswith("guard.json") and len(lost) == 1:
        lost.append(arguments[1])
        raise OSError(errno.ENOSPC, "No space left on device")
from datetime import UTC, datetime
from macd.host.layout import Layout
from macd.host.flag import guard
sys.addaudithook(watch)
print(guard.step(Layout(sys.argv[1]), datetime.now(UTC)), len(lost))
"""


def test_a_disk_that_takes_no_report_does_not_keep_stacking_on(bad: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(bad.app)],
        env={**bad.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["failed", "2"]), done.stderr
    assert flags_now(bad) == ("0", "0")
    told = status(bad)
    assert (told["order"]["state"], told["reports"]) == ("failed", [])
    assert "ML coverage" in told["order"]["reason"]


DISABLE = """
import json, sys
from macd.host.flag import flag
asked = {**json.loads(sys.argv[1]), "report": b"", "signature": b""}
told = flag.set_flag(**asked)
sys.exit(0 if told["outcome"] == "set" and "No space left" in told["unrecorded"] else 3)
"""


def test_a_disk_that_takes_nothing_does_not_keep_stacking_on(host: Place) -> None:
    old = report(host)
    with listening(200) as (url, came):
        (host.app / "state/notify.json").write_text(json.dumps({"url": url}))
        bad_and_unguarded(host)
        before, journal = host.state("guard.json"), kinds(host)
        for _ in range(2):
            assert on_a_full_disk(host, LOOK, str(host.app)) == 1  # it is looked at again
            assert flags_now(host) == ("0", "0")
        assert (host.state("guard.json"), kinds(host)) == (before, journal)
        assert [one["event"] for one in came] == ["guard.failed"]
        assert "No space left on device" in came[0]["text"]
        assert looked(host) == "failed"  # there is room again
        assert [one["event"] for one in came] == ["guard.failed"] * 2
    assert "ML coverage" in status(host)["order"]["reason"]
    with pytest.raises(RefusedError, match="older than the guard's"):
        flip(host, "1", old, guard=TERMS)


@pytest.mark.parametrize("full", [False, True])
def test_what_people_disabled_ends_the_watch(bad: Place, *, full: bool) -> None:
    if full:  # nobody knows then who it was, and the evidence decides
        asked = {k: v for k, v in request(bad, "0").items() if not isinstance(v, bytes)}
        assert on_a_full_disk(bad, DISABLE, json.dumps(asked)) == 0
    else:
        assert flip(bad, "0")["outcome"] == "set"
    assert flags_now(bad) == ("0", "0")
    assert looked(bad) == ("failed" if full else "ended")


def test_a_flag_put_to_0_by_hand_ends_no_watch_over_a_process_that_has_1(bad: Place) -> None:
    env = bad.app / ".env"
    env.write_bytes(env.read_bytes().replace(b"STACKING=1", b"STACKING=0"))
    assert flags_now(bad) == ("0", "1")
    assert looked(bad) == "failed"
    assert flags_now(bad) == ("0", "0")


def test_a_flags_file_nobody_can_read_ends_no_watch(bad: Place) -> None:
    env = bad.app / ".env"
    env.unlink()
    env.symlink_to(".env")
    assert looked(bad) == "failed"
    assert flags_now(bad) == ("0", "0")


def test_a_service_that_is_down_ends_no_watch_where_its_next_start_has_the_flag(
    bad: Place,
) -> None:
    env, unit = bad.app / ".env", bad.top / "home/.config/systemd/user" / UNIT
    (bad.top / "other.env").write_text("ML_ENABLE_STACKING=1\n")
    unit.write_text(unit.read_text().replace(f"{bad.app}/.env", f"{bad.top}/other.env"))
    env.write_bytes(env.read_bytes().replace(b"STACKING=1", b"STACKING=0"))
    for words in (["daemon-reload"], ["stop", UNIT]):
        argv = [str(bad.top / "bin/systemctl"), "--user", *words]
        subprocess.run(argv, check=True)
    assert look_fails(bad)
    assert bad.state("guard.json")["state"] == "failing"


def crowd(host: Place) -> None:
    """More files than anybody reads."""
    for n in range(10_001):
        (host.app / "data/live" / f"x{n}").touch()


def good_and_unguarded(host: Place) -> None:
    enabled_and_unguarded(host)
    write(host, 60)


def test_a_guard_killed_before_any_change_has_counted_or_judged(good: Place) -> None:
    for n in range(1, 20):
        before, reports = good.state("guard.json"), len(status(good)["reports"])
        how = looked(good, n)
        after = good.state("guard.json")
        counted = after.get("tries", 0) == before.get("tries", 0) + 1
        judged = len(status(good)["reports"]) > reports
        # Before the first change of all nothing was read either.
        assert counted or judged or (n == 1 and after == before), f"killed before change {n}"
        if how != "killed":
            break
        assert looked(good) == "watching"  # one judgement, and the count begins anew
        assert good.state("guard.json")["tries"] == 0
    assert n > 3
    assert flags_now(good) == ("1", "1")


def test_a_guard_that_is_killed_again_and_again_takes_stacking_back(host: Place) -> None:
    old = report(host)
    good_and_unguarded(host)
    with listening(200) as (url, came):
        message_on(host, url)
        for n in (1, 2, 3):
            assert looked(host, 2) == "killed"  # it has counted, and judges
            assert host.state("guard.json")["tries"] == n
            assert flags_now(host) == ("1", "1")
        assert looked(host) == "failed"
    assert flags_now(host) == ("0", "0")
    (message,) = came
    assert message["event"] == "guard.failed"
    assert "could not judge 3 times in a row; the last time: it was killed" in message["text"]
    told = kinds(host)
    assert told.count("guard.unjudged") == 2  # the third is the reason
    assert told[-3:] == ["flag.set", "guard.failed", "guard.notified"]
    with pytest.raises(RefusedError, match="older than the guard's"):
        flip(host, "1", old, guard=TERMS)


def test_logs_nobody_can_judge_take_stacking_back_and_say_so_before(good: Place) -> None:
    crowd(good)
    with listening(200) as (url, came):
        message_on(good, url)
        for n in (1, 2):
            assert look_fails(good)
            order = good.state("guard.json")
            said = f"could not judge, {n} of 3: ValueError: more than 10000 files in data/live"
            assert guard_config.unjudged(order) == said
            assert flags_now(good) == ("1", "1")
        assert looked(good) == "failed"
    assert flags_now(good) == ("0", "0")
    assert "more than 10000 files" in came[0]["reason"]
    assert kinds(good).count("guard.unjudged") == 3


def look_fails(host: Place) -> bool:
    """The program that provision puts there, once: systemd looks again after exit 1."""
    done = subprocess.run(
        [sys.executable, str(host.app / "bin/macd-host.pyz"), "guard", "--app", host.app],
        env=host.environment,
        check=False,
    )
    return done.returncode == 1


def test_one_judgement_in_between_begins_the_count_anew(good: Place) -> None:
    for _ in range(2):
        assert looked(good, 2) == "killed"
    assert looked(good) == "watching"
    for _ in range(2):
        assert looked(good, 2) == "killed"
    assert looked(good) == "watching"
    assert flags_now(good) == ("1", "1")


def test_an_order_of_an_earlier_version_is_carried_out(good: Place) -> None:
    order = good.state("guard.json")
    old = {k: v for k, v in order.items() if k not in guard_config.NO_TRIES}
    (good.app / "state/guard.json").write_text(json.dumps(old))
    assert looked(good) == "watching"
    assert len(status(good)["reports"]) == 1
    assert good.state("guard.json")["tries"] == 0


def test_on_a_disk_that_takes_no_count_the_first_look_without_a_judgement_is_the_last(
    good: Place,
) -> None:
    assert on_a_full_disk(good, LOOK, str(good.app)) == 1  # judged; what was said is lost
    assert flags_now(good) == ("1", "1")
    crowd(good)
    with listening(200) as (url, came):
        message_on(good, url)
        assert on_a_full_disk(good, LOOK, str(good.app)) == 1
    assert flags_now(good) == ("0", "0")
    assert "could neither judge" in came[0]["text"]
