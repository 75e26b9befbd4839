"""The whole story on real systemd, as typed: what production will do, with real trained models.

h800 trains with the interpreter and packages of this machine (support/hosts/fleet.py says why), all
else is the hosts' own. The tests of this file are one story: each goes on where the last stopped.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from ipaddress import ip_interface
from typing import Any

import pytest

from macd.journal import Journal
from tests.support.hosts.end_to_end import (
    BARS_DIRECTORY,
    ENDPOINT,
    EXCHANGE,
    FILES,
    REPLAY,
    UNIT,
    WATCHDOG_S,
    WRITER,
    EndToEnd,
    another_model,
    bars_up_to_now,
    lay_out,
    mistaken_code,
    no_change,
    signed_again,
)
from tests.support.hosts.fleet import Hosts
from tests.support.training_run import ROOT
from tests.unit.app.market.test_fetch import HOUR, Server

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def story(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> EndToEnd:
    return lay_out(hosts, tmp_path_factory.mktemp("story"))


def release(story: EndToEnd) -> str:
    told = story.json("release", "--source", str(ROOT))
    assert all(item["ok"] for item in told["health"])
    return str(told["id"])


def test_keys_are_pinned_bars_checked_and_a_model_trained_behind_the_jump(story: EndToEnd) -> None:
    assert "host.trust h800" in story.invoke("facts", "--host", "h800", code=6)
    told = story.invoke("host.trust", "h800", "--yes") + story.invoke("host.trust", "prod", "--yes")
    assert told.count(" pinned ") == 3  # jump, h800, prod
    assert "already pinned" in story.invoke("host.trust", "prod")
    story.invoke("facts", "--host", "h800")
    assert story.json("data.verify")["errors"] == 0
    story.invoke("train", "--host", "h800", "--settings", "small.json")
    assert story.hosts.h800.exec("ls", "/home/quant/work/story/runs").split() == [story.run]
    assert (story.root / "runs" / story.run / "report.html").is_file()


def test_from_a_run_to_a_service_in_shadow(story: EndToEnd) -> None:
    # Its lock is for either feed. A runtime takes half a minute of CPU time: one serves all tests.
    story.feed(EXCHANGE.format(url="http://127.0.0.1:1"))
    made = release(story)
    story.feed(REPLAY)
    story.invoke("provision", "--yes")
    assert "  0 changes" in story.invoke("provision", "--yes")
    assert story.json("plan")["changes"]
    (outcome,) = story.json("deploy", "--yes")["outcomes"]
    assert outcome["result"] == "committed"
    assert story.live == made
    assert not story.json("plan")["changes"]

    # READY came by sd_notify, the socket is systemd's, the watchdog is fed
    shown = story.unit("Type", "ActiveState", "SubState", "User", "NRestarts", "WatchdogUSec")
    assert shown == {
        "Type": "notify", "ActiveState": "active", "SubState": "running", "User": "macd",
        "NRestarts": "0", "WatchdogUSec": f"{WATCHDOG_S}s",
    }  # fmt: skip
    assert story.environ["LISTEN_FDS"] == "1"
    assert ENDPOINT in story.on_prod("systemctl", "show", "-p", "Listen", "macd-analysis.socket")
    answer = story.healthz
    assert (answer["status"], answer["release"]) == ("ok", made)
    assert answer["golden"]["ok"]
    assert str(answer["pid"]) == story.pid


def test_every_model_answers_behind_the_hardened_unit(story: EndToEnd) -> None:
    story.until_bars(25)
    told = story.on_prod("systemd-analyze", "security", "--no-pager", UNIT)
    exposure = float(told.splitlines()[-1].split(":")[1].split()[0])
    memory = story.on_prod("grep", "VmHWM", f"/proc/{story.pid}/status")
    print(f"systemd-analyze security: exposure {exposure}; memory {memory}")
    assert exposure <= 1.5
    assert int(memory.split()[1]) < 300_000
    last = story.lines[-1]["data"]["components"]
    assert last["ml_error"] is None
    assert last["ml_stacking_mode"] == "shadow"
    assert 0 <= last["ml_features_outside"] <= len(last["ml_features"])  # of the training's range
    for name in ("ml_lgb_prob", "ml_lstm_prob", "ml_tft_prob", "ml_stacking_prob"):
        assert 0 < last[name] < 1
    numbers = [line["seq"] for line in story.lines]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "ml_stacking_prob" in story.invoke("logs", "--grep", "ml_")


def test_a_service_that_stands_still_is_restarted_and_counts_on(story: EndToEnd) -> None:
    before = story.pid
    assert int(before)  # of 0, kill would stop whoever asks it to
    story.on_prod("kill", "-STOP", before)
    story.until("the watchdog's restart", lambda: story.unit("NRestarts")["NRestarts"] != "0")
    story.until("the new process", lambda: story.unit("SubState")["SubState"] == "running")
    assert story.pid != before
    held = len(story.lines)
    story.until("a line of the new process", lambda: len(story.lines) > held)
    numbers = [line["seq"] for line in story.lines]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_gate_opens_and_the_process_has_the_flag(story: EndToEnd) -> None:
    assert "there is no gate report" in story.invoke("enable-stacking", "--yes", code=6)
    judged = story.json("shadow-gate")
    assert (judged["verdict"], judged["release"]) == ("PASS", story.live)
    assert story.environ["ML_ENABLE_STACKING"] == "0"
    told = story.json("enable-stacking", "--yes")
    assert (told["result"], str(told["pid"])) == ("set", story.pid)
    assert story.environ["ML_ENABLE_STACKING"] == "1"
    assert story.environ["ML_STACKING_WEIGHT"] == "25"
    assert story.on_prod("systemctl", "is-active", "macd-analysis-guard.timer") == "active"
    assert story.json("monitor")["state"] == "watching"
    held = len(story.lines)
    story.until("a line with stacking live", lambda: len(story.lines) > held)
    last = story.lines[-1]["data"]["components"]
    assert (last["ml_stacking_mode"], last["ml_stacking_weight"]) == ("live", 25)
    mixed = 0.25 * last["ml_stacking_prob"] + 0.75 * last["ml_avg_prob"]
    assert last["ml_bull_prob"] == pytest.approx(mixed, abs=2e-6)


def test_a_second_release_and_back(story: EndToEnd) -> None:
    first = story.live
    for verb, flag in (("disable-stacking", "0"), ("enable-stacking", "1")):
        story.invoke(verb, "--yes")
        assert story.environ["ML_ENABLE_STACKING"] == flag
    second = signed_again(story, first, no_change)
    (plan,) = story.json("plan")["hosts"]
    assert plan["rollback"]["ready"]
    (outcome,) = story.json("deploy", "--yes")["outcomes"]
    assert (outcome["result"], story.live) == ("committed", second)
    # What was learnt about the first opens nothing for the second.
    assert story.environ["ML_ENABLE_STACKING"] == "0"
    # The first one's models run beside it, and the gate compares the two on bars that are known.
    story.until("bars of both that are known", lambda: asked_beside(story, first) >= 15)
    judged = story.json("shadow-gate", code=None)
    against = judged["skill"]["against"]
    assert judged["skill"]["setting"] == "worse" and against["mean"]["n"] >= 1
    assert against["challenger"]["release"] == first
    assert against["challenger"]["n"] >= 1
    assert against["challenger"]["same"]  # the same files
    (outcome,) = story.json("rollback", "--yes")["outcomes"]
    assert story.live == first
    assert story.healthz["release"] == first
    # It had stacking on, but its watch ended when it went: nobody would take it back.
    assert story.environ["ML_ENABLE_STACKING"] == "0"


def asked_beside(story: EndToEnd, release: str) -> int:
    """Lines of the live release on which that release's models answered too."""
    live = story.live
    parts = [line["data"]["components"] for line in story.lines if line.get("release") == live]
    said = [found for part in parts if (found := part.get("ml_challenger"))]
    return sum(found["release"] == release and found.get("stacking") is not None for found in said)


def test_bad_releases_go_back_by_themselves(story: EndToEnd) -> None:
    good = story.live
    other = signed_again(story, good, another_model)
    told = story.invoke("deploy", "--yes", "--release", other, code=4)
    assert f"now: {good} is live" in told
    assert "golden" in told
    assert story.healthz["release"] == story.live == good

    mistake = signed_again(story, good, mistaken_code)
    told = story.invoke("deploy", "--yes", code=4)
    assert f"now: {good} is live" in told
    assert story.live == good
    assert story.healthz["release"] == good
    (status,) = story.json("status")["hosts"]
    assert status["rollback"]["release"] not in (other, mistake)


def test_it_is_all_well_and_on_record(story: EndToEnd) -> None:
    story.until_bars(1)
    assert story.json("doctor")["problems"] == 0
    told = story.invoke("status")
    assert story.live in told
    assert "already" in story.invoke("disable-stacking", "--yes")
    kinds = [one.kind for one in Journal(story.root / ".macd/story/journal.jsonl").records()]
    for kind in ("release.made", "provision.done", "gate.judged", "flag.enable", "flag.disable"):
        assert kind in kinds
    why = story.json("why")["hosts"][0]
    assert (why["live"], why["run"], why["how"]) == (story.live, story.run, "rollback")


def test_bars_that_another_process_appends_become_lines_of_the_hardened_unit(
    story: EndToEnd,
) -> None:
    # Of 527 the features are made; the newest of all is left to the exchange.
    *past, first, second, third, _ = bars_up_to_now(541)
    story.on_prod("install", "-d", "-o", WRITER, BARS_DIRECTORY)
    story.append("timestamp,open,high,low,close,volume\n" + "".join(past))
    story.feed(FILES)
    (outcome,) = story.json("deploy", "--yes", "--release", story.live)["outcomes"]
    assert outcome["result"] == "committed"
    held, before = story.pid, len(story.lines)
    story.append(first + second[:20])
    story.append(second[20:])
    story.append(third)
    moments = [
        datetime.fromtimestamp(int(bar.split(",")[0]) / 1000, UTC) for bar in (first, second, third)
    ]

    def signals() -> list[dict[str, Any]]:
        found = [line for line in story.lines if line["level"] == "SIGNAL"]
        return [one for one in found if datetime.fromisoformat(one["bar_time"]) in moments]

    story.until("the lines of three bars", lambda: len(signals()) >= 3)
    lines = signals()
    assert [datetime.fromisoformat(one["bar_time"]) for one in lines] == moments
    for one, bar in zip(lines, (first, second, third), strict=True):
        components = one["data"]["components"]
        assert components["close"] == float(bar.split(",")[4])
        assert components["ml_error"] is None
        assert 0 < components["ml_stacking_prob"] < 1
    numbers = [line["seq"] for line in story.lines]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > before
    assert story.pid == held
    assert story.healthz["feed"]["state"] == "reading its directory"


def test_bars_that_an_exchange_closes_become_lines_of_the_hardened_unit(story: EndToEnd) -> None:
    prod = story.on_prod("ip", "-4", "-o", "address", "show", "host0").split()[3]
    here = str(next(one for one in ip_interface(prod).network.hosts() if str(one) not in prod))
    exchange = Server(here)
    exchange.pairs = [("BTC", "USD")]
    exchange.now = int(time.time() * 1000)
    for bar in bars_up_to_now(541):
        opened, *prices = bar.strip().split(",")
        end = int(opened) + HOUR - 1
        exchange.rows.append([int(opened), *prices, end, "1.0", 5, "1.0", "1.0", "0"])
    threading.Thread(target=exchange.serve_forever, daemon=True).start()
    live, locked_for_files = story.live, release(story)
    story.feed(EXCHANGE.format(url=exchange.url))
    told = story.invoke("deploy", "--yes", "--release", locked_for_files, code=6)
    assert "made without ccxt" in told
    (outcome,) = story.json("deploy", "--yes", "--release", live)["outcomes"]
    assert (outcome["result"], story.live) == ("committed", live)
    newest = datetime.fromtimestamp(exchange.rows[-1][0] / 1000, UTC)

    def signals() -> list[dict[str, Any]]:
        found = [line for line in story.lines if line["level"] == "SIGNAL"]
        return [one for one in found if datetime.fromisoformat(one["bar_time"]) == newest]

    story.until("the exchange's newest bar", lambda: bool(signals()))
    (line,) = signals()
    assert line["data"]["components"]["ml_error"] is None
    assert 0 < line["data"]["components"]["ml_stacking_prob"] < 1
    assert line["data"]["components"]["close"] == float(exchange.rows[-1][4])
    assert story.healthz["feed"]["state"] == "polling"
    assert int(story.on_prod("grep", "VmHWM", f"/proc/{story.pid}/status").split()[1]) < 300_000
    exchange.shutdown()
