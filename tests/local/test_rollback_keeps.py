"""A rollback or revert puts back what the tool set, and loses nothing that people changed since."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_host import FLAGS, UNIT, Place, place
from tests.support.openssh import eventually

SECRET = "r0tated-s3cret"


@pytest.fixture(scope="module")
def deployed() -> Iterator[Place]:
    """Release 1 was live with MIN_SAMPLES=100; release 2 is."""
    with place() as made:
        env(made).write_bytes(
            b"# by the team\nEXCHANGE_KEY=old\nML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES=100\n"
        )
        env(made).chmod(0o600)
        assert made.deploy(made.release(1)) == "committed"
        assert made.deploy(made.release(2)) == "committed"
        made.save()
        yield made


@pytest.fixture
def host(deployed: Place) -> Place:
    deployed.restore()
    return deployed


def env(host: Place) -> Path:
    return host.app / ".env"


def unit(host: Place) -> Path:
    return host.top / "home/.config/systemd/user" / UNIT


def returns(host: Place) -> dict[str, Any]:
    """What the host says, before it is asked to, of a rollback to its last good release."""
    facts = host.facts()
    found: dict[str, Any] = facts["returns"][facts["rollback"]["release"]]
    return found


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.before-*"))


def switched(host: Place, number: int) -> dict[str, Any]:
    events: list[dict[str, Any]] = host.watching.call("follow", app=str(host.app), number=number)[
        "events"
    ]
    return next(event for event in events if event["state"] == "switched")


def test_a_rotated_key_and_a_new_token_stay_byte_for_byte(host: Place) -> None:
    rotated = (
        b"# by the team\r\n  EXCHANGE_KEY = 'new!'  \n"
        b"ML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES=100\n"
        b"https_proxy=http://a:b@proxy?x=y\nEXTRA_TOKEN=caf\xe9"
    )
    env(host).write_bytes(rotated)
    told = returns(host)
    assert (told["keys"], told["files"], told["edited"]) == ([], [], [])
    assert host.rollback() == "committed"
    assert env(host).read_bytes() == rotated
    assert asides(env(host)) == []


def test_a_key_the_tool_set_goes_back_named_and_its_line_is_kept(host: Place) -> None:
    lines = (
        f"EXTRA_TOKEN={SECRET}\nML_STACKING_MIN_SAMPLES=987654321\n# end\nML_ENABLE_STACKING=1\n"
    ).encode()
    env(host).write_bytes(lines)
    told = returns(host)
    assert told["keys"] == ["ML_STACKING_MIN_SAMPLES"]
    assert "987654321" not in str(told)
    assert host.rollback() == "committed"
    went_back = lines.replace(b"=987654321", b"=100").replace(b"STACKING=1", b"STACKING=0")
    assert env(host).read_bytes() == went_back
    [aside] = asides(env(host))
    assert aside.name == ".env.before-rollback-3"
    assert aside.read_bytes() == b"ML_STACKING_MIN_SAMPLES=987654321\n"  # no other secret is copied
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    event = switched(host, 3)
    assert (event["keys"], event["kept"]) == (["ML_STACKING_MIN_SAMPLES"], [str(aside)])
    assert "987654321" not in str(event)


@pytest.mark.parametrize("what", ["a circle", "a pipe"])
def test_whatever_is_in_the_place_of_the_flags_file_it_goes_back(host: Place, what: str) -> None:
    """Waiting for a pipe's writer would last forever."""
    env(host).unlink()
    if what == "a circle":
        env(host).symlink_to(".env")
    else:
        os.mkfifo(env(host))
    assert host.rollback() == "committed"
    assert b"ML_ENABLE_STACKING=0\n" in env(host).read_bytes()


@pytest.mark.parametrize(("confirm", "ends"), [(True, "committed"), (False, "reverted")])
def test_a_directory_in_the_place_of_the_flags_file_stays(
    host: Place, confirm: bool, ends: str
) -> None:
    """Nobody has flags in a directory, and nothing in it is the tool's."""
    live = host.live
    env(host).rename(env(host).with_name("moved"))
    env(host).mkdir()
    (env(host) / "note").write_text("do not delete\n")
    assert returns(host)["keys"] == []
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="rollback")
        begun = host.begin(session, "rollback", None, confirm_s=30.0 if confirm else 1.0)
    end = host.finish(begun["number"], confirm=confirm)[-1]
    assert end["state"] == ends, end
    assert (host.live == live) is not confirm
    assert switched(host, begun["number"])["keys"] == []
    assert confirm or "confirmed" in end["reason"], end
    assert [path.name for path in env(host).iterdir()] == ["note"]
    assert (env(host) / "note").read_text() == "do not delete\n"
    assert asides(env(host)) == []


def test_a_hand_edited_unit_and_settings_are_kept_beside(host: Place) -> None:
    edited = unit(host).read_text() + "# by hand\n"
    unit(host).write_text(edited)
    settings = host.app / "service.json"
    settings.write_text('{"by": "hand"}\n')
    told = returns(host)
    assert told["edited"] == [UNIT, "service.json"]
    assert host.rollback() == "committed"
    assert "# by hand" not in unit(host).read_text()
    [aside] = asides(unit(host))
    assert (aside.name, aside.read_text()) == (f"{UNIT}.before-rollback-3", edited)
    [aside] = asides(settings)
    assert aside.read_text() == '{"by": "hand"}\n'
    assert not settings.exists()  # release 1 had none
    assert sorted(switched(host, 3)["files"]) == [UNIT, "service.json"]


BROKEN = ['{"by": ', "[" * 100_000, '{"own": {"name": 1}}', '{"instances": "a", "symbols": 7}']


@pytest.mark.parametrize("text", BROKEN, ids=["torn", "deep", "odd", "no list"])
def test_settings_that_people_broke_stop_no_look_and_no_rollback(host: Place, text: str) -> None:
    settings = host.app / "service.json"
    settings.write_text(text)
    told = returns(host)
    assert told["edited"] == ["service.json"]
    assert host.rollback() == "committed"
    assert not settings.exists()
    assert [one.read_text() for one in asides(settings)] == [text]
    assert [other["files"] for other in host.facts()["returns"].values()] == [[]]  # nor the next


def test_a_revert_goes_back_to_settings_that_went_live_not_to_broken_ones(host: Place) -> None:
    settings = host.app / "service.json"
    good = '{"endpoint": ""}\n'
    snapshot = host.app / "state/snapshots" / f"{host.live}.json"
    stored = json.loads(snapshot.read_text())
    snapshot.write_text(json.dumps({**stored, "service.json": good}))
    settings.write_text('{"by": ')
    assert host.deploy(host.release(3, "exits")) == "reverted"
    assert settings.read_text() == good
    assert [one.read_text() for one in asides(settings)] == ['{"by": ']
    assert json.loads(snapshot.read_text())["service.json"] == good


def test_settings_that_people_broke_before_the_first_deploy_stop_it_not() -> None:
    with place() as made:
        settings = made.app / "service.json"
        settings.write_text('{"by": ')
        assert made.facts()["live"] is None
        assert made.deploy(made.release(1)) == "committed"
        assert [one.read_text() for one in asides(settings)] == ['{"by": ']


def test_an_edit_counts_though_a_failed_deploy_came_between(host: Place) -> None:
    """What the failed one took for the state before it is not what a deploy wrote."""
    unit(host).write_text(unit(host).read_text() + "# by hand\n")
    edited = unit(host).read_text()
    assert host.deploy(host.release(3, "exits")) == "reverted"
    assert unit(host).read_text() == edited
    assert asides(unit(host)) == []  # it is where it was, so no copy is left
    assert returns(host)["edited"] == [UNIT]
    assert host.rollback() == "committed"
    assert [one.read_text() for one in asides(unit(host))] == [edited]


def test_an_edit_counts_so_too_where_an_older_version_deployed(host: Place) -> None:
    """Such a version recorded neither what it wrote nor which keys it set."""
    committed = host.app / "state" / "committed.json"
    entries = json.loads(committed.read_text())
    committed.write_text(
        json.dumps([{k: e[k] for k in e if k not in ("written", "flags")} for e in entries])
    )
    unit(host).write_text(unit(host).read_text() + "# by hand\n")
    edited = unit(host).read_text()
    assert returns(host)["edited"] == [UNIT]
    assert host.deploy(host.release(3, "exits")) == "reverted"
    assert returns(host)["edited"] == [UNIT]
    env(host).write_bytes(env(host).read_bytes().replace(b"=100", b"=200") + b"NEW_TOKEN=1\n")
    assert host.rollback() == "committed"
    assert [one.read_text() for one in asides(unit(host))] == [edited]
    assert b"SAMPLES=100\nNEW_TOKEN=1\n" in env(host).read_bytes()


def test_a_dropin_of_systemctl_edit_stays(host: Place) -> None:
    beside = unit(host).with_name(f"{UNIT}.d") / "override.conf"
    beside.parent.mkdir()
    beside.write_text("[Service]\nEnvironment=EXTRA=1\n")
    assert host.rollback() == "committed"
    assert beside.read_text() == "[Service]\nEnvironment=EXTRA=1\n"


def test_what_changes_while_a_release_is_on_trial_survives_its_revert(host: Place) -> None:
    before = unit(host).read_text()
    host.app.joinpath("service.json").unlink(missing_ok=True)
    with host.session() as session:
        session.call("lock", app=str(host.app), who="tester", doing="deploy")
        third = host.release(3, "waits")
        host.stage(session, third)
        begun = host.begin(
            session, "deploy", third.id, health_s=90.0, soak_s=0.2, confirm_s=0.5,
            after={UNIT: before + "# release 3\n"},
        )  # fmt: skip
        eventually((host.app / "waiting").exists)
        text = env(host).read_bytes()
        env(host).write_bytes(text.replace(b"=old", b"=rotated") + b"EXTRA_TOKEN=x\n")
        unit(host).write_text("# by hand, while it started\n")
    (host.app / "go").touch()
    ended = host.finish(begun["number"], confirm=False)
    assert ended[-1]["state"] == "reverted"
    assert env(host).read_bytes() == text.replace(b"=old", b"=rotated") + b"EXTRA_TOKEN=x\n"
    assert unit(host).read_text() == before
    [aside] = asides(unit(host))
    assert aside.read_text() == "# by hand, while it started\n"
    assert str(aside) in ended[-1]["kept"]


def test_a_key_the_tool_added_since_goes_and_one_of_the_teams_stays(host: Place) -> None:
    """What the tool sets is recorded with each release; a name alone says nothing."""
    assert host.deploy(host.release(3), flags=[*FLAGS, "OMP_NUM_THREADS"]) == "committed"
    text = env(host).read_bytes()
    env(host).write_bytes(text + b"OMP_NUM_THREADS=4\nML_OTHER=4\n")
    assert returns(host)["keys"] == ["OMP_NUM_THREADS"]
    assert host.rollback() == "committed"
    assert env(host).read_bytes() == text + b"ML_OTHER=4\n"
