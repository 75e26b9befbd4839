"""The stacking flag on a pretended host: evidence, proof in the process, kills, the way back.

The host's own code runs there as an agent or as a killed process; only its service is small.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError, RefusedError
from macd.host.store.signature import GATE_NAMESPACE, RELEASE_NAMESPACE
from macd.journal import Journal
from tests.support.local_host import UNIT, Place, place
from tests.support.signed_files import IDENTITY, make_key
from tests.support.stacking_host import (
    ENV,
    LOG,
    broken,
    deployed_place,
    end_guard,
    flag_in_file,
    flags_now,
    flip,
    kinds,
    pid,
    release,
    report,
    request,
    weights_now,
)
from tests.support.sweeps import at_points, sweep

TERMS = {"every_s": 3600.0, "for_s": 86400.0, "rule": {"rule": "point"}}


# Kills itself right before the n-th change that outlives it; with or without a systemd's timers.
KILLED = """
import json, os, signal, sys
left, timers = int(sys.argv[1]), sys.argv[2] == "timers"
CHANGES = {"restart", "daemon-reload", "enable", "stop", "start", "guard"}
def watch(event, arguments):
    global left
    if event == "subprocess.Popen":
        words = CHANGES.intersection(map(str, arguments[1]))
        if not words:
            return
        print(*words, file=sys.stderr, flush=True)
    if event in ("os.rename", "os.remove", "subprocess.Popen"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from macd.host.flag import flag
from macd.host.systemd.supervisor import Supervisor
Supervisor.has_timers = lambda self: timers
asked = json.load(sys.stdin)
for name in ("report", "signature"):
    asked[name] = bytes.fromhex(asked[name])
sys.addaudithook(watch)
print(flag.set_flag(**asked)["outcome"])
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    """Its release is live; it is unwell while a file `unwell` lies in the application directory."""
    with deployed_place() as made:
        yield made


@pytest.fixture(autouse=True)
def in_shadow(host: Place) -> None:
    for name in ("unwell", "unwell at"):
        (host.app / name).unlink(missing_ok=True)
    (host.app / "data/live" / LOG).write_text('{"seq": 1}\n{"seq": 2}\n')
    flip(host, "0")
    assert flags_now(host) == ("0", "0")


def test_set_with_evidence_proved_and_nothing_the_second_time(host: Place) -> None:
    before = pid(host)
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"], told["wrong"]) == ("set", "1", "")
    assert flags_now(host) == ("1", "1")
    assert told["pid"] == pid(host) != before
    assert (host.app / ".env").read_text() == ENV.replace("STACKING=0", "STACKING=1")
    assert kinds(host)[-2:] == ["flag.begun", "flag.set"]
    assert flip(host, "1")["outcome"] == "already"  # needs no evidence: nothing is changed
    order = host.state("guard.json")
    (host.app / "state/guard.json").write_text(json.dumps({**order, "state": "over"}))
    assert flip(host, "1")["outcome"] == "already"  # it was watched to the end
    assert pid(host) == told["pid"]
    assert flip(host, "0")["outcome"] == "set"
    assert flags_now(host) == ("0", "0")
    assert flip(host, "0")["outcome"] == "already"


def by_hand(host: Place) -> int:
    """Stacking as somebody sets it who edits the file and restarts the service; the pid."""
    (host.app / ".env").write_text(ENV.replace("STACKING=0", "STACKING=1"))
    argv = [str(host.top / "bin/systemctl"), "--user", "restart", UNIT]
    subprocess.run(argv, check=True)
    assert flags_now(host) == ("1", "1")
    return pid(host)


@pytest.mark.parametrize(
    "order",
    [
        None,
        {"state": "watching", "release": "20250101T000000Z-deadbeef"},
        {"state": "over", "release": "20250101T000000Z-deadbeef"},
        {"state": "ended"},
        {"state": "watching", "since": 0.0},  # its loop was killed
    ],
)
def test_live_but_unwatched_needs_evidence_and_gets_the_watch(
    host: Place, order: dict[str, Any] | None
) -> None:
    kept = host.app / "state/guard.json"
    kept.unlink(missing_ok=True)
    end_guard(host)
    if order is not None:
        service = request(host, "1")["service"]
        now = {"since": datetime.now(UTC).timestamp(), "release": host.live, "service": service}
        kept.write_text(json.dumps({**now, "every_s": 1.0, **order}))
    before = by_hand(host)
    with pytest.raises(RefusedError, match="no guard watches it"):
        flip(host, "1", guard=TERMS)
    assert (flags_now(host), pid(host)) == (("1", "1"), before)
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["pid"], pid(host)) == ("set", before, before)  # not restarted
    armed = host.state("guard.json")
    assert (armed["state"], armed["release"]) == ("watching", host.live)
    assert flip(host, "1", guard=TERMS)["outcome"] == "already"
    assert kinds(host)[-2:] == ["flag.begun", "flag.set"]


def test_live_and_unwatched_and_unwell_is_taken_to_shadow(host: Place) -> None:
    (host.app / "state/guard.json").unlink(missing_ok=True)
    (host.app / "unwell").touch()
    by_hand(host)
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert flags_now(host) == ("0", "0")


def test_a_deploy_in_between_makes_the_evidence_one_about_another_release(host: Place) -> None:
    looked_at, before = report(host), host.live
    assert host.deploy(release(host, 2)) == "committed"
    with pytest.raises(RefusedError) as refused:
        flip(host, "1", looked_at, guard=TERMS)
    assert f"it is about release {before}, live is {host.live}" in refused.value.why
    assert flags_now(host) == ("0", "0")
    with pytest.raises(RefusedError):  # the watch of the release that was live is not its watch
        by_hand(host)
        flip(host, "1", looked_at, guard=TERMS)


def test_a_file_that_the_process_did_not_read_is_not_believed(host: Place) -> None:
    (host.app / ".env").write_text(ENV.replace("STACKING=0", "STACKING=1"))
    assert flags_now(host) == ("1", "0")
    with pytest.raises(RefusedError):
        flip(host, "1")
    assert flip(host, "0")["outcome"] == "set"
    assert flags_now(host) == ("0", "0")


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("why", "changed"),
    [
        ("expired", {"expires": (datetime.now(UTC) - HOUR).isoformat()}),
        ("future", {"made": (datetime.now(UTC) + 2 * HOUR).isoformat()}),
        ("live is", {"release": "20250101T000000Z-deadbeef"}),
        ("another manifest", {"manifest_sha256": "0" * 64}),
        ("another environment", {"env": "staging"}),
        ("FAIL", {"verdict": "FAIL"}),
        ("INCONCLUSIVE", {"verdict": "INCONCLUSIVE"}),
        ("files", {"source": "files"}),
        ("can't enable stacking", {"opens_nothing": ["min_bars laxer"]}),
        ("names no logs", {"logs": []}),
        ("understood", {"logs": [{"name": LOG, "from": 5, "to": 1, "sha256": "0" * 64}]}),
        ("analysed", {"logs": [{"name": "../../.env", "from": 0, "to": 1, "sha256": "0" * 64}]}),
        ("expires", {"expires": "tomorrow"}),
        ("no gate report", {"kind": "release"}),
    ],
)
def test_a_report_that_is_not_about_this_very_state_is_refused(
    host: Place, why: str, changed: dict[str, Any]
) -> None:
    before = pid(host)
    with pytest.raises(RefusedError) as refused:
        flip(host, "1", report(host, **changed))
    assert why in refused.value.why
    assert (flags_now(host), pid(host)) == (("0", "0"), before)


def test_forged_and_edited_reports_and_changed_logs_are_refused(host: Place) -> None:
    good = report(host)
    for more in (
        {"key": make_key(host.top, "stranger")},
        {"namespace": RELEASE_NAMESPACE},
        {"key": host.key},  # the release key may not open the gate
        {"signature": b"junk"},
        {"report": json.dumps({**good, "verdict": "PASS "}).encode()},
    ):
        with pytest.raises(RefusedError, match="does not take"):
            flip(host, "1", good, **more)
        (host.top / "stranger").unlink(missing_ok=True)
    (host.app / "data/live" / LOG).write_text('{"seq": 1}\n{"seq": 3}\n')
    with pytest.raises(RefusedError) as refused:
        flip(host, "1", good)
    assert "not what was analysed" in refused.value.why
    assert flags_now(host) == ("0", "0")


def noted(host: Place, at: datetime, verdict: str, **more: Any) -> bool:
    note = {"verdict": verdict, "release": host.live, "sha256": "0" * 64, "made": at.isoformat()}
    note |= {"opens": verdict == "PASS", **more}
    told: bool = host.watching.call("gate_note", app=str(host.app), note=note)
    return told


def test_a_newer_no_from_another_machine_closes_an_older_pass(host: Place) -> None:
    """The report with the PASS lies here, the one with the FAIL with a colleague."""
    good, now = report(host), datetime.now(UTC)
    for verdict, more in (("FAIL", {}), ("INCONCLUSIVE", {}), ("PASS", {"opens": False})):
        now += timedelta(milliseconds=1)
        assert noted(host, now, verdict, **more)
        with pytest.raises(RefusedError) as refused:
            flip(host, "1", good)
        assert "a newer report about this host" in refused.value.why
        assert verdict in refused.value.why or "can't enable stacking" in refused.value.why
    assert not noted(host, now - HOUR, "PASS")  # an older one changes nothing
    with pytest.raises(RefusedError, match="no gate report was made"):
        noted(host, now + HOUR, "PASS")
    with pytest.raises(RefusedError):
        flip(host, "1", good)
    assert flags_now(host) == ("0", "0")
    kept = host.app / "state/gate/newest"
    told = json.loads(kept.read_text())
    for other in (
        {**told, "release": "20250101T000000Z-deadbeef"},  # of what was live before
        {**told, "verdict": "PASS", "opens": True},
        {**told, "made": (now + 2 * HOUR).isoformat()},  # the clock was set back since
        "edited by hand",
    ):
        kept.write_text(json.dumps(other) if isinstance(other, dict) else other)
        assert flip(host, "1", good)["outcome"] == "set"
        assert flip(host, "0")["outcome"] == "set"
    kept.unlink()


def test_a_log_that_only_grew_is_the_same(host: Place) -> None:
    good = report(host)
    with (host.app / "data/live" / LOG).open("a") as file:
        file.write('{"seq": 3}\n')
    assert flip(host, "1", good)["outcome"] == "set"


def test_an_unwell_service_is_put_back_but_shadow_is_never_denied(host: Place) -> None:
    (host.app / "unwell").touch()
    told = flip(host, "1", report(host))
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert "golden" in told["reason"]
    assert flags_now(host) == ("0", "0")
    assert kinds(host)[-1] == "flag.reverted"
    (host.app / "unwell").unlink()
    assert flip(host, "1", report(host))["outcome"] == "set"
    (host.app / "unwell").touch()
    told = flip(host, "0")
    assert told["outcome"] == "set"
    assert "golden" in told["wrong"]
    assert flags_now(host) == ("0", "0")


def test_a_damaged_release_keeps_no_stacking_on(host: Place) -> None:
    assert flip(host, "1", report(host))["outcome"] == "set"
    manifest = host.app / "current/manifest.json"
    moved = manifest.rename(host.app / "manifest.json")
    try:
        told = flip(host, "0")
    finally:
        moved.rename(manifest)
    assert (told["outcome"], told["value"]) == ("set", "0")
    assert told["wrong"]  # such a release may not even start
    assert b"ML_ENABLE_STACKING=0" in (host.app / ".env").read_bytes()
    flip(host, "0")
    assert flags_now(host) == ("0", "0")


def test_a_process_that_does_not_get_the_flag_is_put_back(host: Place) -> None:
    unit = host.top / "home/.config/systemd/user" / UNIT
    text = unit.read_text()
    (host.top / "other.env").write_text("ML_ENABLE_STACKING=0\n")
    reload = [str(host.top / "bin/systemctl"), "--user", "daemon-reload"]
    unit.write_text(text.replace(f"{host.app}/.env", f"{host.top}/other.env"))
    subprocess.run(reload, check=True)
    told = flip(host, "1", report(host), health_s=1.5)
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert "no running process has ML_ENABLE_STACKING=1" in told["reason"]
    assert flags_now(host) == ("0", "0")
    unit.write_text(text)
    subprocess.run(reload, check=True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (b"A=caf\xe9\n", "not in UTF-8"),
        (b"# c \\\nB=2\n", "before systemd 254"),
        (b"LD_AUDIT=/tmp/x.so\n", "LD_AUDIT would change"),
    ],
)
def test_enabling_refuses_what_systemd_does_not_take_and_taking_back_does_not(
    host: Place, more: bytes, why: str
) -> None:
    assert flip(host, "1", report(host))["outcome"] == "set"
    off = ENV.encode() + more
    on = off.replace(b"STACKING=0", b"STACKING=1")
    (host.app / ".env").write_bytes(on)
    assert flip(host, "0")["outcome"] == "set"
    assert (host.app / ".env").read_bytes() == off
    before = pid(host)
    with pytest.raises(RefusedError) as raised:
        flip(host, "1", report(host))
    assert why in raised.value.why
    assert (host.app / ".env").read_bytes() == off
    assert pid(host) == before
    (host.app / ".env").write_text(ENV.replace("STACKING=0", "STACKING=1"))
    assert flip(host, "0")["outcome"] == "set"  # and the process has its settings again


def test_not_while_a_deploy_holds_the_host(host: Place) -> None:
    with host.session() as session:
        session.call("lock", app=str(host.app), who="ben", doing="deploy")
        with pytest.raises(RefusedError, match="another deploy"):
            flip(host, "1", report(host))
    assert flags_now(host) == ("0", "0")


def killed(host: Place, wanted: str, n: int, wakes: str = "loop", **more: Any) -> str:
    """Set it in a process that dies before its n-th change; what it began of systemd and guard.

    The last word is "killed" or "through".
    """
    asked = request(host, wanted, report(host), **{"guard": TERMS, **more})
    asked = {k: v.hex() if isinstance(v, bytes) else v for k, v in asked.items()}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(n), wakes],
        input=json.dumps(asked).encode(),
        env={**host.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.stderr.decode() + ("killed" if done.returncode else "through")


_THROUGH = 39  # more changes than there are


_SOME = [1, 2, 3, 6, 9, _THROUGH]  # before its record, the file, the restart and what follows


# With the watch: the order, what wakes it (units, reload, enable, start; or the loop), the flag.
@pytest.mark.parametrize(
    ("wanted", "wakes", "steps"),
    [
        ("1", "loop", ["guard", "restart"]),
        ("1", "timers", ["daemon-reload", "enable", "stop", "start", "restart"]),
        ("0", "loop", ["restart"]),
    ],
)
@at_points(_SOME, range(1, _THROUGH + 1))
def test_killed_before_any_change_it_ends_old_or_new(
    host: Place, points: Sequence[int], wanted: str, wakes: str, steps: list[str]
) -> None:
    ends = []
    units = host.top / "home/.config/systemd/user"
    for index, n in enumerate(points):
        for path in [*units.glob("*-guard.*"), host.app / "state/guard.json"]:
            path.unlink(missing_ok=True)
        if wanted == "0":
            flip(host, "1", report(host))
        began = killed(host, wanted, n, wakes)
        in_file = flag_in_file(host)  # a restart that was begun may be under way
        assert in_file in ("0", "1")  # whole, whenever it is read
        order = host.state("guard.json")
        if wanted == "1" and in_file == "1":  # never before its watch is ordered
            assert (order["state"], order["release"]) == ("watching", host.live)
            assert wakes == "loop" or len(list(units.glob("*-guard.*"))) == 2
        if index % 2:
            run_recovery(host)
        else:
            host.watching.call("recover", app=str(host.app))
        now = flags_now(host)
        assert now[0] == now[1], f"killed before change {n}"
        assert host.state("pending-flag.json") is None
        ends.append(now[0])
        flip(host, "0")
        if began.endswith("through"):
            break
    assert began.split() == [*steps, "through"]
    assert points[len(ends) - 1] > 5  # so many changes there are
    # An enabling that was cut short is taken back, a disabling is finished, once it had begun.
    other = "0" if wanted == "1" else "1"
    assert ends[0] == other
    assert ends[-1] == wanted
    assert ends[2] == "0"


@pytest.mark.parametrize("n", sweep(range(1, 9), 1, 3, 4, 6, 8))
def test_killed_while_it_arms_the_watch_of_what_runs_already(host: Place, n: int) -> None:
    (host.app / "state/guard.json").unlink(missing_ok=True)
    end_guard(host)
    by_hand(host)
    killed(host, "1", n)
    begun = host.state("pending-flag.json") or host.state("guard.json")
    host.watching.call("recover", app=str(host.app))
    now = flags_now(host)
    assert now[0] == now[1]
    assert host.state("pending-flag.json") is None
    if now[0] == "1" and begun:
        assert host.state("guard.json")["state"] == "watching"


def run_recovery(host: Place) -> None:
    program = host.app / "bin" / "macd-host.pyz"
    argv = [sys.executable, "-I", str(program), "recover", "--app", str(host.app)]
    subprocess.run(argv, env=host.environment, check=True, capture_output=True, timeout=180)


def test_a_disabling_that_was_interrupted_is_ended_and_that_is_told(host: Place) -> None:
    flip(host, "1", report(host), guard=TERMS, weight=25)
    before = pid(host)
    cut = (n for n in range(2, 20) if killed(host, "0", n) and flags_now(host)[0] == "0")
    next(cut)  # the file has it, the process not yet
    change = host.facts()["flag_change"]
    assert (change["was"], change["was_weight"], change["wanted"]) == ("1", 25, "0")
    told = flip(host, "0")
    assert (told["outcome"], told["ended"]) == ("already", "set")
    assert told["pid"] == pid(host) != before
    assert flip(host, "0")["ended"] == "nothing"


def test_at_boot_only_the_file_is_put_right(host: Place) -> None:
    written = (n for n in range(2, 20) if killed(host, "1", n) and flags_now(host)[0] == "1")
    next(written)  # the file has it, the process not yet
    assert host.state("pending-flag.json")["state"] == "begun"
    told = host.facts()["flag_change"]
    assert (told["was"], told["wanted"], told["state"]) == ("0", "1", "begun")
    program = host.app / "bin" / "macd-host.pyz"
    argv = [sys.executable, "-I", str(program), "recover", "--booting", "--app", str(host.app)]
    before = pid(host)
    subprocess.run(argv, env=host.environment, check=True, capture_output=True, timeout=180)
    assert flags_now(host)[0] == "0"
    assert pid(host) == before
    assert host.state("pending-flag.json") is None
    assert host.facts()["flag_change"] is None


def test_whose_report_counts_is_the_hosts_word_and_not_the_clients(host: Place) -> None:
    """Another whom allowed_signers knows for gate reports, of another environment say."""
    signers = host.app / "state/allowed_signers"
    before = signers.read_text()
    public = make_key(host.top, "other").with_suffix(".pub").read_text().strip()
    signers.write_text(f'{before}other@example.com namespaces="{GATE_NAMESPACE}" {public}\n')
    good, key = report(host), host.top / "other"
    try:
        with pytest.raises(RefusedError, match="gate reports of that signer") as refused:
            flip(host, "1", good, key=key, identity="other@example.com")
        assert f"those of {IDENTITY}" in refused.value.why
        with pytest.raises(RefusedError, match="does not take the gate report"):
            flip(host, "1", good, key=key)
        assert flags_now(host) == ("0", "0")
        assert flip(host, "1", good)["outcome"] == "set"
    finally:
        signers.write_text(before)


def test_a_weight_is_set_proved_raised_and_lowered(host: Place) -> None:
    told = flip(host, "1", report(host), guard=TERMS, weight=25)
    assert (told["outcome"], told["value"], told["weight"]) == ("set", "1", 25)
    assert (host.app / ".env").read_text() == (
        ENV.replace("STACKING=0", "STACKING=1") + "ML_STACKING_WEIGHT=25\n"
    )
    assert weights_now(host) == (25, 25, 25)
    assert flip(host, "1", weight=25)["outcome"] == "already"

    with pytest.raises(RefusedError):  # more needs evidence, and so does all of it
        flip(host, "1", guard=TERMS, weight=50)
    with pytest.raises(RefusedError):
        flip(host, "1", guard=TERMS)
    assert weights_now(host) == (25, 25, 25)
    before = host.state("guard.json")
    told = flip(host, "1", report(host), guard=TERMS, weight=50)
    assert (told["outcome"], told["weight"]) == ("set", 50)
    assert weights_now(host) == (50, 50, 50)
    raised = host.state("guard.json")
    assert raised["since"] > before["since"]  # a watch of its own
    assert raised["weight"] == 50

    told = flip(host, "1", weight=10)  # less needs none
    assert (told["outcome"], told["weight"]) == ("set", 10)
    assert weights_now(host) == (10, 10, 10)
    lowered = host.state("guard.json")
    assert {k: v for k, v in lowered.items() if k not in ("weight", "waits")} == {
        k: v for k, v in raised.items() if k != "weight"
    }  # it watches on
    assert lowered["weight"] == 10
    records = Journal(host.app / "state/journal.jsonl").records()
    changes = [one.fields for one in records if one.kind == "flag.set"][-3:]
    assert [(one["was_weight"], one["weight"]) for one in changes] == [(0, 25), (25, 50), (50, 10)]

    told = flip(host, "1", report(host), guard=TERMS)  # the guide's switch means all of it
    assert (told["outcome"], told["weight"]) == ("set", 100)
    assert (host.app / ".env").read_text() == ENV.replace("STACKING=0", "STACKING=1")
    assert weights_now(host) == (100, 100, 100)
    flip(host, "1", weight=25)
    assert flip(host, "0")["weight"] == 0
    assert (host.app / ".env").read_text() == ENV
    assert weights_now(host) == (0, 0, 0)


@pytest.mark.parametrize("weight", [0, 101, -1, "25", 2.5, True])
def test_what_is_no_weight_is_refused(host: Place, weight: Any) -> None:
    with pytest.raises(RefusedError, match="ML_STACKING_WEIGHT can't be"):
        flip(host, "1", report(host), guard=TERMS, weight=weight)
    assert flags_now(host) == ("0", "0")


@pytest.mark.parametrize("value", ["0", "101", "half", "25 %"])
def test_a_weight_by_hand_that_is_none_leaves_the_service_in_shadow(
    host: Place, value: str
) -> None:
    on = ENV.replace("STACKING=0", "STACKING=1")
    (host.app / ".env").write_text(on + f"ML_STACKING_WEIGHT={value}\n")
    subprocess.run([str(host.top / "bin/systemctl"), "--user", "restart", UNIT], check=True)
    assert weights_now(host) == (None, None, 0)
    assert flip(host, "0")["outcome"] == "set"
    assert (host.app / ".env").read_text() == ENV
    told = flip(host, "1", report(host), guard=TERMS, weight=25)
    assert (told["outcome"], weights_now(host)) == ("set", (25, 25, 25))


def test_from_a_weight_by_hand_above_the_watchs_it_goes_down_to_the_watchs(host: Place) -> None:
    """Which was proved, so it needs no report; more does."""
    assert flip(host, "1", report(host), guard=TERMS, weight=25)["outcome"] == "set"
    watch = host.state("guard.json")
    by_hand(host)  # all of it: no weight in .env
    assert weights_now(host) == (100, 100, 100)
    with pytest.raises(RefusedError, match="no guard watches it"):
        flip(host, "1", guard=TERMS, weight=100)
    told = flip(host, "1", guard=TERMS)
    assert (told["outcome"], told["weight"]) == ("set", 25)
    assert weights_now(host) == (25, 25, 25)
    assert host.state("guard.json") == watch

    text = (host.app / ".env").read_text()
    (host.app / ".env").write_text(text.replace("WEIGHT=25", "WEIGHT=75"))
    told = flip(host, "1", report(host), guard=TERMS)  # the process has 25, its next start 75
    assert (told["outcome"], told["weight"]) == ("set", 25)
    assert weights_now(host) == (25, 25, 25)

    by_hand(host)
    before = pid(host)
    told = flip(host, "1", report(host), guard=TERMS, weight=100)
    assert (told["outcome"], told["pid"], told["weight"]) == ("set", before, 100)


def test_what_sets_a_weight_beside_env_is_not_proved_and_goes_back(host: Place) -> None:
    unit = host.top / "home/.config/systemd/user" / UNIT
    text = unit.read_text()
    reload = [str(host.top / "bin/systemctl"), "--user", "daemon-reload"]
    unit.write_text(text.replace("ExecStart=", "ExecStart=/usr/bin/env ML_STACKING_WEIGHT=90 "))
    subprocess.run(reload, check=True)
    try:
        told = flip(host, "1", report(host), health_s=1.5, guard=TERMS, weight=25)
        assert (told["outcome"], told["value"], told["weight"]) == ("reverted", "0", 0)
        assert "ML_ENABLE_STACKING=1 and decides with 25 %" in told["reason"]
        assert flags_now(host) == ("0", "0")
    finally:
        unit.write_text(text)
        subprocess.run(reload, check=True)


def test_a_raise_that_fails_goes_back_to_the_weight_before(host: Place) -> None:
    assert flip(host, "1", report(host), guard=TERMS, weight=25)["outcome"] == "set"
    watch = host.state("guard.json")
    broken(host, "100")
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"], told["weight"]) == ("reverted", "1", 25)
    assert "golden" in told["reason"]
    assert weights_now(host) == (25, 25, 25)
    assert host.state("guard.json") == watch
    broken(host, "25 100")  # nor does the weight before work again
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"], told["weight"]) == ("reverted", "0", 0)
    assert "nor did 25 % work again" in told["reason"]
    assert flags_now(host) == ("0", "0")
    assert host.state("pending-flag.json") is None


def test_a_lowering_that_fails_ends_in_shadow(host: Place) -> None:
    assert flip(host, "1", report(host), guard=TERMS)["outcome"] == "set"
    broken(host, "25")
    told = flip(host, "1", weight=25)
    assert (told["outcome"], told["value"], told["weight"]) == ("reverted", "0", 0)
    assert (host.app / ".env").read_text() == ENV


def test_a_release_that_knows_no_weights_gets_none(host: Place) -> None:
    assert host.deploy(release(host, 9, "knows no weights")) == "committed"
    before = pid(host)
    with pytest.raises(RefusedError, match="does not say that it knows weights") as refused:
        flip(host, "1", report(host), guard=TERMS, weight=25)
    assert "--weight 100" in refused.value.hint
    with pytest.raises(RefusedError, match="does not say that it knows weights"):
        flip(host, "1", report(host), guard={**TERMS, "steps": [25, 100]})
    assert (flags_now(host), pid(host)) == (("0", "0"), before)
    told = flip(host, "1", report(host), guard=TERMS, weight=100)
    assert (told["outcome"], told["weight"], flags_now(host)) == ("set", 100, ("1", "1"))
    with pytest.raises(RefusedError, match="does not say that it knows weights"):
        flip(host, "1", weight=25)
    assert weights_now(host) == (100, 100, None)
    assert host.deploy(release(host, 10)) == "committed"


@pytest.mark.parametrize(("was", "to"), [(25, 50), (50, 25)])
@at_points(_SOME, range(1, _THROUGH + 1))
def test_killed_before_any_change_a_weight_is_old_or_new(
    host: Place, points: Sequence[int], was: int, to: int
) -> None:
    ends = []
    for index, n in enumerate(points):
        flip(host, "0")
        assert flip(host, "1", report(host), guard=TERMS, weight=was)["outcome"] == "set"
        began = killed(host, "1", n, weight=to)
        if index % 2:
            run_recovery(host)
        else:
            host.watching.call("recover", app=str(host.app))
        now = weights_now(host)
        assert now[0] == now[1] == now[2], f"killed before change {n}"
        assert now[0] in (was, to)
        assert host.state("pending-flag.json") is None
        watch = host.state("guard.json")
        assert (watch["state"], watch["weight"]) == ("watching", now[0])
        ends.append(now[0])
        if began.endswith("through"):
            break
    assert points[len(ends) - 1] > 5
    assert (ends[0], ends[-1]) == (was, to)
    assert ends[2] == min(was, to)  # a raise goes back, a lowering is finished


@pytest.mark.parametrize("n", sweep(range(1, 9), 1, 3, 4, 6, 8))
def test_killed_while_steps_begin_at_the_weight_that_decides(host: Place, n: int) -> None:
    assert flip(host, "1", report(host), guard=TERMS, weight=25)["outcome"] == "set"
    before, old = pid(host), host.state("guard.json")
    killed(host, "1", n, guard={**TERMS, "steps": [25, 100]})
    host.watching.call("recover", app=str(host.app))
    assert (weights_now(host), pid(host)) == ((25, 25, 25), before)
    assert host.state("pending-flag.json") is None
    watch = host.state("guard.json")
    assert watch == old or (watch["state"], watch["steps"]) == ("watching", [100])


def test_a_deploy_and_a_rollback_take_the_weight_with_the_flag(host: Place) -> None:
    before = host.live
    assert flip(host, "1", report(host), guard=TERMS, weight=25)["outcome"] == "set"
    assert host.deploy(release(host, 20), confirm=False, confirm_s=0.5) == "reverted"
    assert weights_now(host) == (25, 25, 25)
    assert host.deploy(release(host, 21)) == "committed"
    assert (host.app / ".env").read_text() == ENV
    assert flip(host, "1", report(host), guard=TERMS, weight=75)["outcome"] == "set"
    assert host.rollback() == "committed"
    assert host.live == before
    assert (host.app / ".env").read_text() == ENV
    assert weights_now(host) == (0, 0, 0)


def test_nothing_live_is_refused() -> None:
    with place() as empty, pytest.raises(MacdError, match="no release is live"):
        flip(empty, "0")
