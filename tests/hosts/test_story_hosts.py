"""The story on real systemd with real trained models, as typed: shadow, next release, back.

The training itself is not run on h800 here: the test hosts have neither torch nor a network to
get it from. `invoke train --host h800` through a jump host is shown on the embedded lab
(tests/local/test_train_cli.py), its jobs under systemd in test_jobs_on_systemd.py. The tests of
this file are one story: each goes on where the last one stopped.
"""

from __future__ import annotations

import pytest

from tests.hosts.fleet import Hosts
from tests.hosts.story import (
    ENDPOINT,
    UNIT,
    WATCHDOG_S,
    Story,
    lay_out,
    mistaken_code,
    with_another_model,
)
from tests.trained import ROOT

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def story(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return lay_out(hosts, tmp_path_factory.mktemp("story"))


def release(story: Story, source: str = "") -> str:
    told = story.json("release", "--source", source or str(ROOT))
    assert all(item["ok"] for item in told["health"])
    return str(told["id"])


def test_from_a_run_to_a_service_in_shadow(story: Story) -> None:
    made = release(story)
    assert story.json("health")["ok"]
    story.invoke("provision", "--yes")
    assert "  0 changes" in story.invoke("provision", "--yes")
    assert story.json("plan")["changes"]
    (outcome,) = story.json("deploy", "--yes")["outcomes"]
    assert outcome["result"] == "committed"
    assert story.live == made

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


def test_every_model_answers_behind_the_hardened_unit(story: Story) -> None:
    story.until_bars(25)
    told = story.on_prod("systemd-analyze", "security", "--no-pager", UNIT)
    exposure = float(told.splitlines()[-1].split(":")[1].split()[0])
    memory = story.on_prod("grep", "VmHWM", f"/proc/{story.pid}/status")
    print(f"systemd-analyze security: exposure {exposure}; memory {memory}")
    assert exposure <= 1.5
    last = story.lines[-1]["data"]["components"]
    assert last["ml_error"] is None
    assert last["ml_stacking_mode"] == "shadow"
    for name in ("ml_lgb_prob", "ml_lstm_prob", "ml_tft_prob", "ml_stacking_prob"):
        assert 0 < last[name] < 1
    numbers = [line["seq"] for line in story.lines]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "ml_stacking_prob" in story.invoke("logs", "--grep", "ml_")


def test_a_service_that_stands_still_is_restarted_and_counts_on(story: Story) -> None:
    before = story.pid
    story.on_prod("kill", "-STOP", before)
    story.until("the watchdog's restart", lambda: story.unit("NRestarts")["NRestarts"] == "1")
    story.until("the new process", lambda: story.unit("SubState")["SubState"] == "running")
    assert story.pid != before
    held = len(story.lines)
    story.until("a line of the new process", lambda: len(story.lines) > held)
    numbers = [line["seq"] for line in story.lines]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_second_release_and_back(story: Story) -> None:
    first = story.live
    second = release(story)
    (plan,) = story.json("plan")["hosts"]
    assert plan["rollback"]["ready"]
    (outcome,) = story.json("deploy", "--yes")["outcomes"]
    assert (outcome["result"], story.live) == ("committed", second)
    (outcome,) = story.json("rollback", "--yes")["outcomes"]
    assert story.live == first
    assert story.healthz["release"] == first


def test_bad_releases_go_back_by_themselves(story: Story) -> None:
    good = story.live
    other = with_another_model(story, good)
    told = story.invoke("deploy", "--yes", "--release", other, code=4)
    assert f"now: {good} is live" in told
    assert "golden" in told
    assert story.healthz["release"] == story.live == good

    mistake = release(story, str(mistaken_code(story)))
    told = story.invoke("deploy", "--yes", code=4)
    assert f"now: {good} is live" in told
    assert story.live == good
    assert story.healthz["release"] == good
    (status,) = story.json("status")["hosts"]
    assert status["rollback"]["release"] not in (other, mistake)
